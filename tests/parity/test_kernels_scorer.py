"""Log probabilities of rows against a plain sort in NumPy."""

import numpy as np
import pytest

from nanovllm.kernels.scorer import score_rows
from nanovllm.kernels.team import Team


def i32(*values):
    return np.array(values, np.int32)


def by_sorting(logits, own, num_best, asked):
    """(ids, logprobs, ranks, is_best) of one row."""
    x = logits.astype(np.float64)
    order = np.argsort(-x, kind="stable")
    ids = list(dict.fromkeys([own, *order[:num_best].tolist(), *asked]))
    ranks = [1 + int((x > x[i]).sum()) for i in ids]
    return ids, x[ids] - np.logaddexp.reduce(x), ranks, own == order[0]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("vocab", [1, 5, 63, 64, 65, 1000])
@pytest.mark.parametrize("spread", [0.5, 8])
def test_rows_like_a_sort(threads, vocab, spread):
    rng = np.random.default_rng(vocab)
    # Halves, so that many logits are equal; some are masked out.
    logits = (rng.normal(0, spread, (7, vocab)) * 2).round().astype(np.float32) / 2
    logits[:, vocab // 3] = np.where((rng.random(7) < 0.5) & (vocab > 1), -np.inf, 1)
    rows = i32(6, 0, 3, 3, 1, 5)
    own = rng.integers(0, vocab, 6).astype(np.int32)
    own[0] = logits[6].argmax()
    best = i32(0, 1, 5, vocab, vocab + 9, 20)
    asked = [rng.integers(0, vocab, n).astype(np.int32) for n in (0, 3, 1, 2, 0, 8)]
    cu = np.cumsum([0, *map(len, asked)], dtype=np.int32)
    found = score_rows(Team(threads), logits, rows, own, best, np.concatenate(asked), cu)
    for i, (ids, logprobs, ranks, count, is_best) in enumerate(zip(*found, strict=True)):
        expected = by_sorting(logits[rows[i]], own[i], best[i], asked[i].tolist())
        assert ids[:count].tolist() == expected[0]
        np.testing.assert_allclose(logprobs[:count], expected[1], rtol=1e-6, atol=2e-6)
        assert ranks[:count].tolist() == expected[2]
        assert bool(is_best) is bool(expected[3])


@pytest.mark.parametrize("ascending", [True, False])
def test_the_best_of_sorted_rows(ascending):
    logits = np.arange(500, dtype=np.float32)[None, :: 1 if ascending else -1].copy()
    ids, _, ranks, _, _ = score_rows(Team(1), logits, i32(0), i32(7), i32(3), i32(), i32(0, 0))
    assert ids[0].tolist() == [7, *([499, 498, 497] if ascending else [0, 1, 2])]
    assert ranks[0].tolist() == [493 if ascending else 8, 1, 2, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_numbers_has_no_entries(bad):
    logits = np.zeros((2, 100), np.float32)
    logits[0, 40] = bad
    counts = score_rows(Team(1), logits, i32(0, 1), i32(1, 1), i32(2, 2), i32(), i32(0, 0, 0))[3]
    assert counts.tolist() == [0, 2]  # the own token is among the best


def test_nothing_to_score():
    found = score_rows(Team(1), np.zeros((0, 4), np.float32), i32(), i32(), i32(), i32(), i32(0))
    assert [len(array) for array in found] == [0] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": i32(0, 2)}, "rows are 0 to 2, expected 0 to 1"),
        ({"own_ids": i32(-1, 0)}, "own ids are -1 to 0, expected 0 to 3"),
        ({"asked_ids": i32(4)}, "asked ids are 4 to 4, expected 0 to 3"),
        ({"own_ids": i32(0)}, "do not fit together"),
        ({"cu_asked": i32(0, 1)}, "do not fit together"),
        ({"cu_asked": i32(0, 2, 1)}, "must rise from 0 to 1"),
        ({"cu_asked": i32(0, 0, 2)}, "must rise from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {"rows": i32(0, 1), "own_ids": i32(0, 3), "num_best": i32(1, 0), "asked_ids": i32(2)}
    arguments = {**arguments, "cu_asked": i32(0, 1, 1), **changes}
    with pytest.raises(ValueError, match=message):
        score_rows(Team(1), np.zeros((2, 4), np.float32), **arguments)
