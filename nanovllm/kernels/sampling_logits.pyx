"""What a row's settings do to its logits before the greedy choice: mask, bans, biases, penalties, DRY.

Settings and ids are checked here, since they come from outside. The order is the one that sampling.pyx names.
"""

from libc.math cimport INFINITY
from libc.stdint cimport uint32_t

from nanovllm.kernels.sampling_row cimport RowIds, SampleScratch
from nanovllm.kernels.sampling_step cimport (
    SAMPLE_BAD_ID, SAMPLE_BAD_SETTINGS, SAMPLE_INFINITE, SAMPLE_NAN, SAMPLE_NO_MEMORY, SAMPLE_NOTHING, SAMPLE_OK,
    RowParams,
)


cdef extern from "csrc/sampling_select.h" nogil:
    float sampling_group_maxima(const float* x, Py_ssize_t n, float* group_max, int* has_nan)


cdef extern from "csrc/sampling_edit.h" nogil:
    void sampling_mask(float* logits, Py_ssize_t vocab_size, const uint32_t* mask)
    void sampling_ban_ngrams(float* logits, const int* history, Py_ssize_t num_history, Py_ssize_t size)
    int sampling_dry(
        float* logits, const int* window, Py_ssize_t num_window, double multiplier, double base,
        Py_ssize_t allowed_length, Py_ssize_t limit, const uint32_t* breakers, int* longest)


# False for NaN. Values that merely mean "off" pass.
cdef inline bint settings_in_range(const RowParams* params) noexcept nogil:
    return (
        0 <= params.temperature < INFINITY and params.top_p > 0 and params.min_p <= 1 and params.typical_p > 0
        and params.repetition_penalty > 0 and params.top_n_sigma >= 0 and 0 <= params.dry_multiplier < INFINITY
        and params.dry_base >= 1 and params.dry_allowed_length >= 1 and params.no_repeat_ngram_size >= 0
    )


cdef inline bint ids_in_range(const int* ids, Py_ssize_t count, Py_ssize_t vocab_size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        if ids[i] < 0 or ids[i] >= vocab_size:
            return False
    return True


cdef inline float penalized(float logit, const RowParams* params, int count) noexcept nogil:
    cdef double value = logit
    if params.repetition_penalty != 1.0:
        value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
    if count > 0:
        value = value - params.frequency_penalty * count - params.presence_penalty
    return <float>value


# counts: all zero on entry and on return; -1 marks an id that has its penalty.
cdef void apply_penalties(
    float* logits, const RowParams* params, const int* prompt_ids, Py_ssize_t num_prompt,
    const int* output_ids, Py_ssize_t num_output, int* counts,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef int token_id
    for i in range(num_output):
        counts[output_ids[i]] += 1
    for i in range(num_output):
        token_id = output_ids[i]
        if counts[token_id] > 0:
            logits[token_id] = penalized(logits[token_id], params, counts[token_id])
            counts[token_id] = -1
    if params.repetition_penalty != 1.0:
        for i in range(num_prompt):
            token_id = prompt_ids[i]
            if counts[token_id] == 0:
                logits[token_id] = penalized(logits[token_id], params, 0)
                counts[token_id] = -1
        for i in range(num_prompt):
            counts[prompt_ids[i]] = 0
    for i in range(num_output):
        counts[output_ids[i]] = 0


cdef inline bint needs_history(const RowParams* params) noexcept nogil:
    return (
        params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        or params.dry_multiplier > 0 or params.no_repeat_ngram_size > 0
    )


# Mask, bans and biases; the ids have been checked.
cdef void apply_rules(float* logits, Py_ssize_t vocab_size, const RowParams* params, const RowIds* ids) noexcept nogil:
    cdef Py_ssize_t i
    if ids.mask != NULL:
        sampling_mask(logits, vocab_size, ids.mask)
    for i in range(ids.num_banned):
        logits[ids.banned_ids[i]] = <float>-INFINITY
    if 0 < params.no_repeat_ngram_size <= ids.num_history:
        sampling_ban_ngrams(logits, ids.history_ids, ids.num_history, <Py_ssize_t>params.no_repeat_ngram_size)
    for i in range(ids.num_biases):
        logits[ids.biases[i].token_id] += ids.biases[i].bias


# Everything before the greedy choice; fills scratch.group_max and row_max.
cdef int process_logits(
    float* logits, Py_ssize_t vocab_size, const RowParams* params, const RowIds* ids, const SampleScratch* scratch,
    float* row_max,
) noexcept nogil:
    cdef Py_ssize_t i, window = ids.num_history
    cdef int has_nan
    if not settings_in_range(params):
        return SAMPLE_BAD_SETTINGS
    if not ids_in_range(ids.banned_ids, ids.num_banned, vocab_size):
        return SAMPLE_BAD_ID
    for i in range(ids.num_biases):
        if ids.biases[i].token_id < 0 or ids.biases[i].token_id >= vocab_size:
            return SAMPLE_BAD_ID
    if needs_history(params) and not ids_in_range(ids.history_ids, ids.num_history, vocab_size):
        return SAMPLE_BAD_ID
    apply_rules(logits, vocab_size, params, ids)
    if params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
        apply_penalties(
            logits, params, ids.history_ids, ids.num_prompt, ids.history_ids + ids.num_prompt,
            ids.num_history - ids.num_prompt, scratch.counts)
    if params.dry_multiplier > 0:
        if params.dry_penalty_last_n >= 0:
            window = min(window, <Py_ssize_t>params.dry_penalty_last_n)
        if not sampling_dry(
            logits, ids.history_ids + ids.num_history - window, window, params.dry_multiplier, params.dry_base,
            <Py_ssize_t>params.dry_allowed_length, <Py_ssize_t>params.dry_limit, ids.breakers, scratch.counts,
        ):
            return SAMPLE_NO_MEMORY
    row_max[0] = sampling_group_maxima(logits, vocab_size, scratch.group_max, &has_nan)
    if has_nan:
        return SAMPLE_NAN
    if row_max[0] == <float>INFINITY:
        return SAMPLE_INFINITE
    if row_max[0] == <float>-INFINITY:
        return SAMPLE_NOTHING
    return SAMPLE_OK
