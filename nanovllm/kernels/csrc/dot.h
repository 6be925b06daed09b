/* Rows times a matrix, 2 * VL columns at a time, in registers: what GEMM, attention scores and weighted values have in
 * common. Included by body.h.
 *
 * Every output is one chain of additions in ascending i. The functions are inlined into callers that name `rows` and the
 * kind as constants, where the loops over rows unroll and the accumulators become registers. */

#define INLINE static inline __attribute__((always_inline))

/* Rows of one call: at most as many as fit the registers of the widest level. */
#define DOT_ROWS 12
#define MOST_VECTORS 8 /* a panel of 32 columns in vectors of 4 */
#define EACH_DOT_ROWS(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12)

/* Lines of memory to ask for beside a loop, spread evenly over its rounds. A core has some two dozen requests under way
 * at most, and loads that miss the first cache need one too: a burst of them would hold up the loop. */
typedef struct {
    const char *line; /* the next one */
    int step;         /* lines for each round, in 1 / PACE_LINE; up to 2 of them */
    int due;
} pace_t;
#define PACE_LINE 65536
#define LINE 64

INLINE void ask_if_due(pace_t *pace) {
    if (pace->due < PACE_LINE) return;
    __builtin_prefetch(pace->line, 0, 2);
    pace->line += LINE;
    pace->due -= PACE_LINE;
}

INLINE void keep_pace(pace_t *pace) {
    pace->due += pace->step;
    ask_if_due(pace);
    ask_if_due(pace);
}

/* Asks for `bytes` from `at` on, which may lie behind the end of what there is. */
INLINE void ask_ahead(const char *at, int bytes) {
    for (int i = 0; i < bytes; i += LINE) __builtin_prefetch(at + i, 0, 2);
}

/* out[r][c] (+)= sum over i of x[r][i] * w[i][c], for i < k and c < 2 * VL. */
typedef struct {
    const void *x;          /* x[r][i] at x_row * r + x_step * i, in elements or (bfloat16 units) in pairs of two i */
    ptrdiff_t x_row, x_step;
    const void *w;          /* w[i] or, of bfloat16, the pair that holds it: w_step 4-byte words from one to the next */
    ptrdiff_t w_step;
    ptrdiff_t k;
    float *out;             /* row r at out + out_row * r */
    ptrdiff_t out_row;
    int accumulate;         /* add to out, else overwrite it */
    pace_t pace;
    int ahead;              /* for w that is one stream: bytes from what is read to what is asked for; else 0 */
} dot_t;

#define LOW(x) ((vf)((vi)(x) << 16)) /* bfloat16 is the upper half of a float */
#define HIGH(x) ((vf)((vi)(x) & (int32_t)0xffff0000))

/* The sums in float of `vectors` times VL columns; with is_bf16 w holds pairs and x is rounded, but float. */
INLINE void dot_float(int rows, int vectors, int is_bf16, const dot_t *d) {
    const float *x = d->x, *w = d->w;
    vf acc[DOT_ROWS][MOST_VECTORS], held[MOST_VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) acc[r][v] = d->accumulate ? v_load(d->out + r * d->out_row + v * VL) : v_set(0);
    ptrdiff_t i = 0;
    pace_t pace = d->pace;
    for (; i + is_bf16 < d->k; i += 1 + is_bf16) {
        keep_pace(&pace);
        const ptrdiff_t at = (is_bf16 ? i / 2 : i) * d->w_step;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) held[v] = v_hold(v_load(w + at + v * VL));
        if (d->ahead) ask_ahead((const char *)(w + at) + d->ahead, vectors * VL * 4);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const vf first = v_set(x[r * d->x_row + i * d->x_step]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) acc[r][v] += first * (is_bf16 ? LOW(held[v]) : held[v]);
            if (is_bf16) {
                const vf second = v_set(x[r * d->x_row + (i + 1) * d->x_step]);
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++) acc[r][v] += second * HIGH(held[v]);
            }
        }
    }
    if (is_bf16 && i < d->k) /* half a pair; the other half is not ours to read: 0 * NaN is NaN */
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const vf last = v_set(x[r * d->x_row + i * d->x_step]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) acc[r][v] += last * LOW(v_load(w + i / 2 * d->w_step + v * VL));
        }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) v_store(d->out + r * d->out_row + v * VL, acc[r][v]);
}

#define DOT_F32(R) \
    INLINE void dot_f32_##R(const dot_t *d) { dot_float(R, 2, 0, d); }
EACH_DOT_ROWS(DOT_F32)

#if defined(__AVX512BF16__)
/* Accumulators are variables of their own, by macros: gcc 12 keeps an array that intrinsics update in memory. */
#define DOT_LOAD(r)                                                                                     \
    __m512 p##r = d->accumulate ? _mm512_loadu_ps(d->out + r * d->out_row) : _mm512_setzero_ps(),       \
           q##r = d->accumulate ? _mm512_loadu_ps(d->out + r * d->out_row + 16) : _mm512_setzero_ps();
#define DOT_STEP(r)                                                                                     \
    pair = (__m512bh)_mm512_set1_epi32(x[r * d->x_row + i * d->x_step]);                                \
    p##r = _mm512_dpbf16_ps(p##r, pair, w0);                                                            \
    q##r = _mm512_dpbf16_ps(q##r, pair, w1);
#define DOT_STORE(r)                                                                                    \
    _mm512_storeu_ps(d->out + r * d->out_row, p##r);                                                    \
    _mm512_storeu_ps(d->out + r * d->out_row + 16, q##r);
#define DOT_BF16(R)                                                                                     \
    INLINE void dot_bf16_##R(const dot_t *d) {                                                          \
        const int32_t *x = d->x;                                                                        \
        const float *w = d->w;                                                                          \
        __m512bh w0, w1, pair;                                                                          \
        ptrdiff_t i = 0;                                                                                \
        pace_t pace = d->pace;                                                                          \
        ROWS_##R(DOT_LOAD)                                                                              \
        for (; i < d->k / 2; i++) {                                                                     \
            keep_pace(&pace);                                                                           \
            w0 = (__m512bh)v_hold(v_load(w + i * d->w_step));                                           \
            w1 = (__m512bh)v_hold(v_load(w + i * d->w_step + VL));                                      \
            ROWS_##R(DOT_STEP)                                                                          \
        }                                                                                               \
        if (d->k % 2) { /* as in dot_float */                                                           \
            const __m512i first = _mm512_set1_epi32(0xffff);                                            \
            w0 = (__m512bh)_mm512_and_si512(_mm512_loadu_si512(w + i * d->w_step), first);              \
            w1 = (__m512bh)_mm512_and_si512(_mm512_loadu_si512(w + i * d->w_step + 16), first);         \
            ROWS_##R(DOT_STEP)                                                                          \
        }                                                                                               \
        ROWS_##R(DOT_STORE)                                                                             \
    }
EACH_DOT_ROWS(DOT_BF16)
#else
#define DOT_BF16(R) \
    INLINE void dot_bf16_##R(const dot_t *d) { dot_float(R, 2, 1, d); }
EACH_DOT_ROWS(DOT_BF16)
#endif
