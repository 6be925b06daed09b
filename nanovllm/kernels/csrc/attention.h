/* Causal grouped-query attention over the paged cache, for one level. Included by body.h.
 *
 * A row's sum goes over pieces of NV_PIECE positions counted from position 0: scores of the piece, softmax weights, the
 * weighted values in ascending position, then the piece is folded into the row's running state. Positions that a row
 * does not see get weight 0 and change no bit, so a row comes out the same alone, beside others, as prefill or decode.
 */

#define KERNEL_ROWS 8 /* rows of one call of a kernel below: 8 x 2 vectors of scores leave room in 32 registers */
#ifdef NV_AMX
#define ATTN_ROWS 16 /* of one A tile */
#else
#define ATTN_ROWS KERNEL_ROWS
#endif

#include "span.h"

#include "ask.h"

/* scores[r][0:NV_BLOCK] of one block = sum over d of q[d][r] * k[d][:]; q is [head_dim][ATTN_ROWS]. */
#define SCORES(kind, R)                                                                                       \
    static void scores_##kind##_##R(const void *q, const void *block, int head_dim, float *scores, plan_t *plan) { \
        for (int part = 0; part < NV_BLOCK; part += 2 * VL)                                                   \
            dot_##kind##_##R(&(dot_t){.x = q, .x_row = 1, .x_step = ATTN_ROWS,                                \
                                      .w = (const float *)block + part, .w_step = NV_BLOCK, .k = head_dim,    \
                                      .out = scores + part, .out_row = NV_PIECE,                              \
                                      .pace = pace_beside(plan, ASK_SCORES, 2 * VL, ROUNDS_##kind(head_dim))}); \
    }

/* out[r][0:2*VL] += sum over t of weights[r][t] * v[t][0:2*VL] over the first `count` positions. */
#define VALUES(kind, R)                                                                                       \
    static void values_##kind##_##R(const void *weights, const void *block, int stride, int count, float *out, \
                                    pace_t pace) {                                                            \
        dot_##kind##_##R(&(dot_t){.x = weights, .x_row = WEIGHTS_ROW_##kind, .x_step = 1, .w = block,         \
                                  .w_step = stride, .k = count, .out = out, .out_row = stride, .accumulate = 1, \
                                  .pace = pace});                                                             \
    }
#define ROUNDS_f32(k) (k)
#define ROUNDS_bf16(k) ((k) / 2)
#define WEIGHTS_ROW_f32 NV_PIECE
#if defined(__AVX512BF16__)
#define WEIGHTS_ROW_bf16 (NV_PIECE / 2) /* pairs */
#else
#define WEIGHTS_ROW_bf16 NV_PIECE
#endif
#ifdef NV_AMX /* which has tiles for the others */
#define ATTN_KERNELS(R) SCORES(f32, R) VALUES(f32, R)
#else
#define ATTN_KERNELS(R) SCORES(f32, R) VALUES(f32, R) SCORES(bf16, R) VALUES(bf16, R)
#endif

#define EACH_KERNEL_ROWS(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8)
EACH_KERNEL_ROWS(ATTN_KERNELS)
#define ATTN_TABLE(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}

typedef void (*scores_fn)(const void *, const void *, int, float *, plan_t *);
typedef void (*values_fn)(const void *, const void *, int, int, float *, pace_t);
#ifdef NV_AMX
static const scores_fn scores_table[][KERNEL_ROWS] = {ATTN_TABLE(scores_f32)};
static const values_fn values_table[][KERNEL_ROWS] = {ATTN_TABLE(values_f32)};
#else
static const scores_fn scores_table[][KERNEL_ROWS] = {ATTN_TABLE(scores_f32), ATTN_TABLE(scores_bf16)};
static const values_fn values_table[][KERNEL_ROWS] = {ATTN_TABLE(values_f32), ATTN_TABLE(values_bf16)};
#endif

#define PACES_OF_LANES 4 /* in the loop below, whose rounds are long */

/* Turns scores[0:n] into exp(score - max) over the visible positions [first, last] and 0 elsewhere. The lane of a
 * position depends on the position alone. Returns the sum; *max is the largest visible score. */
static float softmax_piece(float *scores, int n, int first, int last, float *max, pace_t pace) {
    for (int t = 0; t < first; t++) scores[t] = -INFINITY;
    for (int t = last + 1; t < n; t++) scores[t] = -INFINITY;
    vf top = v_set(-INFINITY);
    for (int t = 0; t < n; t += VL) top = v_max(top, v_load(scores + t));
    float m = lanes_max(top);
    vf acc[VPL];
    for (int i = 0; i < VPL; i++) acc[i] = v_set(0);
    for (int t = 0; t < n; t += NV_LANES) {
        for (int i = 0; i < PACES_OF_LANES; i++) keep_pace(&pace);
        for (int i = 0; i < VPL; i++) {
            vf p = v_exp(v_load(scores + t + i * VL) - m);
            v_store(scores + t + i * VL, p);
            acc[i] += p;
        }
    }
    *max = m;
    return lanes_sum(acc);
}

