"""Turn logits into token ids: masks, penalties, filters and the draw, one row at a time.

Owns the order of processors and the arithmetic of a draw. Must not know of sequences, text or `SamplingParams`.

Order, as in vLLM: mask of allowed ids, banned ids, n-grams (prompt and completion), biases, repetition penalty (prompt
and completion, each distinct id once), frequency and presence penalties (completion only), DRY (the newest ids of
both; a sequence breaker loses nothing), then the argmax of a greedy row (lowest id wins a tie), or temperature,
top_n_sigma, min_p, top_k, top_p, typical_p and the draw. Logits are float32, weights are
exp((logit - max) / temperature) in float32, sums are float64.

- top_n_sigma drops logits more than so many standard deviations, of all that are not -inf, below the largest.
- min_p drops weights below min_p times the largest.
- top_k keeps the k largest logits and all ties with the k-th.
- top_p drops the smallest weights while their cumulative probability is at most 1 - top_p, and always keeps one; of
  equal weights at the border the lowest ids stay.
- typical_p keeps the smallest set of |-log p - entropy|, with ties, whose probability reaches typical_p.
- The draw takes the first kept id, ascending, whose cumulative weight exceeds u times the total; u is 53 bits of
  Philox4x32-10 with the seed as key and (position, sample index, 0) as counter. So a draw depends on the row's
  probabilities and that number alone.

Filters select by thresholds that are found by bisection, never by sorting the vocabulary. A penalized row costs
O(ids seen) on top; a greedy row one pass.
"""

import numpy as np

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from nanovllm.kernels.isa cimport nv_top
from nanovllm.kernels.sampling_filter cimport Kept, filter_row, filter_top
from nanovllm.kernels.sampling_logits cimport process_logits
from nanovllm.kernels.sampling_row cimport SAMPLE_MIN_P_LAST, RowIds, SampleScratch
from nanovllm.kernels.sampling_step cimport SAMPLE_OK, RowParams, SampleBatch, SampleStep, TokenBias

from nanovllm.kernels.sampling_step import BIAS_DTYPE, DRY_UNLIMITED, STATUS_MESSAGES, pack_mask


cdef extern from "csrc/sampling_philox.h" nogil:
    void c_philox4x32 "philox4x32"(uint32_t* words, uint32_t key0, uint32_t key1)
    double sampling_uniform(uint64_t seed, uint32_t sample_index, uint64_t position)


cdef extern from "csrc/sampling_select.h" nogil:
    enum:
        SAMPLING_GROUP
    double sampling_sum(const float* w, Py_ssize_t n)
    Py_ssize_t sampling_pick(const float* w, Py_ssize_t n, double target)


cdef double GREEDY_TEMPERATURE = 1e-5


cdef int argmax(const float* logits, float row_max, const float* group_max) noexcept nogil:
    cdef Py_ssize_t group = 0, i
    while group_max[group] != row_max:
        group += 1
    i = group * SAMPLING_GROUP
    while logits[i] != row_max:
        i += 1
    return <int>i


# Draws one token. Thread-safe as long as each thread has its own scratch. Returns a SampleStatus.
cdef int sample_row(
    float* logits, Py_ssize_t vocab_size, const RowParams* params, const RowIds* ids, const SampleScratch* scratch,
    int* token_id,
) noexcept nogil:
    cdef float row_max = 0
    cdef Kept kept
    cdef int status = process_logits(logits, vocab_size, params, ids, scratch, &row_max)
    token_id[0] = -1
    if status != SAMPLE_OK:
        return status
    if params.temperature < GREEDY_TEMPERATURE:
        token_id[0] = argmax(logits, row_max, scratch.group_max)
        return SAMPLE_OK
    kept = filter_row(logits, vocab_size, row_max, params, scratch)
    token_id[0] = draw(&kept, params, scratch)
    return SAMPLE_OK


cdef int draw(const Kept* kept, const RowParams* params, const SampleScratch* scratch) noexcept nogil:
    cdef double uniform = sampling_uniform(params.seed, params.sample_index, params.position)
    cdef Py_ssize_t choice = sampling_pick(
        scratch.weights, kept.count, uniform * sampling_sum(scratch.weights, kept.count))
    return <int>choice if kept.every_id else scratch.ids[choice]


# Draws from the largest logits of a row, tops[0], tops[stride], .. of `num_threads` threads; -1 where one gave up.
cdef int sample_top(
    const nv_top* tops, int num_threads, Py_ssize_t stride, const RowParams* params, const SampleScratch* scratch,
) noexcept nogil:
    cdef Py_ssize_t count = 0, i
    cdef const nv_top* top
    cdef int tid
    cdef Kept kept
    for tid in range(num_threads):
        top = tops + tid * stride
        if top.count < 0:
            return -1
        for i in range(top.count):  # of different columns, so together not more than the vocabulary
            scratch.weights[count] = top.logits[i]
            scratch.ids[count] = top.ids[i]
            count += 1
    kept = filter_top(count, params, scratch)
    return draw(&kept, params, scratch)


