/* Holds every level of the C kernels against plain loops in double. For machines that the Python suite does not run on:
 * `make check-aarch64` cross-compiles it and runs it under qemu-user, `make check-amx` runs the AMX level with
 * amx_trap.c in place of the unit. Exit code 1 and a line for each failure. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "pack.h"

static int failures, checks;
static const nv_kernels *twin; /* a level that must give the same bits as the one at hand, or NULL */

static float noise(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

static void expect(const char *level, const char *what, double found, double expected, double tolerance) {
    checks++;
    if (fabs(found - expected) <= tolerance * (1 + fabs(expected))) return;
    failures++;
    printf("FAILED %s: %s: found %g, expected %g\n", level, what, found, expected);
}

static void fill(float *x, long n) {
    for (long i = 0; i < n; i++) x[i] = noise();
}

/* A packed Linear of each kind, plain, added to y, and gated, against a double sum; one row equals the same row of many. */
static void check_gemm(const nv_kernels *k, int kind, ptrdiff_t n, ptrdiff_t depth, int gated) {
    const double tolerance[NV_KINDS] = {[NV_F32] = 1e-5, [NV_BF16] = 2e-2, [NV_INT8] = 5e-2};
    const ptrdiff_t rows = 26, all = gated ? 2 * n : n, width = gated ? NV_PANEL / 2 : NV_PANEL;
    nv_linear w = {.kind = kind, .n = n, .k = depth, .k_padded = nv_k_padded(kind, depth), .gated = gated};
    w.panels = (n + width - 1) / width;
    float *weight = malloc(sizeof(float) * (size_t)(all * depth)), *x = malloc(sizeof(float) * (size_t)(rows * depth));
    float *y = calloc((size_t)(rows * n), 4), *one = calloc((size_t)n, 4), *again = calloc((size_t)(rows * n), 4), *scale = calloc((size_t)w.panels * 32, 4);
    int32_t *offset = calloc((size_t)w.panels * 32, 4);
    void *packed = calloc((size_t)(w.panels * NV_PANEL * w.k_padded), 4), *temp = malloc(nv_pack_scratch(w.k_padded));
    char *in = calloc((size_t)(rows * w.k_padded), 4);
    float x_scale[26];
    fill(weight, all * depth);
    fill(x, rows * depth);
    const nv_source source = {weight, all, NV_SOURCE_F32};
    nv_pack_panels(&w, &source, 1, 0, w.panels, packed, scale, offset, temp);
    w.weight = packed, w.scale = scale, w.offset = offset;
    const ptrdiff_t row_bytes = w.k_padded * (kind == NV_F32 ? 4 : kind == NV_BF16 ? 2 : 1);
    for (ptrdiff_t r = 0; r < rows; r++) {
        if (kind == NV_F32) memcpy(in + r * row_bytes, x + r * depth, (size_t)depth * 4);
        if (kind == NV_BF16) k->to_bf16(x + r * depth, (uint16_t *)(in + r * row_bytes), depth, w.k_padded);
        if (kind == NV_INT8) x_scale[r] = k->to_int8(x + r * depth, (int8_t *)in + r * row_bytes, depth, w.k_padded, 1);
    }
    nv_gemm g = {.w = &w, .x = in, .ldx = w.k_padded, .x_scale = x_scale, .rows = rows, .y = y, .ldy = n};
    g.mode = gated ? NV_SILU_MUL : NV_STORE;
    g.scratch = malloc(nv_gemm_scratch(w.k_padded));
    k->gemm(&g, 0, w.panels);
    if (twin) {
        g.y = again;
        twin->gemm(&g, 0, w.panels);
        for (ptrdiff_t i = 0; i < rows * n; i++) expect(k->name, "gemm as its twin", y[i], again[i], 0);
    }
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t c = 0; c < n; c++) {
            double sum = 0, up = 0;
            for (ptrdiff_t i = 0; i < depth; i++) {
                sum += (double)x[r * depth + i] * weight[c * depth + i];
                if (gated) up += (double)x[r * depth + i] * weight[(n + c) * depth + i];
            }
            if (gated) sum = sum / (1 + exp(-sum)) * up;
            expect(k->name, gated ? "gated gemm" : "gemm", y[r * n + c], sum, tolerance[kind] * (gated ? 4 : 2));
        }
    g.x = in + 5 * row_bytes, g.x_scale = x_scale + 5, g.rows = 1, g.y = one;
    k->gemm(&g, 0, w.panels);
    for (ptrdiff_t c = 0; c < n; c++) expect(k->name, "one row as in a batch", one[c], y[5 * n + c], 0);
    free(weight), free(x), free(y), free(one), free(again), free(scale), free(offset), free(packed), free(temp), free(in);
    free(g.scratch);
}

