/* The kernels of one level. Included by level_*.c, each compiled with its own flags; NV_LEVEL names the table. */
#include <float.h>
#include <math.h>

#include "vec.h"

#include "convert.h"

static void rms_norm(const float *x, ptrdiff_t ldx, const float *weight, float *y, ptrdiff_t ldy, ptrdiff_t rows,
                     ptrdiff_t n, float eps) {
    for (ptrdiff_t row = 0; row < rows; row++, x += ldx, y += ldy) {
        float inverse = inverse_rms(x, n, eps);
        ptrdiff_t j = 0;
        for (; j + VL <= n; j += VL) v_store(y + j, v_load(x + j) * inverse * v_load(weight + j));
        for (; j < n; j++) y[j] = x[j] * inverse * weight[j];
    }
}

static void rope(float *x, const float *cosines, const float *sines, ptrdiff_t dim) {
    ptrdiff_t half = dim / 2, j = 0;
    for (; j + VL <= half; j += VL) {
        vf a = v_load(x + j), b = v_load(x + half + j), c = v_load(cosines + j), s = v_load(sines + j);
        v_store(x + j, a * c - b * s);
        v_store(x + half + j, b * c + a * s);
    }
    for (; j < half; j++) {
        float a = x[j], b = x[half + j];
        x[j] = a * cosines[j] - b * sines[j];
        x[half + j] = b * cosines[j] + a * sines[j];
    }
}

static inline vf silu_mul_vec(vf gate, vf up) {
    /* -gate is capped so that exp stays finite: silu(-88) is -5e-37 already. */
    vf e = v_exp(-v_max(gate, v_set(-88.0f)));
    return gate / (1.0f + e) * up;
}

static void silu_mul(const float *gate, const float *up, float *out, ptrdiff_t n) {
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) v_store(out + j, silu_mul_vec(v_load(gate + j), v_load(up + j)));
    if (j < n) { /* the tail goes through the same vector code, so that a value never depends on where it stands */
        float g[VL] = {0}, u[VL] = {0};
        memcpy(g, gate + j, (size_t)(n - j) * sizeof(float));
        memcpy(u, up + j, (size_t)(n - j) * sizeof(float));
        v_store(g, silu_mul_vec(v_load(g), v_load(u)));
        memcpy(out + j, g, (size_t)(n - j) * sizeof(float));
    }
}

static void log_sum_exp(const float *logits, ptrdiff_t n, float *max, double *log_sum) {
    vf top = v_set(-INFINITY);
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) top = v_max(top, v_load(logits + j));
    float m = lanes_max(top);
    for (; j < n; j++) m = logits[j] > m ? logits[j] : m;
    *max = m;
    double total = 0;
    /* Partial float sums of 4096 values, added up in double: as exact as needed, and a third of the cost of doubles. */
    for (ptrdiff_t start = 0; start < n; start += 4096) {
        ptrdiff_t end = start + 4096 < n ? start + 4096 : n;
        vf acc[VPL];
        for (int i = 0; i < VPL; i++) acc[i] = v_set(0);
        for (j = start; j + NV_LANES <= end; j += NV_LANES)
            for (int i = 0; i < VPL; i++) acc[i] += v_exp(v_load(logits + j + i * VL) - m);
        if (j < end) {
            float tail[NV_LANES];
            for (int i = 0; i < NV_LANES; i++) tail[i] = j + i < end ? logits[j + i] : -INFINITY;
            for (int i = 0; i < VPL; i++) acc[i] += v_exp(v_load(tail + i * VL) - m);
        }
        total += lanes_sum(acc);
    }
    *log_sum = m + log(total);
}

#include "gemm.h"

/* ---- attention ------------------------------------------------------------------------------------------------- */

/* scores[r, 0:NV_BLOCK] = sum over d of q[d, r] * k[d, :], d ascending. q is [head_dim, NV_ATTN_ROWS]. */
#define SCORES(R)                                                                                             \
    static void scores_##R(const float *q, const float *k, int head_dim, float *scores) {                     \
        for (int part = 0; part < NV_BLOCK; part += 2 * VL) {                                                 \
            vf acc[R][2];                                                                                     \
            for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = v_set(0);                                     \
            for (int d = 0; d < head_dim; d++) {                                                              \
                vf k0 = v_load(k + d * NV_BLOCK + part), k1 = v_load(k + d * NV_BLOCK + part + VL);           \
                for (int r = 0; r < R; r++) {                                                                 \
                    vf x = v_set(q[d * NV_ATTN_ROWS + r]);                                                    \
                    acc[r][0] += x * k0;                                                                      \
                    acc[r][1] += x * k1;                                                                      \
                }                                                                                             \
            }                                                                                                 \
            for (int r = 0; r < R; r++) {                                                                     \
                v_store(scores + r * NV_PIECE + part, acc[r][0]);                                             \
                v_store(scores + r * NV_PIECE + part + VL, acc[r][1]);                                        \
            }                                                                                                 \
        }                                                                                                     \
    }

