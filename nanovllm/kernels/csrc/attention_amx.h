/* Scores and weighted values on AMX tiles, for the caches of bfloat16 and int8. Included by attention.h in the AMX levels.
 *
 * The cache's blocks are B tiles as they lie: 16 rows of k, each 32 positions of 4 bytes, and one row of v for each 4
 * bytes of positions. Queries and softmax weights, up to 16 rows of them, are A tiles. All row counts take this path, so
 * that the order of additions is the unit's own for every row; what other rows share the tile changes no bit.
 */
#include "amx.h"

/* Tiles 0-3: sums of 16 columns each, 4: A, 5-7: B. `depth` is what one product sums over, in 4-byte words. */
static void configure_attention(int rows, int depth) {
    tile_config_t config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = (uint16_t)(t == 4 ? 4 * depth : 64);
        config.rows[t] = (uint8_t)(t <= 4 ? rows : depth);
    }
    tile_configure(&config);
}

/* The rest of a head that fills no tile, followed by zeros: what lies behind it is not ours to read. */
static const char *whole_tile(const attention_scratch *s, const char *keys, int words) {
    if (words >= 16) return keys;
    memcpy(s->block, keys, (size_t)words * 4 * NV_BLOCK);
    memset(s->block + words * 4 * NV_BLOCK, 0, (size_t)(16 - words) * 4 * NV_BLOCK);
    tile_wait();
    return s->block;
}

/* Bytes of one row of queries: whole A tiles. */
static inline ptrdiff_t query_bytes(int words) { return (words + 15) / 16 * 64; }

/* scores[r][0:NV_BLOCK], as the unit's sums, of a block of keys and of the one after it if it is not NULL. */
#define AMX_SCORES(name, dot)                                                                             \
    static void name(const attention_scratch *s, int words, const char *keys, const char *after, float *scores) { \
        const ptrdiff_t q_bytes = query_bytes(words);                                                     \
        tile_clear(0);                                                                                    \
        tile_clear(1);                                                                                    \
        if (after != NULL) {                                                                              \
            tile_clear(2);                                                                                \
            tile_clear(3);                                                                                \
        }                                                                                                 \
        for (int i = 0; i < words; i += 16) {                                                             \
            const char *b = whole_tile(s, keys + i * 4 * NV_BLOCK, words - i);                            \
            tile_read(4, (const char *)s->q + 4 * i, q_bytes);                                            \
            tile_read(5, b, 4 * NV_BLOCK);                                                                \
            tile_read(6, b + 64, 4 * NV_BLOCK);                                                           \
            dot(0, 4, 5);                                                                                 \
            dot(1, 4, 6);                                                                                 \
            if (after != NULL) {                                                                          \
                b = whole_tile(s, after + i * 4 * NV_BLOCK, words - i);                                   \
                tile_read(7, b, 4 * NV_BLOCK);                                                            \
                tile_read(5, b + 64, 4 * NV_BLOCK);                                                       \
                dot(2, 4, 7);                                                                             \
                dot(3, 4, 5);                                                                             \
            }                                                                                             \
        }                                                                                                 \
        tile_write(0, scores, NV_PIECE * 4);                                                              \
        tile_write(1, scores + 16, NV_PIECE * 4);                                                         \
        if (after != NULL) {                                                                              \
            tile_write(2, scores + NV_BLOCK, NV_PIECE * 4);                                               \
            tile_write(3, scores + NV_BLOCK + 16, NV_PIECE * 4);                                          \
        }                                                                                                 \
    }
AMX_SCORES(tile_scores_bf16, tile_dot_bf16)
AMX_SCORES(tile_scores_int8, tile_dot_mixed)

/* Sums of all scores of a piece; the tiles are configured. `words` is a head's length in 4-byte words. */
static void score_on_tiles(const attention_scratch *s, plan_t *plan, int words) {
    const span_t *now = plan->now;
    for (int t = now->begin; t < now->blocks_end; t += 2 * NV_BLOCK) {
        const int left = now->blocks_end - t;
        const char *after = left > NV_BLOCK ? keys_at(now, t + NV_BLOCK) : NULL;
        ask_until(plan, ASK_KEYS, t + 3 * NV_BLOCK);
        ask_beside(plan, ASK_SCORES, left < 2 * NV_BLOCK ? left : 2 * NV_BLOCK);
        (now->a->cache == NV_CACHE_BF16 ? tile_scores_bf16 : tile_scores_int8)(s, words, keys_at(now, t), after, s->scores + t);
    }
}

/* Asks for the values that come after the block at t, the first time that the blocks are gone over. */
static inline void ask_beside_sums(plan_t *plan, int t, int d) {
    if (d != 0) return;
    ask_until(plan, ASK_VALUES, t + 2 * NV_BLOCK);
    ask_beside(plan, ASK_SUMS, NV_BLOCK);
}

/* The block that the last position cuts, with zeros in the slots past it: these hold whatever an earlier sequence left,
 * and 0 * NaN is NaN. */
