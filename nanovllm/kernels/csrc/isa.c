/* Which levels this machine can run. */
#include "kernels.h"

static const nv_kernels *levels[8];

const nv_kernels *const *nv_available_levels(void) {
    int n = 0;
    levels[n++] = &nv_kernels_scalar;
#if defined(__x86_64__)
    __builtin_cpu_init(); /* also checks that the operating system saves the wide registers */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) levels[n++] = &nv_kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        levels[n++] = &nv_kernels_avx512;
    if (levels[n - 1] == &nv_kernels_avx512 && __builtin_cpu_supports("avx512bf16") &&
        __builtin_cpu_supports("avx512vnni"))
        levels[n++] = &nv_kernels_avx512_bf16;
#endif
    levels[n] = 0;
    return levels;
}
