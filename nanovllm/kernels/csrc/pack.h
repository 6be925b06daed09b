/* From rows of a checkpoint to the packed layouts of linear.h. */
#ifndef NV_PACK_H
#define NV_PACK_H

#include "linear.h"

enum { NV_SOURCE_F32 = 0, NV_SOURCE_F16 = 1, NV_SOURCE_BF16 = 2 };

/* Consecutive output rows [rows][k] of a weight, as they lie in a file: possibly unaligned. */
typedef struct {
    const void *data;
    ptrdiff_t rows;
    int dtype;
} nv_source;

/* Packs a range of panels of `w` (its sizes and kind are read) into weight, and for NV_INT8 into scale and offset.
 * `sources` stacked give the rows: n of them, or for a gated pair n of gate, then n of up.
 * temp: nv_pack_scratch(k_padded) bytes, one for each thread. */
void nv_pack_panels(const nv_linear *w, const nv_source *sources, int num_sources, ptrdiff_t panel_begin,
                    ptrdiff_t panel_end, void *weight, float *scale, int32_t *offset, void *temp);

static inline size_t nv_pack_scratch(ptrdiff_t k_padded) { return (size_t)k_padded * (NV_PANEL + 1) * 4 + 64; }

/* x[0:n] widened to float, exactly. */
void nv_widen(const void *x, int dtype, ptrdiff_t n, float *out);

#endif
