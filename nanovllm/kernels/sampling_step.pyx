"""The arrays of one sampling step: their layouts, how they are filled, and the check that they fit together.

Must not know how a token is drawn; `sampling.pyx` reads what `SampleStep` has checked.
"""

import numpy as np

from libc.stdint cimport uint32_t


# Longest repetition that counts where no sequence breaker cuts it short.
DRY_UNLIMITED = 2**62

# Layout of `RowParams` in sampling_step.pxd.
ROW_PARAMS_DTYPE = np.dtype([
    ("temperature", np.float64), ("top_p", np.float64), ("min_p", np.float64), ("typical_p", np.float64),
    ("repetition_penalty", np.float64), ("presence_penalty", np.float64), ("frequency_penalty", np.float64),
    ("seed", np.uint64), ("position", np.uint64), ("top_k", np.int64),
    ("top_n_sigma", np.float64), ("dry_multiplier", np.float64), ("dry_base", np.float64),
    ("dry_allowed_length", np.int64), ("dry_penalty_last_n", np.int64), ("dry_limit", np.int64),
    ("no_repeat_ngram_size", np.int64), ("sample_index", np.uint32), ("flags", np.uint32),
])

# Layout of `TokenBias` in sampling_step.pxd.
BIAS_DTYPE = np.dtype([("token_id", np.int32), ("bias", np.float32)])

# Status of a row of which masks and bans have left nothing.
NOTHING_ALLOWED = SAMPLE_NOTHING

STATUS_MESSAGES = {
    SAMPLE_NAN: "the model's logits contain NaN",
    SAMPLE_INFINITE: "the model's logits contain +inf",
    SAMPLE_NOTHING: "no token is allowed: every logit is -inf",
    SAMPLE_BAD_ID: "a token id to penalize, bias or ban is outside the model's vocabulary",
    SAMPLE_BAD_SETTINGS: "a sampling setting is NaN or out of range",
    SAMPLE_NO_MEMORY: "no memory to look for repetitions",
}


def pack_row(settings, seed=0, sample_index=0, position=0, dry_limit=DRY_UNLIMITED):
    """Return one entry of a `ROW_PARAMS_DTYPE` array as a tuple.

    Args:
        settings: any object with the attributes of the sampling settings.
        seed: 64-bit key of the row's random stream; negative ones are taken modulo 2**64.
        sample_index: which of the n completions.
        position: number of tokens of this completion before the one to draw.
        dry_limit: ids after the newest sequence breaker.
    """
    return (
        settings.temperature, settings.top_p, settings.min_p, settings.typical_p, settings.repetition_penalty,
        settings.presence_penalty, settings.frequency_penalty, seed % 2**64, position, settings.top_k,
        settings.top_n_sigma, settings.dry_multiplier, settings.dry_base, settings.dry_allowed_length,
        settings.dry_penalty_last_n, dry_limit, settings.no_repeat_ngram_size, sample_index, 0,
    )


