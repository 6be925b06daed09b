"""The sampling kernel against its NumPy twin, published generator vectors and hand-computed rows."""

import math

import numpy as np
import pytest

from nanovllm.kernels import sampling, sampling_step
from nanovllm.kernels import sampling_reference as reference
from nanovllm.sampling_params import SamplingParams

# Random123's published known answers for philox4x32 with 10 rounds: counter, key, words.
PHILOX_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 200},
    {"top_k": 3000, "temperature": 1.7},
    {"top_p": 0.9},
    {"top_p": 0.3, "temperature": 2.0},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 0.02, "top_k": 40, "top_p": 0.95},
    {"min_p": 0.02, "top_k": 40, "top_p": 0.95, "order": "hf"},
    {"typical_p": 0.6},
    {"typical_p": 0.1, "top_k": 50, "temperature": 0.8},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.5},
    {"repetition_penalty": 0.7, "top_p": 0.8, "typical_p": 0.9},
]


class Step:
    """Joins rows into the arrays of one call, calls the kernel and keeps what it wrote."""

    def __init__(self, logits, rows, scratch=None):
        """Rows are dicts: params, seed, sample_index, position, prompt, output, banned."""
        logits = np.array(logits, dtype=np.float32)
        params = np.array(
            [
                sampling_step.pack_row(
                    row.get("params", SamplingParams()),
                    row.get("seed", 0),
                    row.get("sample_index", 0),
                    row.get("position", 0),
                )
                for row in rows
            ],
            dtype=sampling_step.ROW_PARAMS_DTYPE,
        )
        history, cu_history = join([[*row.get("prompt", ()), *row.get("output", ())] for row in rows])
        banned, cu_banned = join([row.get("banned", ()) for row in rows])
        num_prompt = np.array([len(row.get("prompt", ())) for row in rows], dtype=np.int32)
        self.token_ids = np.full(len(rows), -9, dtype=np.int32)
        self.status = np.full(len(rows), -9, dtype=np.int32)
        self.logits = logits
        scratch = scratch or sampling.SamplingScratch(logits.shape[1])
        sampling.sample(
            logits,
            params,
            history,
            cu_history,
            num_prompt,
            banned,
            cu_banned,
            scratch,
            self.token_ids,
            self.status,
        )


def join(lists):
    joined = np.array([item for one in lists for item in one], dtype=np.int32)
    offsets = np.cumsum([0, *(len(one) for one in lists)]).astype(np.int32)
    return joined, offsets


@pytest.mark.parametrize("module", [sampling, reference])
@pytest.mark.parametrize(("counter", "key", "words"), PHILOX_ANSWERS)
def test_philox_gives_the_published_words(module, counter, key, words):
    assert module.philox4x32(counter, key) == words


def test_uniform_is_the_first_53_bits_of_the_words():
    bits = (0x6627E8D5 >> 5 << 26) | (0xE169C58D >> 6)
    assert sampling.philox_uniform(0, 0, 0) == bits / 2**53


def test_uniform_is_a_function_of_all_three_keys():
    places = [(s, i, p) for s in (0, 1, 2**32, 2**64 - 1) for i in (0, 1) for p in (0, 1, 2**32)]
    uniforms = [sampling.philox_uniform(*place) for place in places]
    assert uniforms == [reference.philox_uniform(*place) for place in places]
    assert len(set(uniforms)) == len(places)
    assert all(0 <= u < 1 for u in uniforms)


