"""Temperature and filters: which ids of a row may be drawn, and with what weights.

Thresholds are found by bisection, never by sorting the vocabulary. The filters are those that sampling.pyx names.
"""

from libc.math cimport INFINITY, fabs, floor, log, nextafter, nextafterf
from libc.string cimport memcpy

from nanovllm.kernels.sampling_row cimport SAMPLE_MIN_P_LAST, SampleScratch
from nanovllm.kernels.sampling_step cimport RowParams


cdef extern from "csrc/sampling_select.h" nogil:
    ctypedef struct SamplingBoundary:
        float key
        double mass_below
        Py_ssize_t count
    enum:
        SAMPLING_GROUP
    void sampling_exp_row(const float* x, Py_ssize_t n, float row_max, float scale, float* out)
    double sampling_sum(const float* w, Py_ssize_t n)
    float sampling_kth_largest(const float* x, Py_ssize_t n, Py_ssize_t k)
    double sampling_mass_up_to(const float* keys, const float* weights, Py_ssize_t n, float bound)
    SamplingBoundary sampling_boundary(float* keys, float* weights, Py_ssize_t n, double budget)
    Py_ssize_t sampling_compact(
        float* weights, int* ids, int every_id, Py_ssize_t n, float bound, Py_ssize_t ties)


cdef extern from "csrc/sampling_edit.h" nogil:
    double sampling_deviation(const float* logits, Py_ssize_t n, float row_max)


