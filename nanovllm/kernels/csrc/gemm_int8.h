/* Micro kernels of the int8 kind for the levels without tiles: sums in int32, exact in any order. Included by gemm.h. */

#if defined(__AVX512VNNI__)
#define INT8_ZERO(r) __m512i p##r = _mm512_setzero_si512(), q##r = _mm512_setzero_si512();
#define INT8_STEP(r)                                                                                      \
    x = _mm512_set1_epi32(a[r * s.lda + i]);                                                              \
    p##r = _mm512_dpbusd_epi32(p##r, x, b0);                                                              \
    q##r = _mm512_dpbusd_epi32(q##r, x, b1);
#define INT8_STORE(r)                                                                                     \
    _mm512_storeu_si512(out + r * NV_PANEL, p##r);                                                        \
    _mm512_storeu_si512(out + r * NV_PANEL + 16, q##r);
#define MICRO_INT8(R)                                                                                     \
    static void micro_int8_##R(strip_t s, const void *panel, ptrdiff_t k, void *tile) {                   \
        const int32_t *a = s.a; /* four unsigned bytes */                                                 \
        const char *b = panel;                                                                            \
        int32_t *out = tile;                                                                              \
        ROWS_##R(INT8_ZERO)                                                                               \
        for (ptrdiff_t i = 0; i < k / 4; i++, b += 128) {                                                 \
            __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 64), x;                       \
            ROWS_##R(INT8_STEP)                                                                           \
        }                                                                                                 \
        ROWS_##R(INT8_STORE)                                                                              \
    }

static strip_t strip_int8(const nv_gemm *g, ptrdiff_t row, int rows) {
    (void)rows;
    return (strip_t){(const int8_t *)g->x + row * g->ldx, g->ldx / 4};
}
#else
#if defined(__AVX2__)
/* Sums of two products of int16, which hold any product of two int8 exactly. */
static inline vi madd(vi a, vi b) {
#if VL == 16
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
static inline vi even_bytes(vi x) {
#if VL == 16
    return (vi)_mm512_srai_epi16(_mm512_slli_epi16((__m512i)x, 8), 8);
#else
    return (vi)_mm256_srai_epi16(_mm256_slli_epi16((__m256i)x, 8), 8);
#endif
}
static inline vi odd_bytes(vi x) {
#if VL == 16
    return (vi)_mm512_srai_epi16((__m512i)x, 8);
#else
    return (vi)_mm256_srai_epi16((__m256i)x, 8);
#endif
}
#define INT8_STEP(acc, x_even, x_odd, w) acc += madd(x_even, even_bytes(w)) + madd(x_odd, odd_bytes(w))
#else
static inline vi madd(vi a, vi b) { /* lanes hold two int16 each */
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
static inline vi even_bytes(vi x) { return (((x << 24) >> 24) & 0xffff) | (((x << 8) >> 24) << 16); }
static inline vi odd_bytes(vi x) { return (((x << 16) >> 24) & 0xffff) | ((x >> 24) << 16); }
#define INT8_STEP(acc, x_even, x_odd, w) acc += madd(x_even, even_bytes(w)) + madd(x_odd, odd_bytes(w))
#endif
#define DOT_INT8(name, R, vectors, ahead)                                                                 \
    static void name##_##R(strip_t s, const void *panel, ptrdiff_t k, void *tile) {                       \
        const int32_t *a = s.a; /* for four bytes: the even two, then the odd two, as int16 */            \
        int32_t *out = tile;                                                                              \
        for (int c = 0; c < NV_PANEL; c += (vectors) * VL) {                                              \
            const float *b = (const float *)panel + c; /* one float's worth of bits is four bytes */      \
            vi acc[R][vectors] = {0};                                                                     \
            for (ptrdiff_t i = 0; i < k / 4; i++, b += NV_PANEL) {                                        \
                vi held[vectors];                                                                         \
                if (ahead) ask_ahead((const char *)b + ahead, (vectors) * VL * 4);                        \
                for (int v = 0; v < (vectors); v++) held[v] = (vi)v_load(b + v * VL);                     \
                for (int r = 0; r < R; r++) {                                                             \
                    vi even = (vi){0} + a[r * s.lda + 2 * i], odd = (vi){0} + a[r * s.lda + 2 * i + 1];   \
                    for (int v = 0; v < (vectors); v++) INT8_STEP(acc[r][v], even, odd, held[v]);         \
                }                                                                                         \
            }                                                                                             \
            for (int r = 0; r < R; r++)                                                                   \
                for (int v = 0; v < (vectors); v++)                                                       \
                    v_store((float *)out + r * NV_PANEL + c + v * VL, (vf)acc[r][v]);                     \
        }                                                                                                 \
    }
#define MICRO_INT8(R) DOT_INT8(micro_int8, R, 2, 0)
#ifdef WIDE_STRIP
#define WIDE_INT8(R) DOT_INT8(wide_int8, R, PANEL_VECTORS, WIDE_AHEAD)
EACH_WIDE_ROWS(WIDE_INT8)
#endif

static strip_t strip_int8(const nv_gemm *g, ptrdiff_t row, int rows) {
    ptrdiff_t k = g->w->k_padded;
    int16_t *pairs = g->scratch;
    for (int r = 0; r < rows; r++) {
        const int8_t *x = (const int8_t *)g->x + (row + r) * g->ldx;
        int16_t *to = pairs + r * k;
        for (ptrdiff_t i = 0; i < k; i += 4, to += 4) {
            to[0] = x[i];
            to[1] = x[i + 2];
            to[2] = x[i + 1];
            to[3] = x[i + 3];
        }
    }
    return (strip_t){pairs, k / 2};
}
#endif