@pytest.mark.parametrize("vocab_size", [1, 3, 17, 64, 517, 32000])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_distribution_equals_twin(vocab_size, settings):
    rng = np.random.default_rng(vocab_size)
    logits = (rng.standard_normal(vocab_size) * 3).astype(np.float32)
    history = {
        "prompt_ids": rng.integers(0, vocab_size, 9),
        "output_ids": rng.integers(0, vocab_size, 7),
        "banned_ids": rng.integers(0, vocab_size, 2) if vocab_size > 3 else (),
    }
    found = sampling.probabilities(logits, **history, **settings)
    expected = reference.probabilities(logits, **history, **settings)
    np.testing.assert_array_equal(found > 1e-30, expected > 1e-30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("arrange", [np.sort, lambda x: np.sort(x)[::-1]], ids=["ascending", "descending"])
@pytest.mark.parametrize("top_k", [1, 63, 64, 65, 600, 1999])
def test_top_k_keeps_k_in_any_arrangement(arrange, top_k):
    logits = arrange(np.random.default_rng(4).standard_normal(2000).astype(np.float32))
    kept = np.flatnonzero(sampling.probabilities(np.ascontiguousarray(logits), top_k=top_k))
    assert set(kept) == set(np.argsort(logits)[-top_k:])


def test_top_k_keeps_ties_with_the_kth():
    logits = np.array([3, 1, 2, 2, 2, 0], dtype=np.float32)
    assert np.flatnonzero(sampling.probabilities(logits, top_k=2)).tolist() == [0, 2, 3, 4]


def test_top_p_removes_exactly_the_allowed_mass_from_equal_weights():
    assert np.flatnonzero(sampling.probabilities(np.zeros(4, np.float32), top_p=0.5)).tolist() == [0, 1]
    assert np.flatnonzero(sampling.probabilities(np.zeros(4, np.float32), top_p=0.51)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("settings", [{"top_p": 1e-300}, {"min_p": 1.0}, {"typical_p": 1e-300}, {"top_k": 1}], ids=str)
def test_filters_always_keep_one(settings):
    logits = np.array([0.5, -1, 4, 2], dtype=np.float32)
    assert np.count_nonzero(sampling.probabilities(logits, **settings)) == 1


def test_order_of_min_p_and_top_p_matters():
    # Probabilities 0.5, 0.3, 0.1, 0.1: min_p 0.3 drops the last two; top_p 0.6 then keeps one of 5/8 and 3/8, while
    # top_p 0.6 first keeps two of the four and min_p leaves both.
    logits = np.log(np.array([0.5, 0.3, 0.1, 0.1])).astype(np.float32)
    settings = {"min_p": 0.3, "top_p": 0.6}
    assert np.flatnonzero(sampling.probabilities(logits, **settings, order="vllm")).tolist() == [0]
    assert np.flatnonzero(sampling.probabilities(logits, **settings, order="hf")).tolist() == [0, 1]


def test_penalties_by_hand():
    # Repetition 2 on ids 0 (prompt), 1 (prompt twice, completion twice), 2 (completion): 4/2, -2*2, 6/2.
    # Then frequency 0.5 and presence 1 on the completion: 1 loses 0.5*2 + 1, 2 loses 0.5 + 1.
    params = SamplingParams(temperature=0, repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=1.0)
    row = {"params": params, "prompt": [0, 1, 1], "output": [1, 2, 1]}
    step = Step([[4.0, -2.0, 6.0, 1.75]], [row])
    assert step.logits.tolist() == [[2.0, -6.0, 1.5, 1.75]]
    assert step.token_ids.tolist() == [0]


def test_frequency_and_presence_do_not_see_the_prompt():
    params = SamplingParams(temperature=0, frequency_penalty=2.0, presence_penalty=2.0)
    assert Step([[1.0, 0.5]], [{"params": params, "prompt": [0, 0, 0]}]).token_ids.tolist() == [0]
    assert Step([[1.0, 0.5]], [{"params": params, "output": [0]}]).token_ids.tolist() == [1]


def test_greedy_takes_the_lowest_id_of_a_tie():
    logits = np.zeros((2, 200), dtype=np.float32)
    logits[0, [70, 71, 199]] = 5
    logits[1] = -3
    greedy = SamplingParams(temperature=0, top_k=1, top_p=0.1)
    assert Step(logits, [{"params": greedy}] * 2).token_ids.tolist() == [70, 0]


def test_banned_ids_are_never_drawn():
    banned = list(range(1, 10))
    rows = [{"banned": banned, "seed": seed} for seed in range(200)]
    assert set(Step(np.zeros((200, 11)), rows).token_ids.tolist()) == {0, 10}
    greedy = {"params": SamplingParams(temperature=0), "banned": [2]}
    assert Step([[0.0, 1.0, 9.0]], [greedy]).token_ids.tolist() == [1]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("logits", "row", "status"),
    [
        ([1.0, math.nan, 2.0], {}, "NaN"),
        ([1.0, math.inf, 2.0], {}, "+inf"),
        ([-math.inf] * 3, {}, "-inf"),
        ([1.0, 2.0, -math.inf], {"banned": [0, 1]}, "-inf"),
        ([1.0, 2.0, 3.0], {"banned": [3]}, "outside"),
        ([1.0, 2.0, 3.0], {"output": [1, 2, -1]}, "outside"),
        ([1.0, 2.0, 3.0], {"prompt": [1, 2**31 - 1], "output": [1, 1]}, "outside"),
    ],
)
def test_bad_row_fails_alone(temperature, logits, row, status):
    params = SamplingParams(temperature=temperature, repetition_penalty=1.5)
    good = {"params": SamplingParams(temperature=0, presence_penalty=1.0), "output": [1]}
    step = Step([logits, [0.0, 1.5, 0.75]], [{"params": params, **row}, good])
    assert status in sampling_step.STATUS_MESSAGES[step.status[0]]
    assert step.token_ids.tolist() == [-1, 2]
    assert step.status[1] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": math.nan},
        {"min_p": 1.5},
        {"min_p": math.nan},
        {"typical_p": -0.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.nan},
        {"top_n_sigma": math.nan},
        {"top_n_sigma": -1.0},
        {"dry_multiplier": math.inf},
        {"dry_multiplier": -1.0},
        {"dry_base": 0.5},
        {"dry_allowed_length": 0},
        {"no_repeat_ngram_size": -1},
    ],
    ids=str,
)
def test_settings_that_no_check_has_seen_are_a_status(settings):
    with pytest.raises(ValueError, match="NaN or out of range"):
        sampling.probabilities(np.zeros(5, np.float32), **settings)


