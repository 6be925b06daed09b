/* The level that every machine has: SSE2 on x86-64, NEON on aarch64, through the compiler's vector extensions. */
#define NV_LEVEL nv_kernels_scalar
#if defined(__aarch64__)
#define NV_LEVEL_NAME "neon"
#else
#define NV_LEVEL_NAME "scalar"
#endif
#include "body.h"
