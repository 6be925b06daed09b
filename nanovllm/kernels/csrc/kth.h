/* The k-th largest of some floats, by bisection of their bit patterns: at most 32 passes whatever the data. */
#ifndef NV_KTH_H
#define NV_KTH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t sampling_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float sampling_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Floats in their order as unsigned integers, and back. */
static inline uint32_t sampling_key(float x) {
    uint32_t bits = sampling_bits(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static inline float sampling_unkey(uint32_t key) {
    return sampling_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

/* k-th largest of n values without NaN or +inf; 1 <= k <= n. */
static inline float sampling_kth_largest(const float *x, ptrdiff_t n, ptrdiff_t k) {
    uint32_t low = sampling_key(-INFINITY), high = sampling_key(INFINITY);
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        float bound = sampling_unkey(middle);
        ptrdiff_t count = 0;
        for (ptrdiff_t start = 0; start < n; start += 4096) { /* int32 counts fill twice as many SIMD lanes */
            ptrdiff_t stop = start + 4096 < n ? start + 4096 : n;
            int32_t part = 0;
            for (ptrdiff_t i = start; i < stop; i++) part += x[i] >= bound;
            count += part;
        }
        if (count >= k)
            low = middle;
        else
            high = middle;
    }
    return sampling_unkey(low);
}

#endif