@pytest.mark.parametrize("settings", SETTINGS[:12], ids=str)
def test_single_finite_logit_is_certain(settings):
    logits = np.full(517, -np.inf, dtype=np.float32)
    logits[301] = -40
    assert sampling.probabilities(logits, **settings)[301] == 1.0
    assert Step([logits], [{"params": SamplingParams(**settings)}]).token_ids.tolist() == [301]


def test_extreme_finite_logits_have_a_distribution():
    largest = float(np.finfo(np.float32).max)
    found = sampling.probabilities(np.array([largest, -largest, largest], np.float32), temperature=0.01, top_p=0.9)
    assert found.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("settings", [{}, {"top_k": 7}, {"top_p": 0.7, "temperature": 0.5}, {"typical_p": 0.5}])
def test_draw_is_the_documented_function_of_probabilities_and_uniform(settings):
    logits = (np.random.default_rng(5).standard_normal(1000) * 2).astype(np.float32)
    params = SamplingParams(**settings)
    rows = [{"params": params, "seed": 11, "sample_index": 3, "position": position} for position in range(300)]
    p = sampling.probabilities(logits, **settings)
    expected = [reference.draw(p, reference.philox_uniform(11, 3, position)) for position in range(300)]
    assert Step(np.tile(logits, (300, 1)), rows).token_ids.tolist() == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5, "top_k": 8}, {"top_p": 0.9, "min_p": 0.02}], ids=str)
def test_frequencies_follow_the_distribution(settings):
    num_draws = 20_000
    logits = np.linspace(-1.5, 1.5, 10).astype(np.float32)
    rows = [{"params": SamplingParams(**settings), "seed": 2024, "position": i} for i in range(num_draws)]
    counts = np.bincount(Step(np.tile(logits, (num_draws, 1)), rows).token_ids, minlength=10)
    expected = reference.probabilities(logits, **settings) * num_draws
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    # 99.9 % point of chi-square with 9 degrees of freedom; fewer degrees have a lower one.
    assert chi_square < 27.9


