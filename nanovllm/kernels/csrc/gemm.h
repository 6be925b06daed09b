/* GEMM over packed panels, for one level. Included by body.h.
 *
 * Every output element is one chain of additions in ascending k, whatever the row count, strip or thread, so results do
 * not depend on what shares the call. Rows are taken in strips of at most STRIP, and panels in blocks that stay in the
 * L2 cache while all strips pass over them.
 */
#include "kth.h"
#include "linear.h"

#define COLS (2 * VL) /* columns whose accumulators one pass keeps in registers */
#if VL == 16 || defined(__aarch64__)
#define STRIP 12
#else
#define STRIP 6 /* 16 registers: 12 accumulators, 2 weights, 1 activation */
#endif

/* Rows of one strip in the form that the micro kernels read, and the tile they produce. */
typedef struct {
    const void *a;
    ptrdiff_t lda; /* elements of a from one row to the next */
} strip_t;

#define EACH_STRIP_SIZE(F) F(1) F(2) F(3) F(4) F(5) F(6)
#define EACH_LARGE_STRIP_SIZE(F) F(7) F(8) F(9) F(10) F(11) F(12)

/* One strip times one panel, for a kind of dot.h. */
#define MICRO(kind, R)                                                                                    \
    static void micro_##kind##_##R(strip_t s, const void *panel, ptrdiff_t k, void *tile) {               \
        for (int c = 0; c < NV_PANEL; c += COLS)                                                          \
            dot_##kind##_##R(&(dot_t){.x = s.a, .x_row = s.lda, .x_step = 1, .w = (const float *)panel + c, \
                                      .w_step = NV_PANEL, .k = k, .out = (float *)tile + c, .out_row = NV_PANEL}); \
    }
#define MICRO_F32(R) MICRO(f32, R)
#define MICRO_BF16(R) MICRO(bf16, R)

#if COLS < NV_PANEL
/* Weights come from memory fastest in the order in which they lie, a whole panel in one pass. So do the first rows of
 * every call, which bring a block into the cache for the others, and all rows of a call that has no more than wait for
 * the weights. */
#define WIDE_STRIP 2
#define WIDE_ROWS 8
/* Asked for so far ahead of bfloat16 and int8, whose rounds take longer; for float32 the hardware alone is faster. */
#define WIDE_AHEAD 4096
#define PANEL_VECTORS (NV_PANEL / VL)
#define EACH_WIDE_ROWS(F) F(1) F(2)
#define WIDE(kind, is_bf16, R)                                                                            \
    static void wide_##kind##_##R(strip_t s, const void *panel, ptrdiff_t k, void *tile) {                \
        dot_float(R, PANEL_VECTORS, is_bf16, &(dot_t){.x = s.a, .x_row = s.lda, .x_step = 1, .w = panel,  \
                                                      .w_step = NV_PANEL, .k = k, .out = tile, .out_row = NV_PANEL, \
                                                      .ahead = is_bf16 ? WIDE_AHEAD : 0});                \
    }
#define WIDE_F32(R) WIDE(f32, 0, R)
#define WIDE_BF16(R) WIDE(bf16, 1, R)
EACH_WIDE_ROWS(WIDE_F32)
#ifndef NV_AMX
EACH_WIDE_ROWS(WIDE_BF16)
#endif
#endif

static strip_t strip_f32(const nv_gemm *g, ptrdiff_t row, int rows) {
    (void)rows;
    return (strip_t){(const float *)g->x + row * g->ldx, g->ldx};
}

#ifndef NV_AMX /* which multiplies both kinds on tiles */
static strip_t strip_bf16(const nv_gemm *g, ptrdiff_t row, int rows) {
#if defined(__AVX512BF16__)
    (void)rows;
    return (strip_t){(const uint16_t *)g->x + row * g->ldx, g->ldx / 2};
#else
    ptrdiff_t k = g->w->k_padded;
    uint32_t *wide = g->scratch;
    for (int r = 0; r < rows; r++)
        for (ptrdiff_t i = 0; i < k; i++)
            wide[r * k + i] = (uint32_t)((const uint16_t *)g->x)[(row + r) * g->ldx + i] << 16;
    return (strip_t){wide, k};
#endif
}

#include "gemm_int8.h"
#endif

