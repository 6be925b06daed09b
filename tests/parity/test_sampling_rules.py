"""What changes logits before the greedy choice, and top_n_sigma: the kernel, its twin and hand-computed rows."""

import math

import numpy as np
import pytest

from nanovllm.kernels import sampling, sampling_step
from nanovllm.kernels import sampling_reference as reference
from nanovllm.sampling_params import SamplingParams

BOTH = pytest.mark.parametrize("module", [sampling, reference], ids=["kernel", "twin"])

# A short alphabet, so that the histories below have repetitions of every length.
SETTINGS = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
    {"no_repeat_ngram_size": 50},
    {"top_n_sigma": 0.5},
    {"top_n_sigma": 1.0, "temperature": 1.7, "top_k": 7},
    {"top_n_sigma": 2.0, "top_k": 4, "top_p": 0.8},
    {"top_n_sigma": 1.5, "min_p": 0.3},
    {"top_n_sigma": 1.5, "typical_p": 0.7, "min_p": 0.01},
    {"dry_multiplier": 0.8},
    {"dry_multiplier": 0.8, "dry_allowed_length": 1, "dry_base": 1.1},
    {"dry_multiplier": 2.0, "dry_penalty_last_n": 20, "frequency_penalty": 0.3},
    {"dry_multiplier": 0.5, "dry_limit": 3},
    {"dry_multiplier": 0.5, "dry_limit": 1},
    {"dry_multiplier": 0.5, "dry_penalty_last_n": 0},
    {"dry_multiplier": 0.8, "breaker_ids": [1, 3]},
    {"logit_bias": {0: -100.0, 3: 2.5, 4: -1.25}},
    {"allowed_ids": [0, 2, 4]},
    {"allowed_ids": [1, 3], "logit_bias": {0: 100.0}, "temperature": 0.0},
    {"allowed_ids": [0, 1, 2, 3], "banned_ids": [2], "dry_multiplier": 1.0, "repetition_penalty": 1.3, "top_p": 0.9},
]


def probabilities(module, logits, **settings):
    return module.probabilities(np.array(logits, np.float32), **settings)


def greedy_scores(
    logits, history, num_prompt=0, dry_limit=sampling_step.DRY_UNLIMITED, rules=None, scratch=None, **settings
):
    """The logits as one greedy row leaves them, and its id."""
    logits = np.array([logits], np.float32)
    params = SamplingParams(temperature=0, **settings)
    ids, status = np.empty(1, np.int32), np.empty(1, np.int32)
    sampling.sample(
        logits,
        np.array([sampling_step.pack_row(params, dry_limit=dry_limit)], sampling_step.ROW_PARAMS_DTYPE),
        np.array(history, np.int32),
        np.array([0, len(history)], np.int32),
        np.array([num_prompt], np.int32),
        np.zeros(0, np.int32),
        np.zeros(2, np.int32),
        scratch or sampling.SamplingScratch(logits.shape[1]),
        ids,
        status,
        **(rules or {}),
    )
    assert status[0] == 0
    return logits[0].tolist(), int(ids[0])


@pytest.mark.parametrize("vocab_size", [5, 63, 64, 517])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_distribution_equals_twin(vocab_size, settings):
    rng = np.random.default_rng(vocab_size)
    for _ in range(10):
        logits = (rng.standard_normal(vocab_size) * 3).astype(np.float32)
        history = {"prompt_ids": rng.integers(0, 3, 40), "output_ids": rng.integers(0, 2, 25)}
        if settings.get("no_repeat_ngram_size") == 1:
            history = {"prompt_ids": [1, 2], "output_ids": [1]}
        found = sampling.probabilities(logits, **history, **settings)
        expected = reference.probabilities(logits, **history, **settings)
        np.testing.assert_array_equal(found > 1e-30, expected > 1e-30)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# ---- allowed ids and biases


@BOTH
def test_only_allowed_ids_have_probability(module):
    found = probabilities(module, np.zeros(70), allowed_ids=[3, 31, 32, 69])
    assert np.flatnonzero(found).tolist() == [3, 31, 32, 69]
    assert found[69] == 0.25


def test_a_mask_has_one_bit_for_each_id():
    assert sampling_step.pack_mask([0, 31, 33], 40).tolist() == [2**31 + 1, 2]
    assert sampling_step.pack_mask([], 32).tolist() == [0]


def test_biases_are_added_before_penalties_and_the_greedy_choice():
    rules = {
        "biases": np.array([(1, 3.0), (2, -0.5)], sampling_step.BIAS_DTYPE),
        "cu_biases": np.array([0, 2], np.int32),
    }
    assert greedy_scores([2.0, 0.0, 1.0], [], rules=rules) == ([2.0, 3.0, 0.5], 1)
    # 3.0 is divided by the penalty; had that come first, 0 would have stayed 0 and become 3.
    assert greedy_scores([2.0, 0.0, 1.0], [1], repetition_penalty=2.0, rules=rules) == ([2.0, 1.5, 0.5], 0)


