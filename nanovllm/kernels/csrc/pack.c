#include "pack.h"

#include <math.h>
#include <string.h>

static float widen_f16(uint16_t h) {
    /* A half's exponent and fraction moved to a float's place are too small by 2^112, denormals included. */
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float x;
    if ((h & 0x7c00) == 0x7c00) {
        bits |= 0x7f800000; /* infinity or NaN */
        memcpy(&x, &bits, 4);
    } else {
        memcpy(&x, &bits, 4);
        x *= 0x1p112f;
    }
    memcpy(&bits, &x, 4);
    bits |= sign;
    memcpy(&x, &bits, 4);
    return x;
}

static uint16_t round_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 64); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void nv_widen(const void *x, int dtype, ptrdiff_t n, float *out) {
    const char *bytes = x;
    if (dtype == NV_SOURCE_F32) {
        memcpy(out, x, (size_t)n * 4);
        return;
    }
    for (ptrdiff_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, bytes + 2 * i, 2);
        if (dtype == NV_SOURCE_F16) {
            out[i] = widen_f16(half);
        } else {
            uint32_t wide = (uint32_t)half << 16;
            memcpy(out + i, &wide, 4);
        }
    }
}

/* Where row `row` of the stacked sources lies, or NULL past their end. */
static const void *find_row(const nv_source *sources, int num_sources, ptrdiff_t row, ptrdiff_t k, int *dtype) {
    for (int i = 0; i < num_sources; i++) {
        if (row < sources[i].rows) {
            *dtype = sources[i].dtype;
            return (const char *)sources[i].data + row * k * (sources[i].dtype == NV_SOURCE_F32 ? 4 : 2);
        }
        row -= sources[i].rows;
    }
    return NULL;
}

/* The source row that packed column `column` of a panel holds, or -1 for padding. */
static ptrdiff_t source_row(const nv_linear *w, ptrdiff_t panel, int column) {
    if (!w->gated) {
        ptrdiff_t row = panel * NV_PANEL + column;
        return row < w->n ? row : -1;
    }
    const int half = NV_PANEL / 2;
    ptrdiff_t row = panel * half + column % half;
    return row >= w->n ? -1 : column < half ? row : w->n + row;
}

/* Transposes [NV_PANEL][words] into [words][NV_PANEL]: 32-bit words hold one float, two bfloat16 or four int8. */
static void interleave(const uint32_t *rows, ptrdiff_t words, uint32_t *out) {
    for (ptrdiff_t start = 0; start < words; start += 16) {
        ptrdiff_t end = start + 16 < words ? start + 16 : words; /* a block of 16 x 32 words stays in the L1 cache */
        for (int c = 0; c < NV_PANEL; c++)
            for (ptrdiff_t i = start; i < end; i++) out[i * NV_PANEL + c] = rows[c * words + i];
    }
}

static void quantize_row(const float *x, ptrdiff_t k, int8_t *out, float *scale, int32_t *offset) {
    float max = 0;
    for (ptrdiff_t i = 0; i < k; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    float inverse = max > 0 ? 127.0f / max : 0;
    int32_t sum = 0;
    for (ptrdiff_t i = 0; i < k; i++) {
        /* Adding 1.5 * 2^23 rounds to nearest even into the low bits; lrintf is a library call on baseline x86-64. */
        float shifted = x[i] * inverse + 12582912.0f;
        int32_t bits;
        memcpy(&bits, &shifted, 4);
        out[i] = (int8_t)bits;
        sum += out[i];
    }
    *scale = max / 127.0f;
    *offset = 128 * sum;
}

void nv_pack_panels(const nv_linear *w, const nv_source *sources, int num_sources, ptrdiff_t panel_begin,
                    ptrdiff_t panel_end, void *weight, float *scale, int32_t *offset, void *temp) {
    const ptrdiff_t k = w->k, bytes = w->kind == NV_INT8 ? 1 : w->kind == NV_BF16 ? 2 : 4;
    const ptrdiff_t row_bytes = w->k_padded * bytes;
    float *wide = temp;                         /* [k_padded] */
    char *rows = (char *)temp + w->k_padded * 4; /* [NV_PANEL][row_bytes] */
    for (ptrdiff_t panel = panel_begin; panel < panel_end; panel++) {
        memset(rows, 0, (size_t)(NV_PANEL * row_bytes));
        for (int c = 0; c < NV_PANEL; c++) {
            char *row = rows + c * row_bytes;
            ptrdiff_t index = source_row(w, panel, c), column = panel * NV_PANEL + c;
            int dtype = NV_SOURCE_F32;
            const void *from = index < 0 ? NULL : find_row(sources, num_sources, index, k, &dtype);
            if (w->kind == NV_INT8) scale[column] = 0, offset[column] = 0;
            if (!from) continue;
            if (w->kind == NV_BF16 && dtype == NV_SOURCE_BF16) {
                memcpy(row, from, (size_t)k * 2);
                continue;
            }
            nv_widen(from, dtype, k, wide);
            if (w->kind == NV_F32) memcpy(row, wide, (size_t)k * 4);
            if (w->kind == NV_BF16)
                for (ptrdiff_t i = 0; i < k; i++) {
                    uint16_t half = round_bf16(wide[i]);
                    memcpy(row + 2 * i, &half, 2);
                }
            if (w->kind == NV_INT8) quantize_row(wide, k, (int8_t *)row, scale + column, offset + column);
        }
        interleave((const uint32_t *)rows, row_bytes / 4, (uint32_t *)((char *)weight + panel * NV_PANEL * row_bytes));
    }
}