cdef inline const uint32_t* row_mask(const SampleBatch* batch, const int* mask_rows, Py_ssize_t row) noexcept nogil:
    if mask_rows == NULL or mask_rows[row] < 0:
        return NULL
    return batch.masks + mask_rows[row] * ((batch.vocab_size + 31) // 32)


cdef void sample_rows(
    const SampleBatch* batch, Py_ssize_t row_begin, Py_ssize_t row_end, const SampleScratch* scratch,
) noexcept nogil:
    cdef Py_ssize_t row
    cdef RowIds ids
    for row in range(row_begin, row_end):
        ids.history_ids = batch.history_ids + batch.cu_history[row]
        ids.num_history = batch.cu_history[row + 1] - batch.cu_history[row]
        ids.num_prompt = min(<Py_ssize_t>batch.num_prompt_tokens[row], ids.num_history)
        ids.banned_ids = batch.banned_ids + batch.cu_banned[row]
        ids.num_banned = batch.cu_banned[row + 1] - batch.cu_banned[row]
        ids.mask = row_mask(batch, batch.mask_rows, row)
        ids.breakers = row_mask(batch, batch.breaker_rows, row)
        ids.num_biases = 0
        if batch.cu_biases != NULL:
            ids.biases = batch.biases + batch.cu_biases[row]
            ids.num_biases = batch.cu_biases[row + 1] - batch.cu_biases[row]
        batch.status[row] = sample_row(
            batch.logits + row * batch.vocab_size, batch.vocab_size, &batch.params[row], &ids, scratch,
            &batch.token_ids[row],
        )


cdef class SamplingScratch:
    """Memory for one thread's rows: 20 bytes for each id of the vocabulary, allocated once."""

    def __cinit__(self, Py_ssize_t vocab_size):
        if vocab_size < 1 or vocab_size > 2**31 - 1:
            raise ValueError(f"vocab_size is {vocab_size}, expected 1 to 2147483647")
        self.vocab_size = vocab_size
        self.buffers.weights = <float*>malloc(vocab_size * sizeof(float))
        self.buffers.ids = <int*>malloc(vocab_size * sizeof(int))
        self.buffers.keys = <float*>malloc(vocab_size * sizeof(float))
        self.buffers.masses = <float*>malloc(vocab_size * sizeof(float))
        self.buffers.group_max = <float*>malloc((vocab_size // SAMPLING_GROUP + 1) * sizeof(float))
        self.buffers.counts = <int*>calloc(vocab_size, sizeof(int))
        if not (self.buffers.weights and self.buffers.ids and self.buffers.keys and self.buffers.masses
                and self.buffers.group_max and self.buffers.counts):
            raise MemoryError(f"no memory for sampling scratch of {vocab_size} ids")

    def __dealloc__(self):
        free(self.buffers.weights)
        free(self.buffers.ids)
        free(self.buffers.keys)
        free(self.buffers.masses)
        free(self.buffers.group_max)
        free(self.buffers.counts)


def sample(
    float[:, ::1] logits, const RowParams[::1] params, const int[::1] history_ids, const int[::1] cu_history,
    const int[::1] num_prompt_tokens, const int[::1] banned_ids, const int[::1] cu_banned,
    SamplingScratch scratch not None, int[::1] token_ids, int[::1] status, **rules,
):
    """Draw one token for each row of a step.

    Args:
        logits: [num_rows, vocab_size] float32, C-contiguous, overwritten by everything before the greedy choice.
        params: [num_rows] of `ROW_PARAMS_DTYPE`, read-only.
        history_ids: prompt then completion ids of each row, joined; int32, read-only. A row without penalties, n-grams
            and DRY may leave its part empty.
        cu_history: [num_rows + 1] int32, where each row's part begins and ends.
        num_prompt_tokens: [num_rows] int32, how many of each row's ids are prompt.
        banned_ids: ids that each row must not draw, joined; int32, read-only.
        cu_banned: [num_rows + 1] int32.
        scratch: made for at least vocab_size.
        token_ids: [num_rows] int32, written; -1 for a failed row.
        status: [num_rows] int32, written; 0, or a key of `STATUS_MESSAGES`.
        **rules: masks, [num_masks, ceil(vocab_size / 32)] uint32 as `pack_mask` makes them; mask_rows, [num_rows]
            int32, which mask each row has or -1; breaker_rows, the same for the ids that DRY leaves alone; biases, of
            `BIAS_DTYPE`, joined; cu_biases, [num_rows + 1] int32.

    Raises:
        ValueError: shapes or offsets do not fit together.
    """
    cdef SampleStep step = SampleStep(
        logits, params, history_ids, cu_history, num_prompt_tokens, banned_ids, cu_banned, token_ids, status,
        scratch.vocab_size, **rules)
    cdef Py_ssize_t num_rows = logits.shape[0]
    with nogil:
        sample_rows(&step.batch, 0, num_rows, &scratch.buffers)


def probabilities(
    const float[::1] logits, *, double temperature=1.0, int64_t top_k=0, double top_p=1.0, double min_p=0.0,
    double typical_p=1.0, double repetition_penalty=1.0, double presence_penalty=0.0, double frequency_penalty=0.0,
    double top_n_sigma=0.0, double dry_multiplier=0.0, double dry_base=1.75, int64_t dry_allowed_length=2,
    int64_t dry_penalty_last_n=-1, int64_t dry_limit=DRY_UNLIMITED, int64_t no_repeat_ngram_size=0,
    prompt_ids=(), output_ids=(), banned_ids=(), allowed_ids=None, breaker_ids=(), logit_bias=None, str order="vllm",
):
    """Return the distribution that a draw with these settings has, as float64 [vocab_size].

    Args:
        logits: [vocab_size] float32, read-only.
        temperature: and the other settings: as in `SamplingParams`.
        dry_limit: ids after the newest sequence breaker.
        prompt_ids: ids of the prompt.
        output_ids: ids of the completion so far.
        banned_ids: ids of probability 0.
        allowed_ids: if not None, all others have probability 0.
        breaker_ids: ids that DRY leaves alone.
        logit_bias: {id: bias}.
        order: "vllm", or "hf" to measure min_p after top_p, as transformers does.

    Raises:
        ValueError: the row has no distribution, or order is unknown.
    """
    if order not in ("vllm", "hf"):
        raise ValueError(f"order is {order!r}, expected 'vllm' or 'hf'")
    cdef SamplingScratch scratch = SamplingScratch(logits.shape[0])
    cdef float[::1] row = np.array(logits, dtype=np.float32)
    # One unused entry keeps the address valid when there are no ids.
    cdef int[::1] history = np.array([*prompt_ids, *output_ids, 0], dtype=np.int32)
    cdef int[::1] banned = np.array([*banned_ids, 0], dtype=np.int32)
    cdef TokenBias[::1] biases = np.array([*(logit_bias or {}).items(), (0, 0.0)], dtype=BIAS_DTYPE)
    cdef uint32_t[::1] mask = pack_mask(() if allowed_ids is None else allowed_ids, logits.shape[0])
    cdef uint32_t[::1] breakers = pack_mask(breaker_ids, logits.shape[0])
    cdef RowIds ids
    ids.history_ids, ids.num_history, ids.num_prompt = &history[0], history.shape[0] - 1, len(prompt_ids)
    ids.banned_ids, ids.num_banned = &banned[0], banned.shape[0] - 1
    ids.biases, ids.num_biases = &biases[0], biases.shape[0] - 1
    ids.mask, ids.breakers = NULL if allowed_ids is None else &mask[0], &breakers[0]
    cdef RowParams params
    cdef Kept kept
    cdef float row_max = 0
    cdef double total
    cdef Py_ssize_t i
    params.temperature, params.top_k, params.top_p, params.min_p = temperature, top_k, top_p, min_p
    params.typical_p, params.repetition_penalty = typical_p, repetition_penalty
    params.presence_penalty, params.frequency_penalty = presence_penalty, frequency_penalty
    params.seed, params.position, params.sample_index = 0, 0, 0
    params.flags = SAMPLE_MIN_P_LAST if order == "hf" else 0
    params.top_n_sigma, params.dry_multiplier, params.dry_base = top_n_sigma, dry_multiplier, dry_base
    params.dry_allowed_length, params.dry_penalty_last_n = dry_allowed_length, dry_penalty_last_n
    params.dry_limit, params.no_repeat_ngram_size = dry_limit, no_repeat_ngram_size
    cdef int status = process_logits(&row[0], row.shape[0], &params, &ids, &scratch.buffers, &row_max)
    if status != SAMPLE_OK:
        raise ValueError(STATUS_MESSAGES[status])
    result = np.zeros(row.shape[0], dtype=np.float64)
    cdef double[::1] out = result
    if temperature < GREEDY_TEMPERATURE:
        out[argmax(&row[0], row_max, scratch.buffers.group_max)] = 1.0
        return result
    kept = filter_row(&row[0], row.shape[0], row_max, &params, &scratch.buffers)
    total = sampling_sum(scratch.buffers.weights, kept.count)
    for i in range(kept.count):
        out[i if kept.every_id else scratch.buffers.ids[i]] = scratch.buffers.weights[i] / total
    return result


def philox4x32(counter, key):
    """Return the four words of Philox4x32-10 for a counter of four and a key of two 32-bit words."""
    cdef uint32_t[4] words = counter
    c_philox4x32(words, key[0], key[1])
    return words[0], words[1], words[2], words[3]


def philox_uniform(uint64_t seed, uint32_t sample_index, uint64_t position):
    """Return the number in [0, 1) that decides the draw at this place."""
    return sampling_uniform(seed, sample_index, position)
