"""NumPy twin of the sampling kernel: the same definitions in float64, by sorting, one plain function for each step.

Written for reading and as an oracle of the tests; nothing at run time uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

_WORD = 2**32


def penalize(
    logits: np.ndarray,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    repetition_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
) -> np.ndarray:
    """Return the logits after repetition, frequency and presence penalties."""
    scores = np.array(logits, dtype=np.float64)
    seen = np.zeros(scores.size, dtype=bool)
    seen[np.array([*prompt_ids, *output_ids], dtype=np.int64)] = True
    counts = np.bincount(np.array(output_ids, dtype=np.int64), minlength=scores.size)
    repeated = np.where(scores > 0, scores / repetition_penalty, scores * repetition_penalty)
    scores = np.where(seen, repeated, scores)
    return scores - frequency_penalty * counts - presence_penalty * (counts > 0)


def ban_ngrams(scores: np.ndarray, ids: Sequence[int], size: int) -> np.ndarray:
    """Give -inf to each id that would make the last size - 1 ids an n-gram that came before."""
    ids, scores = [int(i) for i in ids], scores.copy()
    for end in range(size, len(ids) + 1):
        if ids[end - size : end - 1] == ids[len(ids) - size + 1 :]:
            scores[ids[end - 1]] = -np.inf
    return scores


def penalize_repetitions(
    scores: np.ndarray,
    ids: Sequence[int],
    multiplier: float,
    base: float,
    allowed_length: int,
    last_n: int = -1,
    limit: int = 2**62,
    breaker_ids: Sequence[int] = (),
) -> np.ndarray:
    """Return the scores after DRY: multiplier * base ** (length - allowed_length) for what prolongs a repetition.

    Of an id that came before, `length` is how many ids before it equal the last ones of the window.
    """
    window = [int(i) for i in ids][len(ids) - last_n if 0 <= last_n < len(ids) else 0 :]
    longest: dict[int, int] = {}
    for at in range(1, len(window)):
        length = 0
        while length < at and window[at - 1 - length] == window[-1 - length]:
            length += 1
        longest[window[at]] = max(longest.get(window[at], 0), min(length, limit))
    scores = scores.copy()
    for token_id, length in longest.items():
        if length >= allowed_length and token_id not in breaker_ids:
            scores[token_id] -= multiplier * base ** (length - allowed_length)
    return scores


def keep_top_n_sigma(scores: np.ndarray, top_n_sigma: float) -> np.ndarray:
    """Drop scores more than so many standard deviations, of those that are not -inf, below the largest."""
    return np.where(scores < scores.max() - top_n_sigma * scores[scores > -np.inf].std(), -np.inf, scores)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return exp(scores) scaled to sum 1; -inf gives 0."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def keep_min_p(scores: np.ndarray, min_p: float) -> np.ndarray:
    """Drop scores whose probability is below min_p times the largest."""
    p = softmax(scores)
    return np.where(p < min_p * p.max(), -np.inf, scores)


def keep_top_k(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Drop scores below the k-th largest; ties with it stay."""
    if not 0 < top_k < scores.size:
        return scores
    return np.where(scores < np.sort(scores)[-top_k], -np.inf, scores)


def keep_top_p(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Drop the least likely while their cumulative probability is <= 1 - top_p; the most likely stays.

    Of equal scores the one with the highest id goes first.
    """
    p = softmax(scores)
    ascending = np.lexsort((-np.arange(p.size), p))
    removed = np.cumsum(p[ascending]) <= 1.0 - top_p
    removed[-1] = False
    kept = scores.copy()
    kept[ascending[removed]] = -np.inf
    return kept


def keep_typical(scores: np.ndarray, typical_p: float) -> np.ndarray:
    """Keep the ids nearest to the entropy until their probability reaches typical_p; ties with the last stay."""
    p = softmax(scores)
    possible = p > 0
    surprise = np.full(p.size, np.inf)
    surprise[possible] = -np.log(p[possible])
    entropy = float((p[possible] * surprise[possible]).sum())
    distance = np.abs(surprise - entropy)
    ascending = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(p[ascending]) < typical_p).sum()), p.size - 1)
    return np.where(distance > distance[ascending[last]], -np.inf, scores)


def probabilities(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    top_n_sigma: float = 0.0,
    dry_multiplier: float = 0.0,
    dry_base: float = 1.75,
    dry_allowed_length: int = 2,
    dry_penalty_last_n: int = -1,
    dry_limit: int = 2**62,
    no_repeat_ngram_size: int = 0,
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
    banned_ids: Sequence[int] = (),
    allowed_ids: Sequence[int] | None = None,
    breaker_ids: Sequence[int] = (),
    logit_bias: Mapping[int, float] | None = None,
    order: str = "vllm",
) -> np.ndarray:
    """Return the distribution that a draw has; the arguments are those of the kernel's `probabilities`."""
    scores = np.array(logits, dtype=np.float64)
    history = [*prompt_ids, *output_ids]
    if allowed_ids is not None:
        scores = np.where(np.isin(np.arange(scores.size), allowed_ids), scores, -np.inf)
    scores[np.array(banned_ids, dtype=np.int64)] = -np.inf
    if no_repeat_ngram_size > 0:
        scores = ban_ngrams(scores, history, no_repeat_ngram_size)
    for token_id, bias in (logit_bias or {}).items():
        scores[token_id] += bias
    scores = penalize(scores, prompt_ids, output_ids, repetition_penalty, frequency_penalty, presence_penalty)
    if dry_multiplier > 0:
        scores = penalize_repetitions(
            scores, history, dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_limit, breaker_ids
        )
    if temperature < 1e-5:
        return np.eye(1, scores.size, int(np.argmax(scores)))[0]
    scores = scores / temperature
    if top_n_sigma > 0:
        scores = keep_top_n_sigma(scores, top_n_sigma)
    if order == "vllm":
        scores = keep_min_p(scores, min_p)
    scores = keep_top_k(scores, top_k)
    if top_p < 1.0:
        scores = keep_top_p(scores, top_p)
    if order == "hf":
        scores = keep_min_p(scores, min_p)
    if typical_p < 1.0:
        scores = keep_typical(scores, typical_p)
    return softmax(scores)


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Return the four words of Philox4x32-10 (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 // _WORD) ^ c1 ^ k0,
            product1 % _WORD,
            (product0 // _WORD) ^ c3 ^ k1,
            product0 % _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) % _WORD, (k1 + 0xBB67AE85) % _WORD
    return c0, c1, c2, c3


def philox_uniform(seed: int, sample_index: int, position: int) -> float:
    """Return the 53-bit number in [0, 1) that decides the draw at this place."""
    words = philox4x32(
        (position % _WORD, position // _WORD, sample_index, 0),
        (seed % _WORD, seed // _WORD),
    )
    return ((words[0] >> 5) * 2**26 + (words[1] >> 6)) / 2**53


def draw(p: np.ndarray, uniform: float) -> int:
    """Return the first id whose cumulative probability exceeds uniform times the total."""
    cumulative = np.cumsum(p)
    choice = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(choice, int(np.flatnonzero(p)[-1]))
