/* Which levels this machine can run. */
#define _GNU_SOURCE
#include <unistd.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

/* AMX needs the CPU's tiles for bfloat16 and int8, and the kernel's permission to grow the saved registers by 8 KiB.
 * Source: Linux, Documentation/arch/x86/xstate.rst. */
static int amx_is_usable(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { TILE_BF16 = 1 << 22, TILE = 1 << 24, TILE_INT8 = 1 << 25, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    const unsigned wanted = TILE_BF16 | TILE | TILE_INT8;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & wanted) != wanted) return 0;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return 0;
#endif
}
#endif

ptrdiff_t nv_block_bytes = 256 << 10;

static void measure_cache(void) {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long half = sysconf(_SC_LEVEL2_CACHE_SIZE) / 2; /* 0 where the C library does not know */
    if (half >= 64 << 10) nv_block_bytes = half < NV_MOST_BLOCK_BYTES ? half : NV_MOST_BLOCK_BYTES;
#endif
}

static int collect(const nv_kernels **levels, int for_tests) {
    int n = 0;
    measure_cache();
    levels[n++] = &nv_kernels_scalar;
    (void)for_tests;
#if defined(__x86_64__)
    const nv_kernels *emulated;
    __builtin_cpu_init(); /* also checks that the operating system saves the wide registers */
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return n;
    levels[n++] = &nv_kernels_avx2;
    emulated = &nv_kernels_amx_emulated_avx2;
    const int has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (has_avx512) levels[n++] = &nv_kernels_avx512;
    if (has_avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
        levels[n++] = &nv_kernels_avx512_bf16;
        emulated = &nv_kernels_amx_emulated;
        if (amx_is_usable()) levels[n++] = &nv_kernels_amx;
    }
    if (for_tests) levels[n++] = emulated;
#endif
    return n;
}

const nv_kernels *const *nv_available_levels(void) {
    static const nv_kernels *levels[8];
    levels[collect(levels, 0)] = NULL;
    return levels;
}

const nv_kernels *const *nv_testable_levels(void) {
    static const nv_kernels *levels[8];
    levels[collect(levels, 1)] = NULL;
    return levels;
}
