#define NV_LEVEL nv_kernels_avx512_bf16
#define NV_LEVEL_NAME "avx512_bf16"
#include "body.h"
