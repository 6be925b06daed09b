/* Loops over one row of logits or weights: maxima, exponentials, sums, and selection without sorting.
 *
 * Selection bisects the bit patterns of floats, which are ordered like the floats, so it takes at most 32 passes
 * whatever the data; no input is slow. Every loop runs in a fixed order: the same row gives the same bits. This file is
 * compiled for the baseline only, so those bits do not depend on the level that the other kernels run at.
 */
#ifndef NANOVLLM_SAMPLING_SELECT_H
#define NANOVLLM_SAMPLING_SELECT_H

#include <math.h>

#include "kth.h"
#include "vec.h"

#define SAMPLING_LANES 8
#define SAMPLING_GROUP 64  /* logits that share one entry of group_max */
#define SAMPLING_BLOCK 256 /* weights that are summed together before they join the running float64 sum */

typedef double sampling_vd __attribute__((vector_size(VL * 8)));

/* out[i] = exp((x[i] - row_max) * scale), 0 where that is below the smallest normal float; out may be x. */
static inline void sampling_exp_row(const float *x, ptrdiff_t n, float row_max, float scale, float *out) {
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) v_store(out + i, v_exp((v_load(x + i) - row_max) * scale));
    if (i < n) {
        float tail[VL] = {0};
        memcpy(tail, x + i, (size_t)(n - i) * sizeof(float));
        v_store(tail, v_exp((v_load(tail) - row_max) * scale));
        memcpy(out + i, tail, (size_t)(n - i) * sizeof(float));
    }
}

/* group_max[g] = largest of x[g*GROUP ...]; returns the largest of all; *has_nan tells whether x holds a NaN. */
static inline float sampling_group_maxima(const float *x, ptrdiff_t n, float *group_max, int *has_nan) {
    float row_max = -INFINITY;
    vi nan_lanes = {0};
    *has_nan = 0;
    for (ptrdiff_t start = 0, g = 0; start < n; start += SAMPLING_GROUP, g++) {
        ptrdiff_t stop = start + SAMPLING_GROUP < n ? start + SAMPLING_GROUP : n;
        ptrdiff_t i = start;
        vf top0 = v_set(-INFINITY), top1 = top0;
        for (; i + 2 * VL <= stop; i += 2 * VL) {
            vf x0 = v_load(x + i), x1 = v_load(x + i + VL);
            top0 = v_max(top0, x0);
            top1 = v_max(top1, x1);
            nan_lanes |= (x0 != x0) | (x1 != x1);
        }
        float largest = lanes_max(v_max(top0, top1));
        for (; i < stop; i++) {
            largest = x[i] > largest ? x[i] : largest;
            *has_nan |= x[i] != x[i];
        }
        group_max[g] = largest;
        row_max = largest > row_max ? largest : row_max;
    }
    for (int lane = 0; lane < VL; lane++) *has_nan |= nan_lanes[lane] != 0;
    return row_max;
}

static inline double sampling_block_sum(const float *w, ptrdiff_t n) {
    double lanes[SAMPLING_LANES] = {0};
    ptrdiff_t i = 0;
    for (; i + SAMPLING_LANES <= n; i += SAMPLING_LANES)
        for (int lane = 0; lane < SAMPLING_LANES; lane++) lanes[lane] += w[i + lane];
    for (; i < n; i++) lanes[0] += w[i];
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

static inline double sampling_sum(const float *w, ptrdiff_t n) {
    double total = 0;
    for (ptrdiff_t i = 0; i < n; i += SAMPLING_BLOCK)
        total += sampling_block_sum(w + i, n - i < SAMPLING_BLOCK ? n - i : SAMPLING_BLOCK);
    return total;
}

/* First index whose cumulative weight exceeds target; never one of weight 0. At least one weight is positive. */
static inline ptrdiff_t sampling_pick(const float *w, ptrdiff_t n, double target) {
    double before = 0;
    ptrdiff_t last = n;
    for (ptrdiff_t i = 0; i < n; i += SAMPLING_BLOCK) {
        ptrdiff_t count = n - i < SAMPLING_BLOCK ? n - i : SAMPLING_BLOCK;
        double after = before + sampling_block_sum(w + i, count);
        if (after > target) {
            for (ptrdiff_t j = i; j < i + count; j++) {
                before += w[j];
                if (before > target) return j;
            }
            last = i + count; /* one by one rounds lower than by lanes: the block's last positive weight */
            break;
        }
        before = after;
    }
    do last--;
    while (last > 0 && !(w[last] > 0));
    return last;
}

typedef struct {
    float key;         /* smallest key at which the cumulative weight, by ascending key, exceeds the budget */
    double mass_below; /* weight of all smaller keys */
    ptrdiff_t count;   /* entries with exactly this key; 0: the budget is never exceeded, key is the largest */
} SamplingBoundary;

static inline double sampling_mass_up_to(const float *keys, const float *weights, ptrdiff_t n, float bound) {
    sampling_vd even = {0}, odd = {0};
    double total = 0;
    ptrdiff_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
        vf w0 = (vf)((vi)v_load(weights + i) & (v_load(keys + i) <= bound));
        vf w1 = (vf)((vi)v_load(weights + i + VL) & (v_load(keys + i + VL) <= bound));
        even += __builtin_convertvector(w0, sampling_vd);
        odd += __builtin_convertvector(w1, sampling_vd);
    }
    for (; i < n; i++) total += keys[i] <= bound ? weights[i] : 0.0f;
    even += odd;
    for (int lane = 0; lane < VL; lane++) total += even[lane];
    return total;
}

