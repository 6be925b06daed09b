/* Rows of activations to the form that a GEMM reads: bfloat16, or int8 with one scale a row. Included by body.h. */

/* y[0:n] = bfloat16(x), to nearest even; y[n:n_padded] = 0. */
static void to_bf16(const float *x, uint16_t *y, ptrdiff_t n, ptrdiff_t n_padded) {
    ptrdiff_t j = 0;
#if defined(__AVX512BF16__)
    for (; j + 16 <= n; j += 16)
        _mm256_storeu_si256((__m256i *)(y + j), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + j)));
    if (j < n) { /* the tail by the same instruction: it flushes denormals, integer rounding does not */
        __mmask16 mask = (__mmask16)((1u << (n - j)) - 1);
        __m256i tail = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + j));
        _mm256_mask_storeu_epi16(y + j, mask, tail);
        j = n;
    }
#else
    for (; j < n; j++) {
        uint32_t bits;
        memcpy(&bits, x + j, 4);
        y[j] = (bits & 0x7fffffff) > 0x7f800000 ? (uint16_t)((bits >> 16) | 64) /* NaN stays NaN */
                                                : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
#endif
    for (; j < n_padded; j++) y[j] = 0;
}

/* vpdpbusd multiplies unsigned by signed: rows are stored moved up by 128, and the columns' offsets take it back
 * exactly. AMX and the units without VNNI multiply signed by signed. */
#if defined(__AVX512VNNI__) && !defined(NV_AMX)
#define INT8_OFFSET 128
#else
#define INT8_OFFSET 0
#endif

/* The largest |x|; NaN if one is, whose bits are above all others. */
static float abs_max(const float *x, ptrdiff_t n) {
    vi top = {0};
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) top = v_max_bits(top, (vi)v_load(x + j) & 0x7fffffff);
    if (j < n) {
        int32_t tail[VL] = {0};
        memcpy(tail, x + j, (size_t)(n - j) * sizeof(float));
        top = v_max_bits(top, (vi)v_load((const float *)tail) & 0x7fffffff);
    }
    return lanes_max_bits(top);
}

/* y[0:n] = round(x * 127 / max|x|) + offset; returns max|x|, NaN where an element is infinite or NaN. */
static float quantize(const float *x, uint8_t *y, ptrdiff_t n, int offset) {
    const float max = abs_max(x, n);
    const float inverse = max > 0 && max <= FLT_MAX ? 127.0f / max : 0;
    /* Adding 1.5 * 2^23 rounds to nearest even into the low mantissa bits; the offset may come along. The product is
     * held, hence rounded, so that levels with and without fused operations agree. */
    const vf magic = v_set(12582912.0f + (float)offset);
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) {
        vi q = (vi)(v_hold(v_load(x + j) * inverse) + magic);
#if defined(__AVX512F__)
        _mm_storeu_si128((__m128i *)(y + j), _mm512_cvtepi32_epi8((__m512i)q));
#else
        for (int i = 0; i < VL; i++) y[j + i] = (uint8_t)q[i];
#endif
    }
    for (; j < n; j++) y[j] = (uint8_t)(lrintf(x[j] * inverse) + offset);
    return max <= FLT_MAX ? max : NAN; /* infinity might become a score of -infinity, which nobody would see */
}

/* y[0:n] = round(x * 127 / max|x|) + INT8_OFFSET, y[n:n_padded] anything (weights are 0 there); returns the scale that
 * turns y back into factor * x. */
static float to_int8(const float *x, int8_t *y, ptrdiff_t n, ptrdiff_t n_padded, float factor) {
    const float max = quantize(x, (uint8_t *)y, n, INT8_OFFSET);
    for (ptrdiff_t j = n; j < n_padded; j++) y[j] = 0;
    return max * (1.0f / 127.0f) * factor;
}

/* 1 / sqrt(mean(x^2) + eps), the sum in NV_LANES fixed lanes. */
static float inverse_rms(const float *x, ptrdiff_t n, float eps) {
    vf acc[VPL];
    for (int i = 0; i < VPL; i++) acc[i] = v_set(0);
    ptrdiff_t j = 0;
    for (; j + NV_LANES <= n; j += NV_LANES)
        for (int i = 0; i < VPL; i++) {
            vf v = v_load(x + j + i * VL);
            acc[i] += v * v;
        }
    float sum = lanes_sum(acc);
    for (; j < n; j++) sum += x[j] * x[j];
    return 1.0f / sqrtf(sum / (float)n + eps);
}

#if defined(__GNUC__) && !defined(__clang__)
/* Blocks of 64 in registers: the stages within a vector by shuffles, those between vectors by sums. The stages of a
 * Hadamard matrix may come in any order. */
static void hadamard_64(float *x, ptrdiff_t n) {
    vi partner[5];
    vf sign[5];
    int stages = 0;
    for (int half = 1; half < VL; half *= 2, stages++)
        for (int j = 0; j < VL; j++) {
            partner[stages][j] = j ^ half;
            sign[stages][j] = j & half ? -1.0f : 1.0f;
        }
    for (ptrdiff_t start = 0; start + 64 <= n; start += 64) {
        vf v[64 / VL];
        for (int i = 0; i < 64 / VL; i++) {
            v[i] = v_load(x + start + i * VL) * 0.125f; /* 1 / sqrt(64) */
            for (int s = 0; s < stages; s++) v[i] = __builtin_shuffle(v[i], partner[s]) + v[i] * sign[s];
        }
        for (int half = 1; half < 64 / VL; half *= 2)
            for (int i = 0; i < 64 / VL; i += 2 * half)
                for (int j = i; j < i + half; j++) {
                    vf a = v[j], b = v[j + half];
                    v[j] = a + b;
                    v[j + half] = a - b;
                }
        for (int i = 0; i < 64 / VL; i++) v_store(x + start + i * VL, v[i]);
    }
}
#endif

/* In place on blocks of `block` (a power of two from 1 to 64): x = x @ H / sqrt(block), H Sylvester's Hadamard matrix. */
static void hadamard(float *x, ptrdiff_t n, int block) {
    if (block <= 1) return;
#if defined(__GNUC__) && !defined(__clang__)
    if (block == 64) {
        hadamard_64(x, n);
        return;
    }
#endif
    const float scale = 1.0f / sqrtf((float)block);
    for (ptrdiff_t start = 0; start + block <= n; start += block) {
        float *v = x + start;
        for (int half = 1; half < block; half *= 2)
            for (int i = 0; i < block; i += 2 * half)
                for (int j = i; j < i + half; j++) {
                    float a = v[j], b = v[j + half];
                    v[j] = a + b;
                    v[j + half] = a - b;
                }
        for (int j = 0; j < block; j++) v[j] *= scale;
    }
}
