/* Asks memory for what attention reads next, a few lines at a time beside the work on what is there. Included by
 * attention.h.
 *
 * Blocks lie anywhere, 4 KiB or so each: too short for the hardware to see a stream. And a core has few requests under
 * way at a time, so memory is used to the full only if it is asked all the time, also while softmax reads nothing. So
 * the values of a piece are asked for while its scores and weights are computed, and what comes after the piece while
 * its values are added up. */

/* What is asked for in turn: the keys of this piece as far as they were not beforehand, its values, then the keys of
 * what comes after. */
enum { ASK_KEYS, ASK_VALUES, ASK_LATER, ASK_END };

typedef struct {
    const span_t *now, *after; /* `after` may be NULL */
    int part, t;               /* what is asked for next: the block that begins at position t of a part */
    int lines;                 /* left of the block at hand, from `line` on */
    const char *line;
    int block_lines; /* of keys and values together */
    float due;       /* lines that the work done so far has been worth */
} plan_t;

/* What each kind of work is worth, in hundredths of a block's lines. A share of its time: what asks too fast waits. */
enum { ASK_SCORES = 22, ASK_SOFTMAX = 18, ASK_WEIGHTS = 20, ASK_SUMS = 40 };

static inline int lines_of(ptrdiff_t bytes) {
    return (int)((bytes + LINE - 1) / LINE);
}

static plan_t plan_of(const span_t *now, const span_t *after, int keys) {
    const nv_attention *a = now->a;
    const ptrdiff_t bytes = nv_k_block_bytes(a->cache, a->head_dim) + nv_v_block_bytes(a->cache, a->head_dim);
    return (plan_t){.now = now, .after = after, .part = ASK_KEYS, .t = keys > now->begin ? keys : now->begin,
                    .block_lines = lines_of(bytes)};
}

/* Goes on to the next block; 0 if there is none. */
static int ask_block(plan_t *p) {
    const nv_attention *a = p->now->a;
    for (; p->part < ASK_END; p->part++) {
        const span_t *span = p->part == ASK_LATER ? p->after : p->now;
        if (span != NULL && p->t < span->blocks_end) {
            if (p->part == ASK_VALUES) {
                const int count = span->end - p->t < NV_BLOCK ? span->end - p->t : NV_BLOCK;
                p->line = values_at(span, p->t);
                p->lines = lines_of(nv_v_block_bytes(a->cache, a->head_dim) * count / NV_BLOCK);
            } else {
                p->line = keys_at(span, p->t);
                p->lines = lines_of(nv_k_block_bytes(a->cache, a->head_dim));
            }
            p->t += NV_BLOCK;
            return 1;
        }
        p->t = p->part == ASK_KEYS ? p->now->begin : p->after != NULL ? p->after->begin : 0;
    }
    return 0;
}

static void ask(plan_t *p, int lines) {
    while (lines > 0 && (p->lines > 0 || ask_block(p))) {
        int n = lines < p->lines ? lines : p->lines;
        p->lines -= n, lines -= n;
        for (; n > 0; n--, p->line += LINE) __builtin_prefetch(p->line, 0, 2);
    }
}

/* Has everything before position `end` of a part of this piece asked for. */
static inline void ask_until(plan_t *p, int part, int end) {
    end = end < p->now->blocks_end ? end : p->now->blocks_end;
    while (p->part < part || (p->part == part && p->t < end)) {
        ask(p, p->lines);
        if (!ask_block(p)) return;
    }
    if (p->part == part && p->t == end) ask(p, p->lines);
}

/* How many lines a kind of work on `positions` positions for all rows is worth. */
static inline int lines_due(plan_t *p, int worth, int positions) {
    p->due += (float)(worth * positions * p->block_lines) * (0.01f / NV_BLOCK);
    const int lines = (int)p->due;
    p->due -= (float)lines;
    return lines;
}

/* Asks for them at once. */
static inline void ask_beside(plan_t *p, int worth, int positions) { ask(p, lines_due(p, worth, positions)); }

/* Has them asked for by the work's own loop of `rounds`, up to 2 in each. What is left of a block at hand goes at once. */
static inline pace_t pace_beside(plan_t *p, int worth, int positions, int rounds) {
    int lines = lines_due(p, worth, positions);
    if (lines > p->lines) {
        lines -= p->lines;
        ask(p, p->lines);
        if (!ask_block(p)) return (pace_t){0};
    }
    const int room = p->lines < 2 * rounds ? p->lines : 2 * rounds, n = lines < room ? lines : room;
    const pace_t pace = {p->line, (int)((int64_t)n * PACE_LINE / rounds), PACE_LINE / 2};
    p->due += (float)(lines - n);
    p->lines -= n, p->line += n * LINE;
    return pace;
}

/* One past the keys of what comes after that were asked for. */
static inline int asked_later(const plan_t *p) {
    if (p->after == NULL || p->part < ASK_LATER) return 0;
    return p->part == ASK_LATER ? p->t : p->after->blocks_end;
}