/* Weighted selection. keys: n >= 1 floats >= 0, overwritten together with weights (which may be the same array): both
 * shrink to the undecided part after each pass. */
static inline SamplingBoundary sampling_boundary(float *keys, float *weights, ptrdiff_t n, double budget) {
    float smallest = keys[0], largest = keys[0];
    vf low_lanes = v_set(-INFINITY), high_lanes = low_lanes;
    ptrdiff_t start = 0;
    for (; start + VL <= n; start += VL) {
        high_lanes = v_max(high_lanes, v_load(keys + start));
        low_lanes = v_max(low_lanes, -v_load(keys + start));
    }
    if (start > 0) {
        largest = lanes_max(high_lanes);
        smallest = -lanes_max(low_lanes);
    }
    for (; start < n; start++) {
        smallest = keys[start] < smallest ? keys[start] : smallest;
        largest = keys[start] > largest ? keys[start] : largest;
    }
    /* The answer's bits are in (low, high]. */
    int64_t low = (int64_t)sampling_bits(smallest) - 1, high = sampling_bits(largest);
    double mass_below = 0;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        float bound = sampling_float((uint32_t)middle);
        double mass = mass_below + sampling_mass_up_to(keys, weights, n, bound);
        int keep_lower = mass > budget;
        ptrdiff_t kept = 0;
        for (ptrdiff_t i = 0; i < n; i++) {
            float key = keys[i], weight = weights[i];
            keys[kept] = key;
            weights[kept] = weight;
            kept += (key <= bound) == keep_lower;
        }
        n = kept;
        if (keep_lower) {
            high = middle;
        } else {
            low = middle;
            mass_below = mass;
        }
    }
    SamplingBoundary found = {sampling_float((uint32_t)high), mass_below, n};
    if (!(mass_below + sampling_block_sum(weights, n) > budget)) found.count = 0;
    return found;
}

/* Keeps weights above bound and the first `ties` of those equal to it, with their ids, in order; returns how many.
 * every_id: weight i has id i, and ids is only written. Groups without such a weight are passed over at once. */
static inline ptrdiff_t sampling_compact(float *weights, int32_t *ids, int every_id, ptrdiff_t n, float bound,
                                  ptrdiff_t ties) {
    ptrdiff_t count = 0, seen = 0;
    for (ptrdiff_t start = 0; start < n; start += SAMPLING_GROUP) {
        ptrdiff_t stop = start + SAMPLING_GROUP < n ? start + SAMPLING_GROUP : n;
        if (stop - start == SAMPLING_GROUP) {
            vf top = v_load(weights + start);
            for (ptrdiff_t i = start + VL; i < stop; i += VL) top = v_max(top, v_load(weights + i));
            if (lanes_max(top) < bound) continue;
        }
        for (ptrdiff_t i = start; i < stop; i++) {
            float weight = weights[i];
            ids[count] = every_id ? (int32_t)i : ids[i];
            weights[count] = weight;
            count += (weight > bound) | ((weight == bound) & (seen < ties));
            seen += weight == bound;
        }
    }
    return count;
}

#endif