/* Rounded as by to_bf16, but kept as float, for levels that multiply in float. */
static inline float rounded(float x) {
    uint16_t half;
    to_bf16(&x, &half, 1, 1);
    uint32_t bits = (uint32_t)half << 16;
    memcpy(&x, &bits, 4);
    return x;
}

#if !defined(__AVX512BF16__)
static inline vf rounded_vec(vf x) {
    const vi bits = (vi)x, is_nan = (bits & 0x7fffffff) > 0x7f800000;
    const vi nearest = bits + 0x7fff + ((bits >> 16) & 1), quiet = bits | 0x00400000;
    return (vf)(((quiet & is_nan) | (nearest & ~is_nan)) & (int32_t)0xffff0000);
}
#endif

/* Scaled queries as the score kernels read them: [head_dim][ATTN_ROWS] floats, or [head_dim / 2][ATTN_ROWS] pairs. */
static void load_queries_float(const nv_attention *a, float *q) {
    for (int r = 0; r < a->num_rows; r++) {
        const float *source = a->q + a->q_offset[r];
#if defined(__AVX512BF16__) && !defined(NV_AMX)
        if (a->cache == NV_CACHE_BF16) {
            /* 16 values at a time: scale, round, and spread the 8 pairs over their rows of the tile. */
            for (int d = 0; d < a->head_dim; d += 16) {
                const int left = a->head_dim - d < 16 ? a->head_dim - d : 16;
                const __mmask16 mask = (__mmask16)((1u << left) - 1);
                const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, source + d), _mm512_set1_ps(a->scale));
                uint32_t pairs[8];
                _mm256_storeu_si256((__m256i *)pairs, (__m256i)_mm512_cvtneps_pbh(x));
                for (int i = 0; i < left / 2; i++) memcpy(q + (d / 2 + i) * ATTN_ROWS + r, pairs + i, 4);
            }
            continue;
        }
#endif
        for (int d = 0; d < a->head_dim; d++) {
            float x = source[d] * a->scale;
            q[d * ATTN_ROWS + r] = a->cache == NV_CACHE_BF16 ? rounded(x) : x;
        }
    }
}

/* Softmax weights of a piece as the value kernels read them. `halves` has room for one piece of bfloat16 a row. */
static const void *load_weights(const nv_attention *a, float *scores, int begin, int end, uint16_t *halves) {
    if (a->cache != NV_CACHE_BF16) return scores;
    for (int r = 0; r < a->num_rows; r++) {
#if defined(__AVX512BF16__)
        to_bf16(scores + r * NV_PIECE + begin, halves + r * NV_PIECE + begin, end - begin, end - begin);
#else
        for (int t = begin; t < end; t += VL) {
            float *x = scores + r * NV_PIECE + t;
            v_store(x, rounded_vec(v_load(x)));
        }
#endif
    }
#if defined(__AVX512BF16__)
    return halves;
#else
    (void)halves;
    return scores;
#endif
}

/* A thread's scratch, cut up. */
typedef struct {
    float *scores;    /* [ATTN_ROWS][NV_PIECE] */
    float *q;         /* [head_dim][ATTN_ROWS] */
    float *values;    /* [ATTN_ROWS][v_stride] of one piece */
    float *states;    /* [ATTN_ROWS][nv_attention_state] */
    uint16_t *halves; /* [ATTN_ROWS][NV_PIECE] */
    char *block;      /* a block of bfloat16 */
    float *row_scale; /* int8, [ATTN_ROWS]: a query's scale, and what its keys' and values' offset adds to sums */
    int32_t *row_moved;
    int32_t *weight_moved;
} attention_scratch;

static attention_scratch cut_scratch(const nv_attention *a) {
    attention_scratch s;
    const ptrdiff_t tile = ATTN_ROWS * (ptrdiff_t)a->v_stride;
    s.scores = a->scratch;
    s.q = s.scores + ATTN_ROWS * NV_PIECE;
    s.values = s.q + tile;
    s.states = s.values + tile;
    s.halves = (uint16_t *)(s.states + ATTN_ROWS * nv_attention_state(a->head_dim));
    s.row_scale = (float *)(s.halves + ATTN_ROWS * NV_PIECE);
    s.row_moved = (int32_t *)(s.row_scale + ATTN_ROWS);
    s.weight_moved = s.row_moved + ATTN_ROWS;
    s.block = (char *)(s.weight_moved + ATTN_ROWS);
    return s;
}

