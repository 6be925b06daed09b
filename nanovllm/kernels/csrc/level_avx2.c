#define NV_LEVEL nv_kernels_avx2
#define NV_LEVEL_NAME "avx2"
#include "body.h"
