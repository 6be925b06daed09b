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

/* y[0:n] = round(x * 127 / max|x|), y[n:n_padded] = 0; returns the scale that turns y back into factor * x. */
static float to_int8(const float *x, int8_t *y, ptrdiff_t n, ptrdiff_t n_padded, float factor) {
    vf top = v_set(0);
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) {
        vf v = v_load(x + j);
        top = v_max(top, v_max(v, -v));
    }
    float max = lanes_max(top);
    for (; j < n; j++) max = fabsf(x[j]) > max ? fabsf(x[j]) : max;
    /* A row of zeros stays zeros; a row with infinities or NaN keeps a scale that shows it. */
    float inverse = max > 0 && max <= FLT_MAX ? 127.0f / max : 0;
    const vf magic = v_set(12582912.0f); /* adding 1.5 * 2^23 rounds to nearest even into the low mantissa bits */
    for (j = 0; j + VL <= n; j += VL) {
        vi q = (vi)(v_load(x + j) * inverse + magic);
        int32_t lanes[VL];
        v_store((float *)lanes, (vf)q);
        for (int i = 0; i < VL; i++) y[j + i] = (int8_t)lanes[i];
    }
    for (; j < n; j++) y[j] = (int8_t)lrintf(x[j] * inverse);
    for (; j < n_padded; j++) y[j] = 0;
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

/* In place on blocks of `block` (a power of two from 1 to 64): x = x @ H / sqrt(block), H Sylvester's Hadamard matrix. */
static void hadamard(float *x, ptrdiff_t n, int block) {
    if (block <= 1) return;
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
