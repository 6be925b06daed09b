#define NV_LEVEL nv_kernels_amx
#define NV_LEVEL_NAME "amx"
#define NV_AMX
#include "body.h"
