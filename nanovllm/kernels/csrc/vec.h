/* A float vector of the level's own width, from the compiler's vector extensions. Included once by each level. */
#ifndef NV_VEC_H
#define NV_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels.h"

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif
#define VPL (NV_LANES / VL) /* vectors that make up the NV_LANES lanes of a fixed-order sum */

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef float vf_any __attribute__((vector_size(VL * 4), aligned(4), may_alias));

static inline vf v_load(const float *p) { return *(const vf_any *)p; }
static inline void v_store(float *p, vf x) { *(vf_any *)p = x; }
/* Minus 0 is nothing for every x; plus 0 would be an addition, since it turns -0 into 0. */
static inline vf v_set(float x) { return x - (vf){0}; }

/* x, held in a register: gcc would rather load it again for each use of up to three. */
static inline vf v_hold(vf x) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(x));
#elif defined(__x86_64__)
    __asm__("" : "+x"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return x;
}

static inline vf v_max(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#elif defined(__aarch64__)
    return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#else
    vi keep = a > b;
    return (vf)(((vi)a & keep) | ((vi)b & ~keep));
#endif
}

/* The larger of two numbers from 0 up by their bits: those order as the numbers do, and NaN comes above all of them. */
static inline vi v_max_bits(vi a, vi b) {
#if defined(__AVX512F__)
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    vi keep = a > b;
    return (a & keep) | (b & ~keep);
#endif
}

/* Whether any lane of a comparison is true. */
static inline int v_any(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__x86_64__)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    int32_t any = 0;
    for (int i = 0; i < VL; i++) any |= mask[i];
    return any != 0;
#endif
}

/* exp(x) to about 2 ulp for x <= 88; exactly 0 from -87 down (which covers -inf); NaN stays NaN.
 * Source: range reduction x = n ln2 + r with ln2 in two parts (Cody and Waite), Taylor polynomial of degree 7 on
 * |r| <= ln2 / 2, whose first omitted term is under 6e-9. */
static inline vf v_exp(vf x) {
    vi dead = x <= -87.0f;
    x = v_max(v_set(-87.0f), x); /* in this order: of a NaN, x86 returns the second operand */
    const vf magic = v_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits */
    vf shifted = x * 1.44269504088896341f + magic;
    vf n = shifted - magic;
    vf r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    vi exponent = ((vi)shifted) << 23; /* n times 2^23: the magic number's own bits leave at the top */
    vf y = (vf)((vi)p + exponent);
    return (vf)((vi)y & ~dead);
}

/* The sum of NV_LANES lanes by a fixed tree: each lane of the lower half and the one that far above it, and so on. */
static inline float lanes_sum(const vf *acc) {
#if defined(__AVX__)
#if defined(__AVX512F__)
    const __m512 all = (__m512)acc[0];
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
    const __m256 eight = _mm256_add_ps((__m256)acc[0], (__m256)acc[1]);
#endif
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float t[NV_LANES];
    for (int i = 0; i < VPL; i++) v_store(t + i * VL, acc[i]);
    for (int width = NV_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) t[i] += t[i + width];
    return t[0];
#endif
}

static inline float lanes_max(vf acc) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)acc);
#else
    float t[VL], m;
    v_store(t, acc);
    m = t[0];
    for (int i = 1; i < VL; i++) m = t[i] > m ? t[i] : m;
    return m;
#endif
}

/* The float with the largest bits of those that `v_max_bits` has gone over. */
static inline float lanes_max_bits(vi top) {
    int32_t most;
#if defined(__AVX512F__)
    most = _mm512_reduce_max_epi32((__m512i)top);
#else
    most = top[0];
    for (int i = 1; i < VL; i++) most = top[i] > most ? top[i] : most;
#endif
    float max;
    memcpy(&max, &most, 4);
    return max;
}

static inline int32_t lanes_total(vi x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int32_t sum = 0;
    for (int i = 0; i < VL; i++) sum += x[i];
    return sum;
#endif
}

/* F for each row of a strip. The accumulators below are variables of their own: gcc 12 keeps an array of them in memory
 * when intrinsics update it, which halves the speed. */
#define ROWS_1(F) F(0)
#define ROWS_2(F) ROWS_1(F) F(1)
#define ROWS_3(F) ROWS_2(F) F(2)
#define ROWS_4(F) ROWS_3(F) F(3)
#define ROWS_5(F) ROWS_4(F) F(4)
#define ROWS_6(F) ROWS_5(F) F(5)
#define ROWS_7(F) ROWS_6(F) F(6)
#define ROWS_8(F) ROWS_7(F) F(7)
#define ROWS_9(F) ROWS_8(F) F(8)
#define ROWS_10(F) ROWS_9(F) F(9)
#define ROWS_11(F) ROWS_10(F) F(10)
#define ROWS_12(F) ROWS_11(F) F(11)

#endif