/* Scores of a piece to softmax weights; largest score and sum of each row. */
static void softmax_rows(const attention_scratch *s, plan_t *plan, float *max, float *sum) {
    const span_t *now = plan->now;
    for (int r = 0; r < now->a->num_rows; r++) {
        float *scores = s->scores + r * NV_PIECE + now->begin;
        const int n = now->blocks_end - now->begin;
        int first, last;
        visible(now->a, r, now->base, now->begin, now->blocks_end, &first, &last);
        sum[r] = 0;
        max[r] = -INFINITY;
        if (first > last) {
            memset(scores, 0, sizeof(float) * (size_t)n);
            continue;
        }
        const pace_t pace = pace_beside(plan, ASK_SOFTMAX, n / now->a->num_rows, n / NV_LANES * PACES_OF_LANES);
        sum[r] = softmax_piece(scores, n, first - now->begin, last - now->begin, &max[r], pace);
    }
}

#ifdef NV_AMX
#include "attention_amx.h"
#endif
#include "attention_int8.h"

/* Rows of the kernels' call that begins at row r. */
static inline int kernel_rows(const nv_attention *a, int r) {
    return a->num_rows - r < KERNEL_ROWS ? a->num_rows - r : KERNEL_ROWS;
}

static void attend_piece_float(const attention_scratch *s, plan_t *plan, float *values, float *max, float *sum) {
    const span_t *now = plan->now;
    const nv_attention *a = now->a;
    const int padded = a->v_stride, begin = now->begin, blocks_end = now->blocks_end;
    for (int t = begin; t < blocks_end; t += NV_BLOCK) {
        ask_until(plan, ASK_KEYS, t + 2 * NV_BLOCK);
        for (int r = 0; r < a->num_rows; r += KERNEL_ROWS)
            scores_table[a->cache][kernel_rows(a, r) - 1](s->q + r, keys_at(now, t), a->head_dim,
                                                          s->scores + r * NV_PIECE + t, plan);
    }
    softmax_rows(s, plan, max, sum);
    const void *weights = load_weights(a, s->scores, begin, blocks_end, s->halves);
    const ptrdiff_t weight_bytes = weights == s->scores ? 4 : 2;
    memset(values, 0, sizeof(float) * (size_t)(a->num_rows * padded));
    for (int t = begin; t < blocks_end; t += NV_BLOCK) {
        const char *v = values_at(now, t);
        /* Slots past `highest` hold whatever an earlier sequence left; they are not read, 0 * NaN being NaN. */
        const int count = now->end - t < NV_BLOCK ? now->end - t : NV_BLOCK;
        const int rounds = a->cache == NV_CACHE_BF16 ? (count + 1) / 2 : count;
        ask_until(plan, ASK_VALUES, t + 2 * NV_BLOCK);
        for (int r = 0; r < a->num_rows; r += KERNEL_ROWS)
            for (int d = 0; d < padded; d += 2 * VL) {
                const pace_t pace = pace_beside(plan, ASK_SUMS, NV_BLOCK * 2 * VL / padded, rounds);
                values_table[a->cache][kernel_rows(a, r) - 1](
                    (const char *)weights + (r * NV_PIECE + t) * weight_bytes, v + d * 4, padded, count,
                    values + r * padded + d, pace);
            }
    }
}

static void load_queries(const nv_attention *a, const attention_scratch *s) {
    if (a->cache == NV_CACHE_INT8)
        load_queries_int8(a, s);
#ifdef NV_AMX
    else if (a->cache == NV_CACHE_BF16)
        load_queries_amx(a, s);
#endif
    else
        load_queries_float(a, s->q);
}

/* One piece for all rows: largest score, sum of weights and weighted values of each row; max is -inf for a row that sees
 * nothing of the piece. The queries are loaded already. */
static void attend_piece(const attention_scratch *s, plan_t *plan, float *values, float *max, float *sum) {
    if (plan->now->a->cache == NV_CACHE_INT8)
        attend_piece_int8(s, plan, values, max, sum);
#ifdef NV_AMX
    else if (plan->now->a->cache == NV_CACHE_BF16)
        attend_piece_amx(s, plan, values, max, sum);
#endif
    else
        attend_piece_float(s, plan, values, max, sum);
}

static inline void clear_state(const nv_attention *a, float *state) {
    state[0] = -INFINITY;
    state[1] = 0;
    memset(state + NV_STATE_VALUES, 0, sizeof(float) * (size_t)a->v_stride);
}

/* Folds one piece (each row's maximum, sum and weighted values) into the rows' states, pieces in ascending order.
 * Source: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867). */