static void check_attention(const nv_kernels *k, int dim, int context, int window) {
    const int stride = (int)nv_v_stride(dim), blocks = context / NV_BLOCK + 1;
    float *keys = malloc(sizeof(float) * (size_t)(blocks * dim * NV_BLOCK));
    float *values = malloc(sizeof(float) * (size_t)(blocks * NV_BLOCK * stride));
    float *q = malloc(sizeof(float) * (size_t)dim), *out = malloc(sizeof(float) * (size_t)dim);
    int32_t *table = malloc(sizeof(int32_t) * (size_t)blocks), position = context - 1;
    double *p = malloc(sizeof(double) * (size_t)context), sum = 0, max = -1e30;
    fill(keys, (long)blocks * dim * NV_BLOCK);
    fill(values, (long)blocks * NV_BLOCK * stride);
    fill(q, dim);
    for (int i = 0; i < blocks; i++) table[i] = blocks - 1 - i;
    const ptrdiff_t zero = 0;
    nv_attention a = {.q = q, .out = out, .q_offset = &zero, .out_offset = &zero, .position = &position, .num_rows = 1,
                      .k_cache = keys, .v_cache = values, .k_block_stride = nv_k_block_bytes(NV_CACHE_F32, dim),
                      .v_block_stride = nv_v_block_bytes(NV_CACHE_F32, dim), .block_table = table, .head_dim = dim, .v_stride = stride,
                      .window = window, .scale = 0.5f};
    a.scratch = malloc(sizeof(float) * nv_attention_scratch(k->attention_rows, dim));
    k->attention(&a);
    const int first = window && context > window ? context - window : 0;
    for (int t = first; t < context; t++) {
        p[t] = 0;
        for (int d = 0; d < dim; d++) p[t] += 0.5 * q[d] * keys[(table[t / 32] * dim + d) * NV_BLOCK + t % 32];
        max = p[t] > max ? p[t] : max;
    }
    for (int t = first; t < context; t++) sum += p[t] = exp(p[t] - max);
    for (int d = 0; d < dim; d++) {
        double expected = 0;
        for (int t = first; t < context; t++) expected += p[t] / sum * values[(table[t / 32] * 32 + t % 32) * stride + d];
        expect(k->name, "attention", out[d], expected, 1e-5);
    }
    free(keys), free(values), free(q), free(out), free(table), free(p), free(a.scratch);
}

/* A cache of bfloat16 or int8 and rows that see less or more of it, each as near to the exact result as the rounding lets
 * it come, and with the same bits alone as beside the others. Slots past the last position hold NaN. */
