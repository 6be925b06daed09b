/* A weight in the layout that its GEMM reads straight through.
 *
 * Packed layouts cut the output columns into panels of NV_PANEL and keep, for each panel, the reduction index outermost:
 *   NV_F32   [panels][k][NV_PANEL]                    float
 *   NV_BF16  [panels][k_padded / 2][NV_PANEL][2]      bfloat16, neighbours in k side by side
 *   NV_INT8  [panels][k_padded / 4][NV_PANEL][4]      int8
 * which is at once a stream for one row, the operand of vdpbf16ps / vpdpbusd, and a B tile of AMX. Columns past n and
 * reduction indices past k are zero.
 *
 * A gated pair (gate and up of an MLP) is packed as panels of NV_PANEL / 2 gate columns followed by the same up columns,
 * so that silu(gate) * up is taken while both are in registers.
 */
#ifndef NV_LINEAR_H
#define NV_LINEAR_H

#include <stddef.h>
#include <stdint.h>

#define NV_PANEL 32
#define NV_MAX_STRIP 12 /* most rows that one pass over a panel serves: 12 x 2 accumulators of 32 vector registers */

enum { NV_BLAS_F32 = 0, NV_F32 = 1, NV_BF16 = 2, NV_INT8 = 3, NV_KINDS = 4 };
enum { NV_STORE = 0, NV_ADD = 1, NV_SILU_MUL = 2, NV_SILU_MUL_BF16 = 3, NV_HEAD = 4 };

/* Best logit of a row so far; id -1: none yet, -2: a logit was NaN or infinite. */
typedef struct {
    float value;
    int32_t id;
} nv_best;

/* The largest logits of a row so far, by ascending column: at least those that are not below the k-th largest. */
#define NV_TOP_MOST 64  /* largest k */
#define NV_TOP_ROOM 256

typedef struct {
    float bound;         /* logits below it are not kept; -INFINITY at first */
    int32_t k;
    int32_t count;       /* -1: given up, for a logit that is NaN or infinite, or more ties than there is room for */
    int32_t ids[NV_TOP_ROOM];
    float logits[NV_TOP_ROOM];
} nv_top;

typedef struct {
    int kind;
    ptrdiff_t n;             /* output columns of y; for a gated pair those of gate alone */
    ptrdiff_t k;
    ptrdiff_t k_padded;      /* k rounded up to a whole AMX tile: 32 for bf16, 64 for int8; k for float32 */
    ptrdiff_t panels;
    const void *weight;      /* NV_BLAS_F32: [n][k] row-major */
    const float *bias;       /* in the order of the packed columns, [panels * NV_PANEL]; NULL without */
    const float *scale;      /* NV_INT8: of each packed column */
    const int32_t *offset;   /* NV_INT8: 128 * sum over k of each packed column, for units that want unsigned rows */
    int gated;
} nv_linear;

/* y (+)= x @ weight.T + bias, or silu_mul of a gated pair, for a range of panels. */
typedef struct {
    const nv_linear *w;
    const void *x;           /* [rows, ldx] of float, bfloat16 or what to_int8 made; the packed kinds read k_padded of each row */
    ptrdiff_t ldx;
    const float *x_scale;    /* NV_INT8: [rows] */
    ptrdiff_t rows;
    void *y;                 /* float, or bfloat16 in mode NV_SILU_MUL_BF16 */
    ptrdiff_t ldy;
    int mode;
    ptrdiff_t greedy_rows;   /* NV_HEAD: so many first rows only want their best column */
    ptrdiff_t top_rows;      /* NV_HEAD: so many after them only want their largest; y holds the others alone */
    nv_best *best;           /* NV_HEAD: [greedy_rows], updated; ties go to the lowest column */
    nv_top *top;             /* NV_HEAD: [top_rows], updated */
    void *scratch;           /* nv_gemm_scratch bytes, one for each thread */
} nv_gemm;

/* A block of panels stays in the L2 cache while all strips of rows pass over it: at most so many bytes of it, or one panel. */
#define NV_MOST_BLOCK_BYTES (512 << 10)

static inline ptrdiff_t nv_block_panels(ptrdiff_t bytes, ptrdiff_t panel_bytes) {
    return bytes > panel_bytes ? bytes / panel_bytes : 1;
}

/* Bytes of scratch: one strip of rows and one block of panels, both in a form that the kernel at hand wants. */
static inline size_t nv_strip_scratch(ptrdiff_t k_padded) { return (size_t)NV_MAX_STRIP * (size_t)k_padded * 4; }
static inline size_t nv_gemm_scratch(ptrdiff_t k_padded) {
    const ptrdiff_t panel_bytes = k_padded * NV_PANEL * 4, panels = nv_block_panels(NV_MOST_BLOCK_BYTES, panel_bytes);
    return nv_strip_scratch(k_padded) + (size_t)(panels * panel_bytes) + 64;
}

static inline ptrdiff_t nv_round_up(ptrdiff_t x, ptrdiff_t to) { return (x + to - 1) / to * to; }

static inline ptrdiff_t nv_k_padded(int kind, ptrdiff_t k) {
    return kind == NV_BF16 ? nv_round_up(k, 32) : kind == NV_INT8 ? nv_round_up(k, 64) : k;
}

#endif
