/* The parts of attention that an int8 cache has of its own, for one level. Included by attention.h.
 *
 * Keys, values, queries and softmax weights are whole numbers with a float beside them, and their products are summed
 * in int32 without rounding: the sums are the same in any order and at every level. Positions that a row does not see
 * get weight 0, whatever their slots hold.
 *
 * What is read from the cache is stored moved up by NV_INT8_OFFSET, since vpdpbusd multiplies unsigned by signed; the
 * sum of the other operand takes that back exactly.
 */

/* Weights of a piece as whole numbers of 14 bits: 8 are too coarse where one position takes nearly all the weight. The
 * sum of 512 products of 14 and 8 bits just fits int32. Two halves of 7 bits are signed bytes to vpdpbusd. */
#define WEIGHT_MAX 16383

#if defined(__AVX512VNNI__) || defined(NV_AMX)
#define X_WORDS 1 /* of four numbers: signed bytes */
#define X_PARTS 2 /* of a weight: the upper and the lower 7 bits */
#else
#define X_WORDS 2 /* int16: the first and the third, the second and the fourth */
#define X_PARTS 1
#endif
#define X_PIECE (NV_PIECE / 4 * X_WORDS) /* words of one row's weights of a piece, one part of them */

/* Scales of the keys of a block [NV_BLOCK], then those of its values: the weights want them before the values come. */
static inline float *block_scales(const char *k_block, int head_dim) {
    return (float *)(k_block + (ptrdiff_t)(head_dim + 3) / 4 * 4 * NV_BLOCK);
}

#ifndef NV_AMX /* whose tiles multiply both */
/* acc + four products a lane, of w's unsigned bytes with four numbers that X_WORDS words hold. */
static inline vi dot_bytes(vi acc, vi w, const int32_t *x) {
#if X_WORDS == 1
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x[0]));
#else
    const vi even = (vi){0} + x[0], odd = (vi){0} + x[1];
    return acc + madd(even, w & 0x00ff00ff) + madd(odd, (w >> 8) & 0x00ff00ff);
#endif
}

#define INT8_CLEAR(r) vi p##r = {0}, q##r = {0};
#define INT8_UP(r) p##r <<= 7, q##r <<= 7;
#define INT8_DOT(r)                             \
    p##r = dot_bytes(p##r, w0, x + r * x_row);  \
    q##r = dot_bytes(q##r, w1, x + r * x_row);