static const char *cut_block(const attention_scratch *s, const span_t *now) {
    const int count = now->end % NV_BLOCK;
    if (count == 0) return NULL;
    const char *v = values_at(now, now->end);
    const size_t row = (size_t)now->a->v_stride * 4, whole = (size_t)(count / 2) * row;
    memcpy(s->block, v, whole);
    memset(s->block + whole, 0, NV_BLOCK / 2 * row - whole);
    if (count % 2)
        for (size_t d = whole; d < whole + row; d += 4) memcpy(s->block + d, v + d, 2);
    return s->block;
}

/* values[r][:] = sum over the piece's positions of weights[r][t] * v[t][:], 64 columns at a time. */
static void sum_bf16_on_tiles(const attention_scratch *s, plan_t *plan, float *values) {
    const span_t *now = plan->now;
    const ptrdiff_t padded = now->a->v_stride, stride = 4 * padded;
    const char *cut = cut_block(s, now);
    tile_wait();
    for (int d = 0; d < padded; d += 64) {
        const int wide = padded - d > 32;
        tile_clear(0);
        tile_clear(1);
        tile_clear(2);
        tile_clear(3);
        for (int t = now->begin; t < now->blocks_end; t += NV_BLOCK) {
            const char *v = (t + NV_BLOCK <= now->end ? values_at(now, t) : cut) + 4 * d;
            ask_beside_sums(plan, t, d);
            tile_read(4, s->halves + t, NV_PIECE * 2);
            tile_read(5, v, stride);
            tile_read(6, v + 64, stride);
            tile_dot_bf16(0, 4, 5);
            tile_dot_bf16(1, 4, 6);
            if (wide) {
                tile_read(7, v + 128, stride);
                tile_read(5, v + 192, stride);
                tile_dot_bf16(2, 4, 7);
                tile_dot_bf16(3, 4, 5);
            }
        }
        tile_write(0, values + d, stride);
        tile_write(1, values + d + 16, stride);
        if (wide) {
            tile_write(2, values + d + 32, stride);
            tile_write(3, values + d + 48, stride);
        }
    }
}

/* The same in int32: the weights' upper 7 bits and their lower 7 bits apart, 32 columns at a time. Slots past the last
 * position have weight 0, and 0 times any byte is 0. The tiles are configured for 8 words. */
static void sum_int8_on_tiles(const attention_scratch *s, plan_t *plan, float *values) {
    const span_t *now = plan->now;
    const ptrdiff_t padded = now->a->v_stride, stride = 4 * padded;
    const char *upper = (const char *)s->halves, *lower = upper + ATTN_ROWS * NV_PIECE;
    float low[ATTN_ROWS * NV_BLOCK]; /* bits of int32 */
    for (int d = 0; d < padded; d += 32) {
        tile_clear(0);
        tile_clear(1);
        tile_clear(2);
        tile_clear(3);
        for (int t = now->begin; t < now->blocks_end; t += NV_BLOCK) {
            const char *v = values_at(now, t) + 4 * d;
            ask_beside_sums(plan, t, d);
            tile_read(5, v, stride);
            tile_read(6, v + 64, stride);
            tile_read(4, upper + t, NV_PIECE);
            tile_dot_mixed(0, 4, 5);
            tile_dot_mixed(1, 4, 6);
            tile_read(4, lower + t, NV_PIECE);
            tile_dot_mixed(2, 4, 5);
            tile_dot_mixed(3, 4, 6);
        }
        tile_write(0, values + d, stride);
        tile_write(1, values + d + 16, stride);
        tile_write(2, low, 128);
        tile_write(3, low + 16, 128);
        for (int r = 0; r < now->a->num_rows; r++)
            for (int i = 0; i < 32; i += VL) {
                float *to = values + r * padded + d + i;
                v_store(to, (vf)(((vi)v_load(to) << 7) + (vi)v_load(low + 32 * r + i)));
            }
    }
}

/* Scaled queries [rows][query_bytes] in bfloat16; a head's rest is zeros. */
static void load_queries_amx(const nv_attention *a, const attention_scratch *s) {
    const ptrdiff_t padded = query_bytes((a->head_dim + 1) / 2) / 2;
    for (int r = 0; r < a->num_rows; r++) {
        const float *source = a->q + a->q_offset[r];
        for (int d = 0; d < a->head_dim; d++) s->values[d] = source[d] * a->scale;
        to_bf16(s->values, (uint16_t *)s->q + r * padded, a->head_dim, padded);
    }
}

/* `attend_piece` over a bfloat16 cache. */
static void attend_piece_amx(const attention_scratch *s, plan_t *plan, float *values, float *max, float *sum) {
    const span_t *now = plan->now;
    const int begin = now->begin, n = now->blocks_end - now->begin;
    configure_attention(now->a->num_rows, 16);
    score_on_tiles(s, plan, (now->a->head_dim + 1) / 2);
    softmax_rows(s, plan, max, sum);
    for (int r = 0; r < now->a->num_rows; r++)
        to_bf16(s->scores + r * NV_PIECE + begin, s->halves + r * NV_PIECE + begin, n, n);
    sum_bf16_on_tiles(s, plan, values);
    tile_done();
}