def test_a_bias_cannot_bring_back_what_is_not_allowed():
    rules = {
        "biases": np.array([(2, 100.0)], sampling_step.BIAS_DTYPE),
        "cu_biases": np.array([0, 1], np.int32),
        "masks": sampling_step.pack_mask([0, 1], 3)[None],
        "mask_rows": np.array([0], np.int32),
    }
    assert greedy_scores([0.0, 1.0, 2.0], [], rules=rules) == ([0.0, 1.0, -math.inf], 1)


def test_nothing_allowed_is_a_status_and_a_bad_bias_id_too():
    with pytest.raises(ValueError, match="no token is allowed"):
        probabilities(sampling, [1.0, 2.0], allowed_ids=[0], banned_ids=[0])
    for token_id in (-1, 2):
        with pytest.raises(ValueError, match="outside the model's vocabulary"):
            probabilities(sampling, [1.0, 2.0], logit_bias={token_id: 1.0})


# ---- n-grams


@BOTH
@pytest.mark.parametrize(
    ("history", "size", "banned"),
    [
        ([0, 1, 2, 0, 1], 3, [2]),
        ([0, 1, 2, 0, 1, 3, 0, 1], 3, [2, 3]),
        ([0, 1, 2, 0, 1], 2, [2]),
        ([0, 1, 2, 0, 2], 2, [0]),
        ([2, 2], 2, [2]),
        ([2, 2], 3, []),
        ([2, 2, 2], 3, [2]),
        ([1, 3], 1, [1, 3]),
        ([], 1, []),
        ([1], 2, []),
    ],
)
def test_ngrams_that_would_come_twice_are_banned(module, history, size, banned):
    for num_prompt in {0, len(history) // 2, len(history)}:
        parts = {"prompt_ids": history[:num_prompt], "output_ids": history[num_prompt:]}
        found = probabilities(module, np.zeros(5), no_repeat_ngram_size=size, **parts)
        assert np.flatnonzero(found == 0).tolist() == banned


# ---- DRY


def test_dry_by_hand():
    # The window ends in 1 2 3, which came before, followed by 4: a repetition of 3 where 2 are free, 0.5 * 2 ** 1.
    # 3 came after 7 too, but with no common end; 2 3 came before 5: a repetition of 2, 0.5 * 2 ** 0.
    history = [1, 2, 3, 4, 2, 3, 5, 1, 2, 3]
    scores, _ = greedy_scores([0.0] * 8, history, dry_multiplier=0.5, dry_base=2.0)
    assert scores == [0, 0, 0, 0, -1.0, -0.5, 0, 0]
    # It does not matter what of it is the prompt.
    assert greedy_scores([0.0] * 8, history, 10, dry_multiplier=0.5, dry_base=2.0)[0] == scores
    # A breaker two ids ago: only 2 of the 3 count.
    assert greedy_scores([0.0] * 8, history, dry_limit=2, dry_multiplier=0.5, dry_base=2.0)[0][4:6] == [-0.5, -0.5]
    assert greedy_scores([0.0] * 8, history, dry_limit=1, dry_multiplier=0.5)[0] == [0.0] * 8
    # The newest 8 ids begin at the first 3: 4 is found after "3", 5 after "2 3".
    found = greedy_scores([0.0] * 8, history, dry_multiplier=0.5, dry_base=2.0, dry_penalty_last_n=8)[0]
    assert found[4:6] == [0, -0.5]


def test_dry_leaves_sequence_breakers_alone():
    # As in llama.cpp: 4 and 5 would both prolong a repetition; one of them is a breaker.
    history = [1, 2, 3, 4, 2, 3, 5, 1, 2, 3]
    rules = {"masks": np.array([[1 << 5 | 1 << 1], [1 << 4]], np.uint32), "breaker_rows": np.array([0], np.int32)}
    scores, _ = greedy_scores([0.0] * 8, history, rules=rules, dry_multiplier=0.5, dry_base=2.0)
    assert scores == [0, 0, 0, 0, -1.0, 0, 0, 0]
    rules["breaker_rows"][0] = 1
    scores, _ = greedy_scores([0.0] * 8, history, rules=rules, dry_multiplier=0.5, dry_base=2.0)
    assert scores == [0, 0, 0, 0, 0, -0.5, 0, 0]


def test_dry_sees_a_repetition_that_overlaps_itself():
    # 3 3 3 3: the ids before the last 3 repeat a run of three.
    scores, _ = greedy_scores([0.0] * 5, [3, 3, 3, 3], dry_multiplier=1.0, dry_base=3.0, dry_allowed_length=1)
    assert scores == [0, 0, 0, -9.0, 0]


def test_an_enormous_dry_penalty_still_leaves_a_distribution():
    logits, history = np.zeros(2, np.float32), [0, 1] * 3000
    found = sampling.probabilities(logits, output_ids=history, dry_multiplier=5.0, dry_base=1.75)
    assert found.tolist() == [0.0, 1.0]
    assert sampling.probabilities(np.zeros(1, np.float32), output_ids=[0] * 3000, dry_multiplier=5.0).tolist() == [1.0]


def test_dry_leaves_no_trace_in_the_scratch():
    scratch = sampling.SamplingScratch(6)
    # 3 would prolong "3 1 2 _" to a repetition of 5 ids, and the first 1 and 2 nothing.
    first, _ = greedy_scores([0.0] * 6, [1, 2, 3, 1, 2, 3, 1, 2], scratch=scratch, dry_multiplier=3.0)
    assert first == pytest.approx([0, 0, 0, -3 * 1.75**3, 0, 0])
    second, _ = greedy_scores([0.0] * 6, [0], scratch=scratch, presence_penalty=1.0)
    assert second == [-1, 0, 0, 0, 0, 0]


# ---- top_n_sigma


@BOTH
@pytest.mark.parametrize(
    ("top_n_sigma", "kept"), [(0.5, [3]), (1.0, [2, 3]), (1.7, [2, 3]), (1.8, [1, 2, 3]), (3.0, [0, 1, 2, 3])]
)
def test_top_n_sigma_by_hand(module, top_n_sigma, kept):
    # Mean 3, deviation sqrt((9 + 1 + 1 + 9) / 4) = 2.236; divided by 3 instead it would be 2.58, and 1.7 keep id 1.
    for temperature in (0.5, 1.0, 2.0):
        found = probabilities(module, [0.0, 2.0, 4.0, 6.0], top_n_sigma=top_n_sigma, temperature=temperature)
        assert np.flatnonzero(found).tolist() == kept


@BOTH
def test_top_n_sigma_measures_only_what_can_be_drawn(module):
    logits = [0.0, 2.0, -math.inf, 4.0, 6.0, 500.0]
    found = probabilities(module, logits, banned_ids=[5], top_n_sigma=1.0)
    assert np.flatnonzero(found).tolist() == [3, 4]


@BOTH
def test_equal_logits_all_stay_at_any_top_n_sigma(module):
    assert np.count_nonzero(probabilities(module, [1e4] * 5, top_n_sigma=1e-3)) == 5


# ---- many rows


def test_rules_of_a_row_do_not_touch_its_neighbours():
    rng = np.random.default_rng(8)
    vocab_size, num_rows = 100, 30
    all_logits = (rng.standard_normal((num_rows, vocab_size)) * 2).astype(np.float32)
    masks = np.stack([sampling_step.pack_mask(rng.integers(0, vocab_size, 20), vocab_size) for _ in range(3)])
    choices = [
        {},
        {"dry_multiplier": 1.0},
        {"no_repeat_ngram_size": 2},
        {"top_n_sigma": 1.0},
        {"temperature": 0.0, "dry_multiplier": 2.0, "dry_allowed_length": 1},
    ]
    rows = [
        {
            "params": SamplingParams(**choices[i % 5]),
            "history": rng.integers(0, 4, i % 9).tolist(),
            "mask": i % 4 - 1,
            "biases": [(int(rng.integers(vocab_size)), float(rng.normal())) for _ in range(i % 3)],
        }
        for i in range(num_rows)
    ]

    def draw(which):
        histories = [rows[i]["history"] for i in which]
        biases = [rows[i]["biases"] for i in which]
        ids, status = np.empty(len(which), np.int32), np.empty(len(which), np.int32)
        sampling.sample(
            all_logits[which],
            np.array(
                [sampling_step.pack_row(rows[i]["params"], i, 0, i) for i in which], sampling_step.ROW_PARAMS_DTYPE
            ),
            np.array([token_id for one in histories for token_id in one], np.int32),
            np.cumsum([0, *map(len, histories)]).astype(np.int32),
            np.zeros(len(which), np.int32),
            np.zeros(0, np.int32),
            np.zeros(len(which) + 1, np.int32),
            sampling.SamplingScratch(vocab_size),
            ids,
            status,
            masks=masks,
            mask_rows=np.array([rows[i]["mask"] for i in which], np.int32),
            biases=np.array([bias for one in biases for bias in one], sampling_step.BIAS_DTYPE),
            cu_biases=np.cumsum([0, *map(len, biases)]).astype(np.int32),
        )
        assert not status.any()
        return ids.tolist()

    together = draw(list(range(num_rows)))
    assert draw(list(range(num_rows))[::-1])[::-1] == together
    assert [draw([i])[0] for i in range(num_rows)] == together


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mask_rows": [0, 0]}, "mask_rows must have 1 entries"),
        ({"mask_rows": [1], "masks": [[0]]}, r"mask_rows\[0\] is 1, expected -1 to 0"),
        ({"mask_rows": [0]}, r"mask_rows\[0\] is 0, expected -1 to -1"),
        ({"breaker_rows": [0]}, r"breaker_rows\[0\] is 0, expected -1 to -1"),
        ({"mask_rows": [0], "masks": [[0, 0]]}, "masks have 2 words, expected 1"),
        ({"cu_biases": [0, 1]}, "cu_biases must have 2 entries from 0 to 0"),
        ({"cu_biases": [0]}, "cu_biases must have 2 entries"),
    ],
)
def test_shapes_are_checked(rules, message):
    dtypes = {"masks": np.uint32}
    rules = {name: np.array(value, dtypes.get(name, np.int32)) for name, value in rules.items()}
    with pytest.raises(ValueError, match=message):
        greedy_scores([0.0, 1.0], [], rules=rules)