static void check_attention_narrow(const nv_kernels *k, int cache, int dim, int context, int window) {
    const int blocks = context / NV_BLOCK + 1, rows = k->attention_rows, stride = (int)nv_v_stride(dim);
    const ptrdiff_t k_bytes = nv_k_block_bytes(cache, dim), v_bytes = nv_v_block_bytes(cache, dim);
    float *keys = malloc(sizeof(float) * (size_t)(context * dim)), *values = malloc(sizeof(float) * (size_t)(context * dim));
    float *q = malloc(sizeof(float) * (size_t)(rows * dim)), *out = malloc(sizeof(float) * (size_t)(rows * dim));
    char *k_cache = malloc((size_t)(blocks * k_bytes)), *v_cache = malloc((size_t)(blocks * v_bytes));
    int32_t *table = malloc(sizeof(int32_t) * (size_t)blocks), position[NV_ATTN_ROWS];
    uint8_t *temp = malloc((size_t)dim);
    double *p = malloc(sizeof(double) * (size_t)context);
    ptrdiff_t offset[NV_ATTN_ROWS];
    fill(keys, (long)context * dim);
    fill(values, (long)context * dim);
    fill(q, (long)rows * dim);
    memset(k_cache, 0xff, (size_t)(blocks * k_bytes));
    memset(v_cache, 0xff, (size_t)(blocks * v_bytes));
    for (int i = 0; i < blocks; i++) table[i] = blocks - 1 - i;
    for (int t = 0; t < context; t++) {
        char *k_block = k_cache + table[t / NV_BLOCK] * k_bytes, *v_block = v_cache + table[t / NV_BLOCK] * v_bytes;
        const int at = t % NV_BLOCK;
        if (cache == NV_CACHE_INT8) k->store_int8(keys + t * dim, values + t * dim, dim, k_block, v_block, at, temp);
        if (cache == NV_CACHE_BF16)
            for (int d = 0; d < dim; d++) {
                k->to_bf16(keys + t * dim + d, (uint16_t *)k_block + (d / 2 * NV_BLOCK + at) * 2 + d % 2, 1, 1);
                k->to_bf16(values + t * dim + d, (uint16_t *)v_block + (at / 2 * stride + d) * 2 + at % 2, 1, 1);
            }
    }
    nv_attention a = {.q = q, .out = out, .q_offset = offset, .out_offset = offset, .position = position, .num_rows = rows,
                      .cache = cache, .k_cache = k_cache, .v_cache = v_cache, .k_block_stride = k_bytes,
                      .v_block_stride = v_bytes, .block_table = table, .head_dim = dim, .v_stride = stride,
                      .window = window, .scale = 0.5f};
    a.scratch = malloc(sizeof(float) * nv_attention_scratch(rows, dim));
    for (int r = 0; r < rows; r++) offset[r] = r * dim, position[r] = context - 1 - (rows - 1 - r) * (context - 1) / rows;
    k->attention(&a);
    if (twin) {
        float *again = malloc(sizeof(float) * (size_t)(rows * dim));
        a.out = again;
        twin->attention(&a);
        for (int i = 0; i < rows * dim; i++) expect(k->name, "attention as its twin", out[i], again[i], 0);
        free(again);
    }
    for (int r = 0; r < rows; r++) {
        const int last = position[r], first = window && last >= window ? last - window + 1 : 0;
        double sum = 0;
        for (int t = first; t <= last; t++) {
            double score = 0;
            for (int d = 0; d < dim; d++) score += 0.5 * q[r * dim + d] * keys[t * dim + d];
            sum += p[t] = exp(score);
        }
        for (int d = 0; d < dim; d++) {
            double expected = 0;
            for (int t = first; t <= last; t++) expected += p[t] / sum * values[t * dim + d];
            expect(k->name, "attention over a narrow cache", out[r * dim + d], expected, 0.02);
        }
    }
    for (int r = 0; r < rows; r++) {
        float *alone = malloc(sizeof(float) * (size_t)dim);
        const ptrdiff_t zero = 0;
        a.q_offset = offset + r, a.position = position + r, a.out_offset = &zero, a.out = alone, a.num_rows = 1;
        k->attention(&a);
        for (int d = 0; d < dim; d++) expect(k->name, "one row as in a tile", alone[d], out[r * dim + d], 0);
        free(alone);
    }
    free(keys), free(values), free(q), free(out), free(k_cache), free(v_cache), free(table), free(temp), free(p);
    free(a.scratch);
}

static void check_rows(const nv_kernels *k) {
    float x[77], weight[77], y[77], top;
    double sum = 0, log_sum, total = 0;
    fill(x, 77);
    fill(weight, 77);
    k->rms_norm(x, 77, weight, y, 77, 1, 77, 1e-5f);
    for (int i = 0; i < 77; i++) sum += (double)x[i] * x[i];
    for (int i = 0; i < 77; i++) expect(k->name, "rms_norm", y[i], x[i] / sqrt(sum / 77 + 1e-5) * weight[i], 1e-6);
    k->silu_mul(x, weight, y, 77);
    for (int i = 0; i < 77; i++) expect(k->name, "silu_mul", y[i], x[i] / (1 + exp(-(double)x[i])) * weight[i], 1e-6);
    k->log_sum_exp(x, 77, &top, &log_sum);
    for (int i = 0; i < 77; i++) total += exp(x[i]);
    expect(k->name, "log_sum_exp", log_sum, log(total), 1e-6);
}

int main(void) {
#ifdef CHECK_AMX /* whether the CPU has it or amx_trap.c stands in for it */
    static const nv_kernels *const amx[] = {&nv_kernels_amx, NULL};
    const nv_kernels *const *levels = amx;
    twin = &nv_kernels_amx_emulated;
#else
    const nv_kernels *const *levels = nv_testable_levels();
#endif
    for (int i = 0; levels[i]; i++) {
        for (int kind = NV_F32; kind < NV_KINDS; kind++) {
            check_gemm(levels[i], kind, 37, 72, 0);
            check_gemm(levels[i], kind, 64, 129, 0);
            check_gemm(levels[i], kind, 40, 64, 1);
        }
        check_attention(levels[i], 24, 33, 0);
        check_attention(levels[i], 64, 1100, 0);
        check_attention(levels[i], 64, 700, 100);
        for (int cache = NV_CACHE_BF16; cache < NV_CACHES; cache++) {
            check_attention_narrow(levels[i], cache, 24, 33, 0);
            check_attention_narrow(levels[i], cache, 64, 1100, 0);
            check_attention_narrow(levels[i], cache, 80, 700, 100);
            check_attention_narrow(levels[i], cache, 128, 545, 0);
        }
        check_rows(levels[i]);
        printf("%s checked\n", levels[i]->name);
    }
    printf("%d passed, %d failed\n", checks - failures, failures);
    return failures != 0;
}