#define INT8_SCORE(r)                                                                                            \
    v_store(scores + r * NV_PIECE + part, __builtin_convertvector(p##r - moved[r], vf) * (scale0 * scale[r]));   \
    v_store(scores + r * NV_PIECE + part + VL, __builtin_convertvector(q##r - moved[r], vf) * (scale1 * scale[r]));
#define INT8_ADD(r)                                                            \
    v_store(out + r * stride, (vf)((vi)v_load(out + r * stride) + p##r));      \
    v_store(out + r * stride + VL, (vf)((vi)v_load(out + r * stride + VL) + q##r));

/* Two vectors of a block. */
#define INT8_LOAD const vi w0 = (vi)v_load((const float *)w), w1 = (vi)v_load((const float *)w + VL);

/* scores[r][0:NV_BLOCK] of one block; q is [steps][ATTN_ROWS][X_WORDS]. */
#define SCORES_INT8(R)                                                                                           \
    static void scores_int8_##R(const int32_t *q, const int32_t *moved, const float *scale, const char *block,   \
                                int steps, float *scores, plan_t *plan) {                                        \
        const ptrdiff_t x_row = X_WORDS;                                                                         \
        const float *k_scale = (const float *)(block + (ptrdiff_t)steps * 4 * NV_BLOCK);                         \
        for (int part = 0; part < NV_BLOCK; part += 2 * VL) {                                                    \
            const char *w = block + 4 * part;                                                                    \
            const int32_t *x = q;                                                                                \
            const vf scale0 = v_load(k_scale + part), scale1 = v_load(k_scale + part + VL);                      \
            pace_t pace = pace_beside(plan, ASK_SCORES, 2 * VL, steps);                                          \
            ROWS_##R(INT8_CLEAR)                                                                                 \
            for (int i = 0; i < steps; i++, x += ATTN_ROWS * X_WORDS, w += 4 * NV_BLOCK) {                       \
                keep_pace(&pace);                                                                                \
                INT8_LOAD                                                                                        \
                ROWS_##R(INT8_DOT)                                                                               \
            }                                                                                                    \
            ROWS_##R(INT8_SCORE)                                                                                 \
        }                                                                                                        \
    }

/* out[r][0:2*VL] += sum over t of weights[r][t] * v[t][0:2*VL], over 4 * steps positions. */
#define VALUES_INT8(R)                                                                                           \
    static void values_int8_##R(const int32_t *weights, const char *block, int stride, int steps, float *out,    \
                                pace_t pace) {                                                                   \
        const ptrdiff_t x_row = X_PIECE;                                                                         \
        ROWS_##R(INT8_CLEAR)                                                                                     \
        for (int part = 0; part < X_PARTS; part++) {                                                             \
            const char *w = block;                                                                               \
            const int32_t *x = weights + part * ATTN_ROWS * X_PIECE;                                             \
            ROWS_##R(INT8_UP)                                                                                    \
            for (int i = 0; i < steps; i++, x += X_WORDS, w += 4 * stride) {                                     \
                keep_pace(&pace);                                                                                \
                INT8_LOAD                                                                                        \
                ROWS_##R(INT8_DOT)                                                                               \
            }                                                                                                    \
        }                                                                                                        \
        ROWS_##R(INT8_ADD)                                                                                       \
    }
EACH_KERNEL_ROWS(SCORES_INT8)
EACH_KERNEL_ROWS(VALUES_INT8)

typedef void (*scores_int8_fn)(const int32_t *, const int32_t *, const float *, const char *, int, float *, plan_t *);
typedef void (*values_int8_fn)(const int32_t *, const char *, int, int, float *, pace_t);
static const scores_int8_fn scores_int8_table[KERNEL_ROWS] = ATTN_TABLE(scores_int8);
static const values_int8_fn values_int8_table[KERNEL_ROWS] = ATTN_TABLE(values_int8);
#endif

/* One position's keys and values of one KV head into its slot. `temp` has room for head_dim bytes. */
static void store_int8(const float *k, const float *v, int head_dim, char *k_block, char *v_block, int offset,
                       uint8_t *temp) {
    float *scales = block_scales(k_block, head_dim);
    const ptrdiff_t stride = nv_v_stride(head_dim);
    scales[offset] = quantize(k, temp, head_dim, NV_INT8_OFFSET) * (1.0f / 127.0f);
    for (ptrdiff_t d = 0; d < head_dim; d++) k_block[(d / 4 * NV_BLOCK + offset) * 4 + d % 4] = (char)temp[d];
    scales[NV_BLOCK + offset] = quantize(v, temp, head_dim, NV_INT8_OFFSET) * (1.0f / 127.0f);
    /* Bytes one by one: another thread may be writing the neighbouring position. */
    for (ptrdiff_t d = 0; d < head_dim; d++) v_block[(offset / 4 * stride + d) * 4 + offset % 4] = (char)temp[d];
}

/* Row r of the queries as the score kernels read them, [steps][ATTN_ROWS][X_WORDS], or as rows of whole A tiles; bytes
 * past the `words` times 4 that hold the row are 0 there. */
static inline void put_query(const int8_t *bytes, int words, int r, int32_t *q) {
#ifdef NV_AMX
    const ptrdiff_t row = query_bytes(words) / 4;
    memcpy(q + r * row, bytes, (size_t)words * 4);
    memset(q + r * row + words, 0, (size_t)(row - words) * 4);
#else
    for (int i = 0; i < words; i++, bytes += 4) {
        int32_t *to = q + (i * ATTN_ROWS + r) * X_WORDS;
#if X_WORDS == 1
        memcpy(to, bytes, 4);
#else
        const int16_t pairs[4] = {bytes[0], bytes[2], bytes[1], bytes[3]};
        memcpy(to, pairs, 8);
#endif
    }
#endif
}

/* Queries as the score kernels read them; numbers past head_dim are 0. */
static void load_queries_int8(const nv_attention *a, const attention_scratch *s) {
    int8_t *bytes = (int8_t *)s->halves; /* not in use yet */
    for (int r = 0; r < a->num_rows; r++) {
        const float max = quantize(a->q + a->q_offset[r], (uint8_t *)bytes, a->head_dim, 0);
        int32_t sum = 0;
        s->row_scale[r] = max * (1.0f / 127.0f) * a->scale;
        for (int d = a->head_dim; d % 4 != 0; d++) bytes[d] = 0;
        for (int d = 0; d < a->head_dim; d++) sum += bytes[d];
        s->row_moved[r] = sum * NV_INT8_OFFSET;
        put_query(bytes, (a->head_dim + 3) / 4, r, (int32_t *)s->q);
    }
}

/* VL whole weights of row r from position t of the piece on, to where the value kernels read them. */
static inline void put_weights(vi weights, int r, int t, int32_t *words) {
#if X_PARTS == 2
    int8_t *upper = (int8_t *)(words + r * X_PIECE) + t, *lower = upper + ATTN_ROWS * NV_PIECE;
#if VL == 16
    _mm_storeu_si128((__m128i *)upper, _mm512_cvtepi32_epi8((__m512i)(weights >> 7)));
    _mm_storeu_si128((__m128i *)lower, _mm512_cvtepi32_epi8((__m512i)(weights & 127)));
#else
    for (int i = 0; i < VL; i++) upper[i] = (int8_t)(weights[i] >> 7), lower[i] = (int8_t)(weights[i] & 127);
#endif
#else
    int16_t *to = (int16_t *)(words + r * X_PIECE) + t;
    for (int i = 0; i < VL; i += 4) {
        to[i] = (int16_t)weights[i];
        to[i + 1] = (int16_t)weights[i + 2];
        to[i + 2] = (int16_t)weights[i + 1];
        to[i + 3] = (int16_t)weights[i + 3];
    }
#endif
}

/* Row r's softmax weights of the blocks [begin, end) of a piece times the values' scales, as whole numbers. Returns
 * what turns a sum of them into one of weights; NaN or infinity if a scale that the row sees is no number. */
static float load_weights_int8(const nv_attention *a, const attention_scratch *s, int r, int base, int begin, int end,
                               pace_t pace) {
    float *weights = s->scores + r * NV_PIECE;
    int32_t *words = (int32_t *)s->halves;
    int first, last;
    visible(a, r, base, begin, end, &first, &last);
    if (first > last) first = last = end;
    vi lane, top = {0}; /* of the weights' bits, which are in the weights' order; NaN is above them all */
    for (int i = 0; i < VL; i++) lane[i] = i;
    for (int t = begin; t < end; t += NV_BLOCK) {
        const float *scale = block_scales(block_at(a, a->k_cache, a->k_block_stride, base + t), a->head_dim) + NV_BLOCK;
        const int all_seen = t >= first && t + NV_BLOCK - 1 <= last;
        for (int i = 0; i < NV_BLOCK; i += VL) {
            vi w = (vi)(v_load(weights + t + i) * v_load(scale + i));
            /* The scales of unseen slots are what an earlier sequence left: 0 * NaN is NaN. */
            if (!all_seen) w &= (lane + (t + i) >= first) & (lane + (t + i) <= last);
            v_store(weights + t + i, (vf)w);
            top = v_max_bits(top, w & 0x7fffffff);
        }
    }
    const float max = lanes_max_bits(top);
    /* From weights that small on the quotient might be infinite; they add nothing that could be seen. */
    const float inverse = max > 1e-30f && max <= FLT_MAX ? WEIGHT_MAX / max : 0;
    vi total = {0};
    for (int t = begin; t < end; t += VL) {
        keep_pace(&pace);
        const vi whole = (vi)(v_hold(v_load(weights + t) * inverse) + 12582912.0f) & WEIGHT_MAX; /* as in quantize */
        total += whole;
        put_weights(whole, r, t, words);
    }
    s->weight_moved[r] = lanes_total(total) * NV_INT8_OFFSET;
    return max * (1.0f / WEIGHT_MAX);
}

/* Scores of a piece. */
static void score_int8(const attention_scratch *s, plan_t *plan) {
    const span_t *now = plan->now;
    const nv_attention *a = now->a;
    const int words = (a->head_dim + 3) / 4;
#ifdef NV_AMX
    configure_attention(a->num_rows, 16);
    score_on_tiles(s, plan, words);
    for (int t = now->begin; t < now->blocks_end; t += NV_BLOCK) {
        const float *k_scale = block_scales(keys_at(now, t), a->head_dim);
        for (int r = 0; r < a->num_rows; r++)
            for (int i = 0; i < NV_BLOCK; i += VL) {
                float *x = s->scores + r * NV_PIECE + t + i;
                const vi total = (vi)v_load(x) - s->row_moved[r];
                v_store(x, __builtin_convertvector(total, vf) * (v_load(k_scale + i) * s->row_scale[r]));
            }
    }
#else
    for (int t = now->begin; t < now->blocks_end; t += NV_BLOCK) {
        ask_until(plan, ASK_KEYS, t + 2 * NV_BLOCK);
        scores_int8_table[a->num_rows - 1]((const int32_t *)s->q, s->row_moved, s->row_scale, keys_at(now, t), words,
                                           s->scores + t, plan);
    }
#endif
}

/* Sums of the values times whole weights, as bits of int32. */
static void sum_int8(const attention_scratch *s, plan_t *plan, float *values) {
    const span_t *now = plan->now;
#ifdef NV_AMX
    configure_attention(now->a->num_rows, NV_BLOCK / 4);
    sum_int8_on_tiles(s, plan, values);
    tile_done();
#else
    const int rows = now->a->num_rows, padded = now->a->v_stride;
    memset(values, 0, sizeof(float) * (size_t)(rows * padded));
    for (int t = now->begin; t < now->blocks_end; t += NV_BLOCK) {
        const int count = now->end - t < NV_BLOCK ? now->end - t : NV_BLOCK;
        const int32_t *weights = (const int32_t *)s->halves + t / 4 * X_WORDS;
        ask_until(plan, ASK_VALUES, t + 2 * NV_BLOCK);
        for (int d = 0; d < padded; d += 2 * VL) {
            const pace_t pace = pace_beside(plan, ASK_SUMS, NV_BLOCK * 2 * VL / padded, X_PARTS * ((count + 3) / 4));
            values_int8_table[rows - 1](weights, values_at(now, t) + d * 4, padded, (count + 3) / 4, values + d, pace);
        }
    }
#endif
}

/* `attend_piece` over an int8 cache. */
static void attend_piece_int8(const attention_scratch *s, plan_t *plan, float *values, float *max, float *sum) {
    const span_t *now = plan->now;
    const nv_attention *a = now->a;
    const int rows = a->num_rows, padded = a->v_stride, begin = now->begin, blocks_end = now->blocks_end;
    float factor[ATTN_ROWS];
    score_int8(s, plan);
    softmax_rows(s, plan, max, sum);
    for (int r = 0; r < rows; r++) {
        const pace_t pace = pace_beside(plan, ASK_WEIGHTS, (blocks_end - begin) / rows, (blocks_end - begin) / VL);
        factor[r] = load_weights_int8(a, s, r, now->base, begin, blocks_end, pace);
    }
    sum_int8(s, plan, values);
    for (int r = 0; r < rows; r++)
        for (float *x = values + r * padded; x < values + (r + 1) * padded; x += VL)
            v_store(x, __builtin_convertvector((vi)v_load(x) - s->weight_moved[r], vf) * factor[r]);
}