#if STRIP == 12
#define EACH_ROWS(F) EACH_STRIP_SIZE(F) EACH_LARGE_STRIP_SIZE(F)
#else
#define EACH_ROWS(F) EACH_STRIP_SIZE(F)
#endif
EACH_ROWS(MICRO_F32)
#ifndef NV_AMX
EACH_ROWS(MICRO_BF16) EACH_ROWS(MICRO_INT8)
#endif
#if STRIP == 12
#define MICROS(T) {micro_##T##_1, micro_##T##_2, micro_##T##_3, micro_##T##_4, micro_##T##_5, micro_##T##_6, \
                   micro_##T##_7, micro_##T##_8, micro_##T##_9, micro_##T##_10, micro_##T##_11, micro_##T##_12}
#else
#define MICROS(T) {micro_##T##_1, micro_##T##_2, micro_##T##_3, micro_##T##_4, micro_##T##_5, micro_##T##_6}
#endif

typedef void (*micro_fn)(strip_t, const void *, ptrdiff_t, void *);
typedef strip_t (*strip_fn)(const nv_gemm *, ptrdiff_t, int);

#ifdef NV_AMX
static const micro_fn micros[NV_KINDS][STRIP] = {[NV_F32] = MICROS(f32)};
static const strip_fn strips[NV_KINDS] = {[NV_F32] = strip_f32};
#else
static const micro_fn micros[NV_KINDS][STRIP] = {
    [NV_F32] = MICROS(f32), [NV_BF16] = MICROS(bf16), [NV_INT8] = MICROS(int8)};
static const strip_fn strips[NV_KINDS] = {[NV_F32] = strip_f32, [NV_BF16] = strip_bf16, [NV_INT8] = strip_int8};
#endif
#ifdef WIDE_STRIP
#define WIDES(T) {wide_##T##_1, wide_##T##_2}
#ifdef NV_AMX
static const micro_fn wides[NV_KINDS][WIDE_STRIP] = {[NV_F32] = WIDES(f32)};
#else
static const micro_fn wides[NV_KINDS][WIDE_STRIP] = {
    [NV_F32] = WIDES(f32), [NV_BF16] = WIDES(bf16), [NV_INT8] = WIDES(int8)};
#endif
#endif
#if defined(__AVX512BF16__)
static const int strip_is_made[NV_KINDS] = {0};
#else
static const int strip_is_made[NV_KINDS] = {[NV_BF16] = 1, [NV_INT8] = 1};
#endif
static const ptrdiff_t element_bytes[NV_KINDS] = {[NV_F32] = 4, [NV_BF16] = 2, [NV_INT8] = 1};

/* int32 sums of one panel to floats, in place. */
static void scale_tile(const nv_gemm *g, ptrdiff_t row, int rows, ptrdiff_t panel, float *tile) {
    const float *scale = g->w->scale + panel * NV_PANEL;
    const int32_t *offset = g->w->offset + panel * NV_PANEL;
    for (int r = 0; r < rows; r++) {
        float x_scale = g->x_scale[row + r];
        for (int c = 0; c < NV_PANEL; c += VL) {
            vi sum = (vi)v_load(tile + r * NV_PANEL + c);
            if (INT8_OFFSET) sum -= (vi)v_load((const float *)offset + c); /* 128 times the column's sum */
            v_store(tile + r * NV_PANEL + c, __builtin_convertvector(sum, vf) * (v_load(scale + c) * x_scale));
        }
    }
}

/* Folds the columns [column, column + columns) of one row into its best. */
static void update_best(nv_best *best, const float *logits, ptrdiff_t column, ptrdiff_t columns) {
    vi wanted = {0};
    for (int c = 0; c < NV_PANEL; c += VL) wanted |= ~(v_load(logits + c) <= best->value); /* larger, or not a number */
    if (!v_any(wanted) && best->id != -1) return;
    for (ptrdiff_t c = 0; c < columns && best->id != -2; c++) {
        if (!(logits[c] <= FLT_MAX)) {
            best->id = -2;
        } else if (logits[c] > best->value) {
            best->value = logits[c];
            best->id = (int32_t)(column + c);
        }
    }
}