def test_row_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(6)
    logits = (rng.standard_normal((40, 700)) * 3).astype(np.float32)
    rows = [
        {
            "params": SamplingParams(**{k: v for k, v in SETTINGS[i % len(SETTINGS)].items() if k != "order"}),
            "seed": i,
            "sample_index": i % 3,
            "position": i,
            "prompt": rng.integers(0, 700, i % 5).tolist(),
            "output": rng.integers(0, 700, i % 7).tolist(),
            "banned": rng.integers(0, 700, i % 2).tolist(),
        }
        for i in range(40)
    ]
    scratch = sampling.SamplingScratch(1000)
    together = Step(logits, rows, scratch).token_ids.tolist()
    backwards = Step(logits[::-1], rows[::-1], scratch).token_ids.tolist()[::-1]
    alone = [Step(logits[i : i + 1], rows[i : i + 1]).token_ids[0] for i in range(40)]
    assert together == backwards == alone
    assert len(set(together)) > 20


def test_samples_of_one_request_have_streams_of_their_own():
    logits = np.zeros((1, 5000))
    three = [Step(logits, [{"seed": 7, "sample_index": i}]).token_ids[0] for i in range(3)]
    five = [Step(logits, [{"seed": 7, "sample_index": i}]).token_ids[0] for i in range(5)]
    assert five[:3] == three
    assert len(set(five)) == 5


def test_negative_seed_is_taken_modulo_two_to_the_64():
    assert sampling_step.pack_row(SamplingParams(), -2)[7] == 2**64 - 2


def test_pack_row_follows_the_layout():
    params = SamplingParams(
        temperature=0.5,
        top_p=0.25,
        min_p=0.125,
        typical_p=0.75,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        top_k=9,
        top_n_sigma=1.25,
        dry_multiplier=0.5,
        dry_base=3.0,
        dry_allowed_length=4,
        dry_penalty_last_n=99,
        no_repeat_ngram_size=6,
    )
    packed = np.array([sampling_step.pack_row(params, 3, 4, 5, 77)], dtype=sampling_step.ROW_PARAMS_DTYPE)[0]
    settings = {name: packed[name].item() for name in packed.dtype.names if hasattr(params, name) and name != "seed"}
    assert settings == {name: getattr(params, name) for name in settings}
    assert len(settings) == 14
    assert (packed["seed"], packed["sample_index"], packed["position"], packed["flags"]) == (3, 4, 5, 0)
    assert packed["dry_limit"] == 77


def test_no_rows_is_no_work():
    assert Step(np.zeros((0, 5)), [], sampling.SamplingScratch(5)).token_ids.size == 0


def test_shapes_are_checked():
    scratch = sampling.SamplingScratch(4)
    with pytest.raises(ValueError, match="5 columns, expected 1 to 4"):
        Step(np.zeros((1, 5)), [{}], scratch)
    with pytest.raises(ValueError, match="expected 1 to"):
        Step(np.zeros((1, 0)), [{}], scratch)
    with pytest.raises(ValueError, match="must have 2 entries"):
        Step(np.zeros((2, 4)), [{}], scratch)
    with pytest.raises(ValueError, match="vocab_size is 0"):
        sampling.SamplingScratch(0)


@pytest.mark.parametrize("cu_history", [[0, 2, 1], [0, 1], [1, 1, 1], [0, 0, 9]])
def test_ragged_offsets_are_checked(cu_history):
    empty, zeros = np.zeros(0, np.int32), np.zeros(3, np.int32)
    params = np.array([sampling_step.pack_row(SamplingParams())] * 2, dtype=sampling_step.ROW_PARAMS_DTYPE)
    with pytest.raises(ValueError, match="cu_history must"):
        sampling.sample(
            np.zeros((2, 4), np.float32),
            params,
            np.zeros(1, np.int32),
            np.array(cu_history, np.int32),
            np.zeros(2, np.int32),
            empty,
            zeros,
            sampling.SamplingScratch(4),
            np.zeros(2, np.int32),
            np.zeros(2, np.int32),
        )


def test_probabilities_refuses_what_has_no_distribution():
    with pytest.raises(ValueError, match="NaN"):
        sampling.probabilities(np.array([math.nan, 1], np.float32))
    with pytest.raises(ValueError, match="order is 'x'"):
        sampling.probabilities(np.zeros(2, np.float32), order="x")
