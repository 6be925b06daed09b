from libc.stdint cimport int64_t, uint32_t, uint64_t


# Why a row has no token.
cdef enum SampleStatus:
    SAMPLE_OK = 0
    SAMPLE_NAN = 1         # a logit is NaN
    SAMPLE_INFINITE = 2    # a logit is +inf
    SAMPLE_NOTHING = 3     # every logit is -inf
    SAMPLE_BAD_ID = 4      # an id to penalize or ban is outside the vocabulary
    SAMPLE_BAD_SETTINGS = 5


# Bits of RowParams.flags.
cdef enum:
    SAMPLE_MIN_P_LAST = 1  # min_p after top_p, as transformers does, instead of before top_k


# Settings of one row. Eight-byte fields first, so that there is no padding; ROW_PARAMS_DTYPE is the same layout.
cdef struct RowParams:
    double temperature          # below 1e-5: greedy
    double top_p                # 1: off
    double min_p                # 0: off
    double typical_p            # 1: off
    double repetition_penalty   # 1: off
    double presence_penalty     # 0: off
    double frequency_penalty    # 0: off
    uint64_t seed
    uint64_t position           # number of tokens of this completion before the one to draw
    int64_t top_k               # 0: off
    uint32_t sample_index       # which of the n completions
    uint32_t flags


# Memory that one thread needs while it works on one row.
cdef struct SampleScratch:
    float* weights    # (vocab_size)
    int* ids          # (vocab_size)
    float* keys       # (vocab_size)
    float* masses     # (vocab_size)
    float* group_max  # (ceil(vocab_size / SAMPLING_GROUP))
    int* counts       # (vocab_size), all zero between rows


# One step's rows; row i of the ragged arrays is [cu_x[i], cu_x[i + 1]).
cdef struct SampleBatch:
    float* logits                  # (num_rows, vocab_size), overwritten
    Py_ssize_t vocab_size
    const RowParams* params        # (num_rows)
    const int* history_ids         # (cu_history[num_rows]) prompt then completion
    const int* cu_history          # (num_rows + 1)
    const int* num_prompt_tokens   # (num_rows)
    const int* banned_ids          # (cu_banned[num_rows])
    const int* cu_banned           # (num_rows + 1)
    int* token_ids                 # (num_rows) out; -1 where status is not 0
    int* status                    # (num_rows) out


cdef class SamplingScratch:
    cdef SampleScratch buffers
    cdef readonly Py_ssize_t vocab_size


cdef int sample_row(
    float* logits, Py_ssize_t vocab_size, const RowParams* params,
    const int* prompt_ids, Py_ssize_t num_prompt, const int* output_ids, Py_ssize_t num_output,
    const int* banned_ids, Py_ssize_t num_banned, const SampleScratch* scratch, int* token_id,
) noexcept nogil

cdef void sample_rows(
    const SampleBatch* batch, Py_ssize_t row_begin, Py_ssize_t row_end, const SampleScratch* scratch,
) noexcept nogil
