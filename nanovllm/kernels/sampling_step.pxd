from libc.stdint cimport int64_t, uint32_t, uint64_t


# Why a row has no token.
cdef enum SampleStatus:
    SAMPLE_OK = 0
    SAMPLE_NAN = 1         # a logit is NaN
    SAMPLE_INFINITE = 2    # a logit is +inf
    SAMPLE_NOTHING = 3     # every logit is -inf
    SAMPLE_BAD_ID = 4      # an id to penalize, bias or ban is outside the vocabulary
    SAMPLE_BAD_SETTINGS = 5
    SAMPLE_NO_MEMORY = 6


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
    double top_n_sigma          # 0: off
    double dry_multiplier       # 0: off
    double dry_base
    int64_t dry_allowed_length
    int64_t dry_penalty_last_n  # how many of the newest ids DRY sees; -1: all
    int64_t dry_limit           # ids after the newest sequence breaker
    int64_t no_repeat_ngram_size  # 0: off
    uint32_t sample_index       # which of the n completions
    uint32_t flags


cdef packed struct TokenBias:
    int token_id
    float bias


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
    const uint32_t* masks          # (num_masks, ceil(vocab_size / 32))
    const int* mask_rows           # (num_rows) which mask, -1: none; NULL: none for all
    const int* breaker_rows        # (num_rows) the same, which mask of ids that DRY leaves alone
    const TokenBias* biases        # (cu_biases[num_rows])
    const int* cu_biases           # (num_rows + 1); NULL: none for all
    int* token_ids                 # (num_rows) out; -1 where status is not 0
    int* status                    # (num_rows) out


cdef class SampleStep:
    cdef SampleBatch batch
    cdef list keep
    cdef const int* mask_rows_of(self, str name, const uint32_t[:, ::1] masks, const int[::1] rows,
                                 Py_ssize_t num_rows) except? NULL