# Puts logits of at least `bound` into scratch.weights with their ids; groups below it are skipped unread.
cdef Py_ssize_t gather_from(
    const float* logits, Py_ssize_t vocab_size, float bound, const SampleScratch* scratch,
) noexcept nogil:
    cdef Py_ssize_t group, i, start, stop, count = 0
    for group in range((vocab_size + SAMPLING_GROUP - 1) // SAMPLING_GROUP):
        if scratch.group_max[group] < bound:
            continue
        start = group * SAMPLING_GROUP
        stop = min(start + SAMPLING_GROUP, vocab_size)
        for i in range(start, stop):
            scratch.weights[count] = logits[i]
            scratch.ids[count] = <int>i
            count += logits[i] >= bound
    return count


# Keeps weights above `bound` and the first `ties` of those equal to it.
cdef inline void keep_from(Kept* kept, float bound, Py_ssize_t ties, const SampleScratch* scratch) noexcept nogil:
    kept.count = sampling_compact(scratch.weights, scratch.ids, kept.every_id, kept.count, bound, ties)
    kept.every_id = False


# Gathers the k largest logits. The k-th largest group maximum is a lower bound of the k-th largest logit.
cdef void gather_top_k(
    Kept* kept, const float* logits, Py_ssize_t vocab_size, Py_ssize_t k, const SampleScratch* scratch,
) noexcept nogil:
    cdef Py_ssize_t num_groups = (vocab_size + SAMPLING_GROUP - 1) // SAMPLING_GROUP
    kept.every_id = False
    if k > num_groups:
        kept.count = gather_from(logits, vocab_size, sampling_kth_largest(logits, vocab_size, k), scratch)
        return
    kept.count = gather_from(logits, vocab_size, sampling_kth_largest(scratch.group_max, num_groups, k), scratch)
    keep_from(kept, sampling_kth_largest(scratch.weights, kept.count, k), kept.count, scratch)


cdef void keep_top_p(Kept* kept, double top_p, const SampleScratch* scratch) noexcept nogil:
    cdef double budget = (1.0 - top_p) * sampling_sum(scratch.weights, kept.count)
    cdef double removed = 0.0
    # All weights up to budget / count go for certain: together they cannot exceed the budget. Rounded down, so that
    # this holds in float32 too and the largest weight, 1, stays.
    cdef float certain = nextafterf(<float>(budget / kept.count), <float>-INFINITY)
    cdef SamplingBoundary border
    budget -= sampling_mass_up_to(scratch.weights, scratch.weights, kept.count, certain)
    keep_from(kept, certain, 0, scratch)
    memcpy(scratch.keys, scratch.weights, kept.count * sizeof(float))
    border = sampling_boundary(scratch.keys, scratch.keys, kept.count, budget)
    if border.count == 0:
        border.count = 1
    else:
        removed = min(floor((budget - border.mass_below) / border.key), border.count - 1.0)
    keep_from(kept, border.key, border.count - <Py_ssize_t>removed if removed > 0 else border.count, scratch)


# The filters that only see weights.
cdef void filter_weights(Kept* kept, const RowParams* params, const SampleScratch* scratch) noexcept nogil:
    cdef bint min_p_last = params.flags & SAMPLE_MIN_P_LAST
    if params.min_p > 0 and not min_p_last:
        keep_from(kept, <float>params.min_p, kept.count, scratch)
    if params.top_p < 1:
        keep_top_p(kept, params.top_p, scratch)
    if params.min_p > 0 and min_p_last:
        keep_from(kept, <float>params.min_p, kept.count, scratch)


# Log of an unnormalised probability, from the logit and so without a logarithm.
cdef inline double log_weight(
    const float* logits, float row_max, double temperature, const Kept* kept, const int* ids, Py_ssize_t i,
) noexcept nogil:
    return (<double>logits[i if kept.every_id else ids[i]] - row_max) / temperature


# -log p - entropy is mean_log - log_weight: the log of the total cancels.
cdef void keep_typical(
    Kept* kept, const float* logits, float row_max, const RowParams* params, const SampleScratch* scratch,
) noexcept nogil:
    cdef Py_ssize_t i, count = 0
    cdef double total = sampling_sum(scratch.weights, kept.count), mean_log = 0.0
    cdef float weight, distance
    cdef SamplingBoundary border
    for i in range(kept.count):
        weight = scratch.weights[i]
        if weight > 0:
            mean_log += weight * log_weight(logits, row_max, params.temperature, kept, scratch.ids, i)
    mean_log /= total
    for i in range(kept.count):
        scratch.keys[i] = <float>fabs(
            log_weight(logits, row_max, params.temperature, kept, scratch.ids, i) - mean_log)
    memcpy(scratch.masses, scratch.weights, kept.count * sizeof(float))
    # The set may reach the mass exactly, while the border is where a budget is exceeded.
    border = sampling_boundary(
        scratch.keys, scratch.masses, kept.count, nextafter(params.typical_p * total, 0.0))
    for i in range(kept.count):
        distance = <float>fabs(log_weight(logits, row_max, params.temperature, kept, scratch.ids, i) - mean_log)
        scratch.weights[count] = scratch.weights[i]
        scratch.ids[count] = <int>i if kept.every_id else scratch.ids[i]
        count += distance <= border.key
    kept.count = count
    kept.every_id = False


# Temperature and filters; the kept weights are in scratch.weights.
cdef Kept filter_row(
    const float* logits, Py_ssize_t vocab_size, float row_max, const RowParams* params, const SampleScratch* scratch,
) noexcept nogil:
    cdef Kept kept
    cdef bint min_p_last = params.flags & SAMPLE_MIN_P_LAST
    cdef const float* source = scratch.weights
    # top_n_sigma, min_p and top_k each keep a range of the largest logits, so their order does not matter.
    cdef double bound = -INFINITY
    if params.top_n_sigma > 0:
        bound = row_max - params.top_n_sigma * sampling_deviation(logits, vocab_size, row_max)
    cdef float sigma_bound = <float>bound
    kept.count = vocab_size
    kept.every_id = True
    if 0 < params.top_k < vocab_size:
        gather_top_k(&kept, logits, vocab_size, <Py_ssize_t>params.top_k, scratch)
        if params.top_n_sigma > 0:
            keep_from(&kept, sigma_bound, kept.count, scratch)
    elif params.top_n_sigma > 0:
        kept.count = gather_from(logits, vocab_size, sigma_bound, scratch)
        kept.every_id = False
    elif params.min_p > 0 and not min_p_last:
        # A little below the exact bound, which is applied to the weights: it skips exponentials, it decides nothing.
        bound = row_max + params.temperature * (log(params.min_p) - 1e-4)
        kept.count = gather_from(logits, vocab_size, nextafterf(<float>bound, <float>-INFINITY), scratch)
        kept.every_id = False
    else:
        source = logits
    sampling_exp_row(source, kept.count, row_max, <float>(1.0 / params.temperature), scratch.weights)
    filter_weights(&kept, params, scratch)
    if params.typical_p < 1:
        keep_typical(&kept, logits, row_max, params, scratch)
    return kept


# The k largest of `count` logits that are in scratch.weights with their ids and hold at least all of these; the same
# bits as filter_row makes of the whole row. Without top_n_sigma and typical_p, which see other logits too.
cdef Kept filter_top(Py_ssize_t count, const RowParams* params, const SampleScratch* scratch) noexcept nogil:
    cdef Kept kept
    cdef float row_max = -INFINITY
    cdef Py_ssize_t i
    kept.count, kept.every_id = count, False
    for i in range(count):
        row_max = max(row_max, scratch.weights[i])
    if count > params.top_k:
        keep_from(&kept, sampling_kth_largest(scratch.weights, count, params.top_k), count, scratch)
    sampling_exp_row(scratch.weights, kept.count, row_max, <float>(1.0 / params.temperature), scratch.weights)
    filter_weights(&kept, params, scratch)
    return kept
