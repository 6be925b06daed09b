/* The kernels of one level. Included by level_*.c, each compiled with its own flags; NV_LEVEL names the table. */
#include <float.h>
#include <math.h>

#include "vec.h"

#include "convert.h"

static void rms_norm(const float *x, ptrdiff_t ldx, const float *weight, float *y, ptrdiff_t ldy, ptrdiff_t rows,
                     ptrdiff_t n, float eps) {
    for (ptrdiff_t row = 0; row < rows; row++, x += ldx, y += ldy) {
        float inverse = inverse_rms(x, n, eps);
        ptrdiff_t j = 0;
        for (; j + VL <= n; j += VL) v_store(y + j, v_load(x + j) * inverse * v_load(weight + j));
        for (; j < n; j++) y[j] = x[j] * inverse * weight[j];
    }
}

static void rope(float *x, const float *cosines, const float *sines, ptrdiff_t dim) {
    ptrdiff_t half = dim / 2, j = 0;
    for (; j + VL <= half; j += VL) {
        vf a = v_load(x + j), b = v_load(x + half + j), c = v_load(cosines + j), s = v_load(sines + j);
        v_store(x + j, a * c - b * s);
        v_store(x + half + j, b * c + a * s);
    }
    for (; j < half; j++) {
        float a = x[j], b = x[half + j];
        x[j] = a * cosines[j] - b * sines[j];
        x[half + j] = b * cosines[j] + a * sines[j];
    }
}

static inline vf silu_mul_vec(vf gate, vf up) {
    /* Capped so that exp stays finite: silu(-88) is -5e-37 already. The order keeps a NaN, as in v_exp. */
    gate = v_max(v_set(-88.0f), gate);
    return gate / (1.0f + v_exp(-gate)) * up;
}

static void silu_mul(const float *gate, const float *up, float *out, ptrdiff_t n) {
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) v_store(out + j, silu_mul_vec(v_load(gate + j), v_load(up + j)));
    if (j < n) { /* the tail goes through the same vector code, so that a value never depends on where it stands */
        float g[VL] = {0}, u[VL] = {0};
        memcpy(g, gate + j, (size_t)(n - j) * sizeof(float));
        memcpy(u, up + j, (size_t)(n - j) * sizeof(float));
        v_store(g, silu_mul_vec(v_load(g), v_load(u)));
        memcpy(out + j, g, (size_t)(n - j) * sizeof(float));
    }
}

static void log_sum_exp(const float *logits, ptrdiff_t n, float *max, double *log_sum) {
    vf top = v_set(-INFINITY);
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) top = v_max(top, v_load(logits + j));
    float m = lanes_max(top);
    for (; j < n; j++) m = logits[j] > m ? logits[j] : m;
    *max = m;
    if (m == -INFINITY) { /* exp(-inf - -inf) would be NaN; only a NaN among them is one */
        *log_sum = -INFINITY;
        for (j = 0; j < n; j++)
            if (logits[j] != logits[j]) *log_sum = NAN;
        return;
    }
    double total = 0;
    /* Partial float sums of 4096 values, added up in double: as exact as needed, and a third of the cost of doubles. */
    for (ptrdiff_t start = 0; start < n; start += 4096) {
        ptrdiff_t end = start + 4096 < n ? start + 4096 : n;
        vf acc[VPL];
        for (int i = 0; i < VPL; i++) acc[i] = v_set(0);
        for (j = start; j + NV_LANES <= end; j += NV_LANES)
            for (int i = 0; i < VPL; i++) acc[i] += v_exp(v_load(logits + j + i * VL) - m);
        if (j < end) {
            float tail[NV_LANES];
            for (int i = 0; i < NV_LANES; i++) tail[i] = j + i < end ? logits[j + i] : -INFINITY;
            for (int i = 0; i < VPL; i++) acc[i] += v_exp(v_load(tail + i * VL) - m);
        }
        total += lanes_sum(acc);
    }
    *log_sum = m + log(total);
}

static uint64_t read_all(const void *data, size_t bytes) {
    const float *p = data;
    vi a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i + 4 * VL <= bytes / 4; i += 4 * VL) {
        a ^= (vi)v_load(p + i);
        b ^= (vi)v_load(p + i + VL);
        c ^= (vi)v_load(p + i + 2 * VL);
        d ^= (vi)v_load(p + i + 3 * VL);
    }
    a ^= b ^ c ^ d;
    uint64_t sum = 0;
    for (int i = 0; i < VL; i++) sum ^= (uint64_t)(uint32_t)a[i];
    return sum;
}

#include "dot.h"

#include "gemm.h"

#include "attention.h"

const nv_kernels NV_LEVEL = {
    .name = NV_LEVEL_NAME,
    .rms_norm = rms_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .attention_rows = ATTN_ROWS,
    .attention = attention,
    .attention_fold = attention_fold,
    .attention_part = attention_part,
    .attention_merge = attention_merge,
    .log_sum_exp = log_sum_exp,
    .inverse_rms = inverse_rms,
    .to_bf16 = to_bf16,
    .to_int8 = to_int8,
    .store_int8 = store_int8,
    .hadamard = hadamard,
    .read_all = read_all,
    .gemm = gemm,
};