/* Makes room: raises the bound to the k-th largest of those that are kept. */
static void narrow_top(nv_top *top) {
    int32_t kept = 0;
    top->bound = sampling_kth_largest(top->logits, top->count, top->k);
    for (int32_t i = 0; i < top->count; i++) {
        top->ids[kept] = top->ids[i];
        top->logits[kept] = top->logits[i];
        kept += top->logits[i] >= top->bound;
    }
    top->count = kept + NV_PANEL <= NV_TOP_ROOM ? kept : -1;
}

/* Adds the columns [column, column + columns) of one row to its largest. */
static void update_top(nv_top *top, const float *logits, ptrdiff_t column, ptrdiff_t columns) {
    vi wanted = {0};
    for (int c = 0; c < NV_PANEL; c += VL) wanted |= ~(v_load(logits + c) < top->bound); /* or not a number */
    if (!v_any(wanted) || top->count < 0) return;
    if (top->count + NV_PANEL > NV_TOP_ROOM) narrow_top(top);
    for (ptrdiff_t c = 0; c < columns && top->count >= 0; c++) {
        top->ids[top->count] = (int32_t)(column + c);
        top->logits[top->count] = logits[c];
        top->count = logits[c] <= FLT_MAX ? top->count + (logits[c] >= top->bound) : -1;
    }
}

/* Writes one panel's tile [rows, NV_PANEL] where it belongs. */
static void finish_tile(const nv_gemm *g, ptrdiff_t row, int rows, ptrdiff_t panel, float *tile) {
    const nv_linear *w = g->w;
    const ptrdiff_t width = w->gated ? NV_PANEL / 2 : NV_PANEL, column = panel * width;
    const ptrdiff_t columns = w->n - column < width ? w->n - column : width;
    if (w->kind == NV_INT8) scale_tile(g, row, rows, panel, tile);
    if (w->bias)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < NV_PANEL; c += VL)
                v_store(tile + r * NV_PANEL + c,
                        v_load(tile + r * NV_PANEL + c) + v_load(w->bias + panel * NV_PANEL + c));
    if (w->gated)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < NV_PANEL / 2; c += VL) {
                float *from = tile + r * NV_PANEL + c;
                v_store(from, silu_mul_vec(v_load(from), v_load(from + NV_PANEL / 2)));
            }
    for (int r = 0; r < rows; r++) {
        const float *from = tile + r * NV_PANEL;
        const ptrdiff_t full = row + r - g->greedy_rows - g->top_rows, at = full * g->ldy + column;
        if (row + r < g->greedy_rows) {
            update_best(g->best + row + r, from, column, columns);
            continue;
        }
        if (full < 0) {
            update_top(g->top + row + r - g->greedy_rows, from, column, columns);
            continue;
        }
        float *to = (float *)g->y + at;
        if (g->mode == NV_SILU_MUL_BF16) {
            to_bf16(from, (uint16_t *)g->y + at, columns, columns);
        } else if (columns < width) {
            for (ptrdiff_t c = 0; c < columns; c++) to[c] = g->mode == NV_ADD ? to[c] + from[c] : from[c];
        } else {
            for (int c = 0; c < width; c += VL)
                v_store(to + c, g->mode == NV_ADD ? v_load(to + c) + v_load(from + c) : v_load(from + c));
        }
    }
}

#ifdef NV_AMX
#include "gemm_amx.h"
#endif

/* Panels [begin, end) as the micro kernels read them: from `first` on, which is panel `begin`. */
typedef struct {
    ptrdiff_t begin, end, panel_bytes;
    const char *first;
} block_t;

static block_t packed_block(const nv_linear *w, ptrdiff_t begin, ptrdiff_t end) {
    const ptrdiff_t panel_bytes = w->k_padded * NV_PANEL * element_bytes[w->kind];
    return (block_t){begin, end, panel_bytes, (const char *)w->weight + begin * panel_bytes};
}

/* Some rows times a block of panels. */
static void gemm_strip(const nv_gemm *g, ptrdiff_t row, int rows, micro_fn micro, const block_t *block) {
    const strip_t strip = strips[g->w->kind](g, row, rows);
    const char *panel = block->first;
    float tile[STRIP * NV_PANEL] __attribute__((aligned(64)));
    for (ptrdiff_t i = block->begin; i < block->end; i++, panel += block->panel_bytes) {
        micro(strip, panel, g->w->k_padded, tile);
        finish_tile(g, row, rows, i, tile);
    }
}