/* out[r, d0:d0+C*VL] += sum over t of p[r, t] * v[t, d0:...], t ascending, for the positions [begin, end) of a block. */
#define VALUES(R, C)                                                                                          \
    static void values_##R##_##C(const float *p, const float *v, int v_stride, int begin, int end, float *out,\
                                 int out_stride) {                                                            \
        vf acc[R][C];                                                                                         \
        for (int r = 0; r < R; r++)                                                                           \
            for (int c = 0; c < C; c++) acc[r][c] = v_load(out + r * out_stride + c * VL);                    \
        for (int t = begin; t < end; t++) {                                                                   \
            vf row[C];                                                                                        \
            for (int c = 0; c < C; c++) row[c] = v_load(v + t * v_stride + c * VL);                           \
            for (int r = 0; r < R; r++) {                                                                     \
                vf x = v_set(p[r * NV_PIECE + t]);                                                            \
                for (int c = 0; c < C; c++) acc[r][c] += x * row[c];                                          \
            }                                                                                                 \
        }                                                                                                     \
        for (int r = 0; r < R; r++)                                                                           \
            for (int c = 0; c < C; c++) v_store(out + r * out_stride + c * VL, acc[r][c]);                    \
    }

#define BOTH(R) SCORES(R) VALUES(R, 1) VALUES(R, 2)
BOTH(1) BOTH(2) BOTH(3) BOTH(4) BOTH(5) BOTH(6) BOTH(7) BOTH(8)

typedef void (*scores_fn)(const float *, const float *, int, float *);
typedef void (*values_fn)(const float *, const float *, int, int, int, float *, int);
static const scores_fn scores_table[NV_ATTN_ROWS] = {scores_1, scores_2, scores_3, scores_4,
                                                     scores_5, scores_6, scores_7, scores_8};
static const values_fn values_table[NV_ATTN_ROWS][2] = {
    {values_1_1, values_1_2}, {values_2_1, values_2_2}, {values_3_1, values_3_2}, {values_4_1, values_4_2},
    {values_5_1, values_5_2}, {values_6_1, values_6_2}, {values_7_1, values_7_2}, {values_8_1, values_8_2}};

/* Turns scores[0:n] into exp(score - max) over the visible positions [first, last] and 0 elsewhere. The lane of a
 * position depends on the position alone. Returns the sum; *max is the largest visible score. */
static float softmax_piece(float *scores, int n, int first, int last, float *max) {
    for (int t = 0; t < first; t++) scores[t] = -INFINITY;
    for (int t = last + 1; t < n; t++) scores[t] = -INFINITY;
    vf top = v_set(-INFINITY);
    for (int t = 0; t < n; t += VL) top = v_max(top, v_load(scores + t));
    float m = lanes_max(top);
    vf acc[VPL];
    for (int i = 0; i < VPL; i++) acc[i] = v_set(0);
    for (int t = 0; t < n; t += NV_LANES)
        for (int i = 0; i < VPL; i++) {
            vf p = v_exp(v_load(scores + t + i * VL) - m);
            v_store(scores + t + i * VL, p);
            acc[i] += p;
        }
    *max = m;
    return lanes_sum(acc);
}

/* Folds one piece (its maximum, sum and weighted values) into a row's running state, pieces in ascending order.
 * Source: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867). */
static void merge_piece(float piece_max, float piece_sum, const float *piece, float *max, float *sum, float *out,
                        int n) {
    float m = piece_max > *max ? piece_max : *max;
    float keep = expf(*max - m), add = expf(piece_max - m); /* exp(-inf) = 0 for the first piece */
    *sum = *sum * keep + piece_sum * add;
    *max = m;
    for (int d = 0; d < n; d += VL) v_store(out + d, v_load(out + d) * keep + v_load(piece + d) * add);
}

