"""One row of a sampling step: the ids that concern it, and the memory a thread needs while it works on it."""

from libc.stdint cimport uint32_t

from nanovllm.kernels.sampling_step cimport TokenBias


# Bits of RowParams.flags.
cdef enum:
    SAMPLE_MIN_P_LAST = 1  # min_p after top_p, as transformers does, instead of before top_k


# The ids that concern one row.
cdef struct RowIds:
    const int* history_ids    # prompt then completion
    Py_ssize_t num_history
    Py_ssize_t num_prompt     # at most num_history
    const int* banned_ids
    Py_ssize_t num_banned
    const uint32_t* mask      # (ceil(vocab_size / 32)) bits of allowed ids; NULL: all
    const uint32_t* breakers  # the same bits, of ids that DRY leaves alone; NULL: none
    const TokenBias* biases
    Py_ssize_t num_biases


# Memory that one thread needs while it works on one row.
cdef struct SampleScratch:
    float* weights    # (vocab_size)
    int* ids          # (vocab_size)
    float* keys       # (vocab_size)
    float* masses     # (vocab_size)
    float* group_max  # (ceil(vocab_size / SAMPLING_GROUP))
    int* counts       # (vocab_size), all zero between rows