static void fold_rows(const nv_attention *a, const float *piece_max, const float *piece_sum, const float *values,
                      float *const *states) {
    for (int r = 0; r < a->num_rows; r++, values += a->v_stride) {
        float *state = states[r], *total = state + NV_STATE_VALUES;
        if (piece_max[r] == -INFINITY) continue; /* the row sees nothing of this piece */
        const float max = piece_max[r] > state[0] ? piece_max[r] : state[0];
        const float keep = expf(state[0] - max), add = expf(piece_max[r] - max); /* exp(-inf) = 0 for the first piece */
        state[0] = max;
        state[1] = state[1] * keep + piece_sum[r] * add;
        for (int d = 0; d < a->v_stride; d += VL) v_store(total + d, v_load(total + d) * keep + v_load(values + d) * add);
    }
}

static void write_out(const nv_attention *a, float *const *states) {
    for (int r = 0; r < a->num_rows; r++) {
        const float inverse = 1.0f / states[r][1], *total = states[r] + NV_STATE_VALUES;
        float *out = a->out + a->out_offset[r];
        for (int d = 0; d < a->head_dim; d++) out[d] = total[d] * inverse;
    }
}

/* The piece that holds the first position any row sees, and one past the last. */
static void piece_range(const nv_attention *a, int *begin, int *end) {
    *begin = INT32_MAX;
    *end = 0;
    for (int r = 0; r < a->num_rows; r++) {
        const int first = first_position(a, r) / NV_PIECE, last = a->position[r] / NV_PIECE + 1;
        *begin = first < *begin ? first : *begin;
        *end = last > *end ? last : *end;
    }
}

/* Empty states in the thread's scratch. */
static void own_states(const nv_attention *a, const attention_scratch *s, float **states) {
    for (int r = 0; r < a->num_rows; r++) {
        states[r] = s->states + r * nv_attention_state(a->head_dim);
        clear_state(a, states[r]);
    }
}

static void fold_piece(const attention_scratch *s, plan_t *plan, float *const *states) {
    float max[ATTN_ROWS], sum[ATTN_ROWS];
    attend_piece(s, plan, s->values, max, sum);
    fold_rows(plan->now->a, max, sum, s->values, states);
}

/* The first piece that `attention` reads for a task, and one past the last. */
static void pieces_of(const nv_attention *a, int *begin, int *end) {
    piece_range(a, begin, end);
    if (a->done > 0) *begin = a->done;
}

static void attention(const nv_attention *a) {
    const attention_scratch s = cut_scratch(a);
    float *own[ATTN_ROWS];
    float *const *states = a->state;
    int begin, end, next_begin, next_end, keys = a->asked;
    pieces_of(a, &begin, &end);
    if (a->done == 0) {
        own_states(a, &s, own);
        states = own;
    }
    load_queries(a, &s);
    span_t now = span_of(a, begin), after;
    for (int piece = begin; piece < end; piece++, now = after) {
        const int is_last = piece + 1 == end;
        if (!is_last) {
            after = span_of(a, piece + 1);
        } else if (a->next != NULL) {
            pieces_of(a->next, &next_begin, &next_end);
            after = span_of(a->next, next_begin);
        }
        plan_t plan = plan_of(&now, is_last && a->next == NULL ? NULL : &after, keys);
        fold_piece(&s, &plan, states);
        keys = asked_later(&plan);
        if (is_last && a->next != NULL) a->next->asked = keys;
    }
    write_out(a, states);
}

static void attention_fold(const nv_attention *a, int piece) {
    const attention_scratch s = cut_scratch(a);
    const span_t now = span_of(a, piece);
    plan_t plan = plan_of(&now, NULL, 0);
    if (piece == 0)
        for (int r = 0; r < a->num_rows; r++) clear_state(a, a->state[r]);
    load_queries(a, &s);
    fold_piece(&s, &plan, a->state);
}

/* The same in two parts, for few rows over many keys: any thread may compute any piece, one then merges them in order. */
static void attention_part(const nv_attention *a, int piece, float *part) {
    const attention_scratch s = cut_scratch(a);
    int begin, end;
    piece_range(a, &begin, &end);
    if (piece < begin || piece >= end) return;
    const span_t now = span_of(a, piece);
    plan_t plan = plan_of(&now, NULL, 0);
    load_queries(a, &s);
    attend_piece(&s, &plan, part + 2 * ATTN_ROWS, part, part + ATTN_ROWS);
}

static void attention_merge(const nv_attention *a, const float *parts) {
    const attention_scratch s = cut_scratch(a);
    const size_t size = nv_attention_part(ATTN_ROWS, a->head_dim);
    float *states[ATTN_ROWS];
    int begin, end;
    own_states(a, &s, states);
    piece_range(a, &begin, &end);
    for (int piece = begin; piece < end; piece++) {
        const float *part = parts + (size_t)piece * size;
        fold_rows(a, part, part + ATTN_ROWS, part + 2 * ATTN_ROWS, states);
    }
    write_out(a, states);
}
