/* Which positions a task of attention sees, and where their blocks lie. Included by attention.h. */

static inline int first_position(const nv_attention *a, int r) {
    return a->window > 0 && a->position[r] >= a->window ? a->position[r] - a->window + 1 : 0;
}

/* The block of the cache that holds `position`. */
static inline const char *block_at(const nv_attention *a, const void *cache, ptrdiff_t stride, int position) {
    return (const char *)cache + a->block_table[position / NV_BLOCK] * stride;
}

/* The positions of a piece that a row sees, of those in [begin, end); none if first > last. */
static inline void visible(const nv_attention *a, int r, int base, int begin, int end, int *first, int *last) {
    *first = first_position(a, r) - base;
    *last = a->position[r] - base;
    *first = *first > begin ? *first : begin;
    *last = *last < end - 1 ? *last : end - 1;
}

/* The part of one piece of positions that any row of a task sees. */
typedef struct {
    const nv_attention *a;
    int base;       /* first position of the piece */
    int begin;      /* from there on, the first block that is seen */
    int end;        /* one past the last position that is seen */
    int blocks_end; /* one past the last block */
} span_t;

static span_t span_of(const nv_attention *a, int piece) {
    const int base = piece * NV_PIECE;
    int lowest = INT32_MAX, highest = 0;
    for (int r = 0; r < a->num_rows; r++) {
        int first = first_position(a, r);
        lowest = first < lowest ? first : lowest;
        highest = a->position[r] > highest ? a->position[r] : highest;
    }
    const int end = highest - base + 1 < NV_PIECE ? highest - base + 1 : NV_PIECE;
    return (span_t){a, base, (lowest > base ? lowest - base : 0) / NV_BLOCK * NV_BLOCK, end,
                    (end + NV_BLOCK - 1) / NV_BLOCK * NV_BLOCK};
}

static inline const char *keys_at(const span_t *s, int t) {
    return block_at(s->a, s->a->k_cache, s->a->k_block_stride, s->base + t);
}

static inline const char *values_at(const span_t *s, int t) {
    return block_at(s->a, s->a->v_cache, s->a->v_block_stride, s->base + t);
}
