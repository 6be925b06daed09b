#define NV_LEVEL nv_kernels_scalar
#define NV_LEVEL_NAME "scalar"
#include "body.h"
