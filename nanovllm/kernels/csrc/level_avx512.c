#define NV_LEVEL nv_kernels_avx512
#define NV_LEVEL_NAME "avx512"
#include "body.h"