static void attention(const nv_attention *a) {
    const int rows = a->num_rows, dim = a->head_dim, padded = a->v_stride;
    float *scores = a->scratch;                         /* [NV_ATTN_ROWS, NV_PIECE] */
    float *q = scores + NV_ATTN_ROWS * NV_PIECE;        /* [head_dim, NV_ATTN_ROWS] */
    float *piece = q + NV_ATTN_ROWS * padded;           /* [NV_ATTN_ROWS, padded] */
    float *total = piece + NV_ATTN_ROWS * padded;       /* [NV_ATTN_ROWS, padded] */
    float max[NV_ATTN_ROWS], sum[NV_ATTN_ROWS], piece_max[NV_ATTN_ROWS], piece_sum[NV_ATTN_ROWS];
    int first[NV_ATTN_ROWS], lowest = INT32_MAX, highest = 0;

    for (int r = 0; r < rows; r++) {
        const float *source = a->q + a->q_offset[r];
        for (int d = 0; d < dim; d++) q[d * NV_ATTN_ROWS + r] = source[d] * a->scale;
        int position = a->position[r];
        first[r] = a->window > 0 && position >= a->window ? position - a->window + 1 : 0;
        lowest = first[r] < lowest ? first[r] : lowest;
        highest = position > highest ? position : highest;
        max[r] = -INFINITY;
        sum[r] = 0;
    }
    memset(total, 0, sizeof(float) * NV_ATTN_ROWS * (size_t)padded);

    for (int base = lowest / NV_PIECE * NV_PIECE; base <= highest; base += NV_PIECE) {
        int begin = (lowest > base ? lowest - base : 0) / NV_BLOCK * NV_BLOCK;      /* first block that any row sees */
        int end = highest - base + 1 < NV_PIECE ? highest - base + 1 : NV_PIECE;    /* one past the last position */
        int blocks_end = (end + NV_BLOCK - 1) / NV_BLOCK * NV_BLOCK;
        for (int t = begin; t < blocks_end; t += NV_BLOCK) {
            const float *k = a->k_cache + a->block_table[(base + t) / NV_BLOCK] * a->k_block_stride;
            scores_table[rows - 1](q, k, dim, scores + t);
        }
        for (int r = 0; r < rows; r++) {
            int from = first[r] - base > begin ? first[r] - base : begin;
            int to = a->position[r] - base < blocks_end - 1 ? a->position[r] - base : blocks_end - 1;
            if (from > to) { /* sees nothing of this piece */
                memset(scores + r * NV_PIECE + begin, 0, sizeof(float) * (size_t)(blocks_end - begin));
                piece_max[r] = -INFINITY;
                continue;
            }
            piece_sum[r] = softmax_piece(scores + r * NV_PIECE + begin, blocks_end - begin, from - begin, to - begin,
                                         &piece_max[r]);
        }
        memset(piece, 0, sizeof(float) * NV_ATTN_ROWS * (size_t)padded);
        for (int t = begin; t < blocks_end; t += NV_BLOCK) {
            const float *v = a->v_cache + a->block_table[(base + t) / NV_BLOCK] * a->v_block_stride;
            /* Slots past `highest` hold whatever an earlier sequence left; they are not read, 0 * NaN being NaN. */
            int stop = end - t < NV_BLOCK ? end - t : NV_BLOCK;
            int d = 0;
            for (; d + 2 * VL <= padded; d += 2 * VL)
                values_table[rows - 1][1](scores + t, v + d, padded, 0, stop, piece + d, padded);
            for (; d + VL <= padded; d += VL)
                values_table[rows - 1][0](scores + t, v + d, padded, 0, stop, piece + d, padded);
        }
        for (int r = 0; r < rows; r++)
            if (piece_max[r] != -INFINITY)
                merge_piece(piece_max[r], piece_sum[r], piece + r * padded, &max[r], &sum[r], total + r * padded,
                            padded);
    }
    for (int r = 0; r < rows; r++) {
        float inverse = 1.0f / sum[r];
        float *out = a->out + a->out_offset[r];
        for (int d = 0; d < dim; d++) out[d] = total[r * padded + d] * inverse;
    }
}

const nv_kernels NV_LEVEL = {
    .name = NV_LEVEL_NAME,
    .rms_norm = rms_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .attention = attention,
    .log_sum_exp = log_sum_exp,
    .inverse_rms = inverse_rms,
    .to_bf16 = to_bf16,
    .to_int8 = to_int8,
    .hadamard = hadamard,
    .gemm = gemm,
};