def pack_mask(token_ids, Py_ssize_t vocab_size):
    """Return the mask that allows these ids alone: uint32 [ceil(vocab_size / 32)], bit i % 32 of word i // 32."""
    allowed = np.zeros((vocab_size + 31) // 32 * 32, np.uint8)
    allowed[np.asarray(token_ids, np.int64)] = 1
    return np.packbits(allowed, bitorder="little").view("<u4").astype(np.uint32)


cdef check_ragged(str name, const int[::1] cu, Py_ssize_t num_rows, Py_ssize_t total):
    cdef Py_ssize_t i
    if cu.shape[0] != num_rows + 1 or cu[0] != 0 or cu[num_rows] != total:
        raise ValueError(f"{name} must have {num_rows + 1} entries from 0 to {total}")
    for i in range(num_rows):
        if cu[i + 1] < cu[i]:
            raise ValueError(f"{name} must not fall: entry {i + 1} is {cu[i + 1]} after {cu[i]}")


cdef class SampleStep:
    """The arrays of one step, checked and kept alive; the arguments are those of `sample`."""

    def __init__(
        self, float[:, ::1] logits, const RowParams[::1] params, const int[::1] history_ids,
        const int[::1] cu_history, const int[::1] num_prompt_tokens, const int[::1] banned_ids,
        const int[::1] cu_banned, int[::1] token_ids, int[::1] status, Py_ssize_t max_vocab_size, *,
        const uint32_t[:, ::1] masks=None, const int[::1] mask_rows=None, const int[::1] breaker_rows=None,
        const TokenBias[::1] biases=None, const int[::1] cu_biases=None,
    ):
        cdef Py_ssize_t num_rows = logits.shape[0], i
        if not (params.shape[0] == num_prompt_tokens.shape[0] == num_rows):
            raise ValueError(f"params and num_prompt_tokens must have {num_rows} entries, like logits")
        if token_ids.shape[0] != num_rows or status.shape[0] != num_rows:
            raise ValueError(f"token_ids and status must have {num_rows} entries, like logits")
        if logits.shape[1] < 1 or logits.shape[1] > max_vocab_size:
            raise ValueError(f"logits have {logits.shape[1]} columns, expected 1 to {max_vocab_size} as in scratch")
        check_ragged("cu_history", cu_history, num_rows, history_ids.shape[0])
        check_ragged("cu_banned", cu_banned, num_rows, banned_ids.shape[0])
        for i in range(num_rows):
            if num_prompt_tokens[i] < 0:
                raise ValueError(f"num_prompt_tokens[{i}] is {num_prompt_tokens[i]}, expected at least 0")
        self.batch.vocab_size = logits.shape[1]
        self.keep = [logits, params, history_ids, cu_history, num_prompt_tokens, banned_ids, cu_banned]
        self.keep += [token_ids, status, masks, mask_rows, breaker_rows, biases, cu_biases]
        if num_rows == 0:
            return
        self.batch.masks = &masks[0, 0] if masks is not None and masks.shape[0] else NULL
        self.batch.mask_rows = self.mask_rows_of("mask_rows", masks, mask_rows, num_rows)
        self.batch.breaker_rows = self.mask_rows_of("breaker_rows", masks, breaker_rows, num_rows)
        if cu_biases is not None:
            check_ragged("cu_biases", cu_biases, num_rows, 0 if biases is None else biases.shape[0])
            self.batch.cu_biases = &cu_biases[0]
            self.batch.biases = &biases[0] if biases is not None and biases.shape[0] else NULL
        self.batch.logits, self.batch.params = &logits[0, 0], &params[0]
        self.batch.history_ids = &history_ids[0] if history_ids.shape[0] else NULL
        self.batch.banned_ids = &banned_ids[0] if banned_ids.shape[0] else NULL
        self.batch.cu_history, self.batch.cu_banned = &cu_history[0], &cu_banned[0]
        self.batch.num_prompt_tokens = &num_prompt_tokens[0]
        self.batch.token_ids, self.batch.status = &token_ids[0], &status[0]

    cdef const int* mask_rows_of(self, str name, const uint32_t[:, ::1] masks, const int[::1] rows,
                                 Py_ssize_t num_rows) except? NULL:
        cdef Py_ssize_t i, num_masks = 0 if masks is None else masks.shape[0]
        cdef Py_ssize_t num_words = (self.batch.vocab_size + 31) // 32
        if rows is None:
            return NULL
        if rows.shape[0] != num_rows:
            raise ValueError(f"{name} must have {num_rows} entries, like logits")
        if num_masks > 0 and masks.shape[1] != num_words:
            raise ValueError(f"masks have {masks.shape[1]} words, expected {num_words} for the columns of logits")
        for i in range(num_rows):
            if rows[i] < -1 or rows[i] >= num_masks:
                raise ValueError(f"{name}[{i}] is {rows[i]}, expected -1 to {num_masks - 1}")
        return &rows[0]
