/* The AMX level with its tiles in plain C: for tests on machines without AMX, never chosen by itself. */
#define NV_LEVEL nv_kernels_amx_emulated
#define NV_LEVEL_NAME "amx_emulated"
#define NV_AMX
#define NV_AMX_EMULATED
#include "body.h"
