/* The AMX level with its tiles in plain C for machines without AVX512, which have the same bits: for tests. */
#define NV_LEVEL nv_kernels_amx_emulated_avx2
#define NV_LEVEL_NAME "amx_emulated"
#define NV_AMX
#define NV_AMX_EMULATED
#include "body.h"