/* Rows [row, row + rows) in strips of nearly equal size: 64 are 5 x 11 + 9, not 5 x 12 + 4. */
static void gemm_strips(const nv_gemm *g, ptrdiff_t row, ptrdiff_t rows, const micro_fn *micro, const block_t *block) {
    const ptrdiff_t num_strips = (rows + STRIP - 1) / STRIP;
    for (ptrdiff_t i = 0; i < num_strips; i++) {
        const ptrdiff_t begin = rows * i / num_strips, end = rows * (i + 1) / num_strips;
        gemm_strip(g, row + begin, (int)(end - begin), micro[end - begin - 1], block);
    }
}

#if !defined(__AVX512BF16__) && !defined(NV_AMX)
#define WIDENED_ROWS 24 /* from here on; with fewer it costs more than it saves */

/* A block of bfloat16 panels as floats [panels][k][NV_PANEL] behind the strip's rows in scratch: without a unit for
 * bfloat16 each strip would widen it again, two operations for each vector. The same products in the same order. */
static block_t widened_block(const nv_gemm *g, ptrdiff_t begin, ptrdiff_t end) {
    const block_t packed = packed_block(g->w, begin, end);
    const float *from = (const float *)packed.first;
    float *to = (float *)((char *)g->scratch + nv_strip_scratch(g->w->k_padded));
    const block_t widened = {begin, end, 2 * packed.panel_bytes, (const char *)to};
    for (ptrdiff_t i = 0; i < (end - begin) * g->w->k_padded / 2; i++, to += NV_PANEL)
        for (int c = 0; c < NV_PANEL; c += VL, from += VL, to += VL) {
            const vf pair = v_load(from);
            v_store(to, LOW(pair));
            v_store(to + NV_PANEL, HIGH(pair));
        }
    return widened;
}

static void gemm_widened(const nv_gemm *g, ptrdiff_t panel_begin, ptrdiff_t panel_end) {
    const ptrdiff_t most = nv_block_panels(nv_block_bytes, g->w->k_padded * NV_PANEL * 4);
    for (ptrdiff_t begin = panel_begin; begin < panel_end; begin += most) {
        const block_t block = widened_block(g, begin, begin + most < panel_end ? begin + most : panel_end);
        gemm_strips(g, 0, g->rows, micros[NV_F32], &block);
    }
}
#endif

static void gemm(const nv_gemm *g, ptrdiff_t panel_begin, ptrdiff_t panel_end) {
    const nv_linear *w = g->w;
#ifdef NV_AMX
    if (w->kind != NV_F32) {
        gemm_amx(g, panel_begin, panel_end);
        return;
    }
#elif defined(WIDENED_ROWS)
    if (w->kind == NV_BF16 && g->rows >= WIDENED_ROWS) {
        gemm_widened(g, panel_begin, panel_end);
        return;
    }
#endif
    /* A strip that is brought into a form of its own is so once for each block: hence 4 panels at least. */
    const ptrdiff_t fit = nv_block_panels(nv_block_bytes, w->k_padded * NV_PANEL * element_bytes[w->kind]);
    const ptrdiff_t most = strip_is_made[w->kind] && fit < 4 ? 4 : fit;
#ifdef WIDE_STRIP
    const ptrdiff_t wide_rows = g->rows <= WIDE_ROWS ? g->rows : WIDE_STRIP;
#else
    const ptrdiff_t wide_rows = 0;
#endif
    for (ptrdiff_t begin = panel_begin; begin < panel_end; begin += most) {
        const block_t block = packed_block(w, begin, begin + most < panel_end ? begin + most : panel_end);
#ifdef WIDE_STRIP
        for (ptrdiff_t row = 0; row < wide_rows; row += WIDE_STRIP) {
            const int rows = wide_rows - row < WIDE_STRIP ? (int)(wide_rows - row) : WIDE_STRIP;
            gemm_strip(g, row, rows, wides[w->kind][rows - 1], &block);
        }
#endif
        gemm_strips(g, wide_rows, g->rows - wide_rows, micros[w->kind], &block);
    }
}
