"""Log probabilities of completions and prompts: shapes, the raw distribution, ids asked for, caches and neighbours."""

import numpy as np
import pytest

from nanovllm import ConfigError, RequestError, SamplingParams, plan_model
from nanovllm.engine import limits
from nanovllm.engine.logprobs import score_rows
from nanovllm.kernels.team import Team

PROMPT = [5, 6, 7, 8, 9]
LONG = [(7 * i) % 400 + 3 for i in range(70)]


def greedy(**changes):
    return SamplingParams(**{"temperature": 0, "max_tokens": 6, "ignore_eos": True, **changes})


def one(llm, prompt, params):
    return llm.generate([prompt], params, use_tqdm=False)[0]


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def raw_logprobs(llm, output, index=0):
    """The whole distribution before each token of a completion, from logits that nothing has processed."""
    ids = output.prompt_token_ids + output.outputs[index].token_ids
    begin = len(output.prompt_token_ids)
    return [log_softmax(llm.engine.next_token_logits(ids[:end])) for end in range(begin, len(ids))]


# ---- one row


def score_row(logits, token_id, num_best=0, asked_ids=()):
    (row,) = score_rows(Team(1), logits[None], [(0, token_id, num_best, asked_ids)])
    return row


def test_a_row_by_hand():
    logits = np.log(np.array([0.1, 0.4, 0.1, 0.4], np.float32)) + 3
    row = score_row(logits, 2, 2, (0, 2, 1))
    assert row.token_ids == [2, 1, 3, 0]
    assert row.ranks == [3, 1, 1, 3]  # equal logits have equal ranks
    np.testing.assert_allclose(row.logprobs, np.log([0.1, 0.4, 0.4, 0.1]), atol=1e-6)
    assert not row.is_best and row.is_finite


@pytest.mark.parametrize("token_id, is_best", [(1, True), (3, False), (0, False)])
def test_of_equal_logits_greedy_takes_the_lowest_id(token_id, is_best):
    assert score_row(np.array([0, 2, 1, 2], np.float32), token_id).is_best is is_best


def test_no_more_best_ids_than_there_are():
    assert score_row(np.array([0, 2, 1], np.float32), 0, 10).token_ids == [0, 1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_numbers_has_no_probabilities(bad):
    assert not score_row(np.array([0, bad, 1], np.float32), 0, 2).is_finite


def test_a_whole_row_by_hand():
    logits = np.array([0.1, 0.4, 0.0, 0.1, 0.4], np.float32)
    with np.errstate(divide="ignore"):
        row = score_row(np.log(logits) - 7, 3, -1, (4,))
    assert list(row.token_ids) == [3, 1, 4, 0, 2]
    assert list(row.ranks) == [3, 1, 1, 3, 5]
    np.testing.assert_allclose(row.logprobs, [*np.log([0.1, 0.4, 0.4, 0.1]), -np.inf], atol=1e-6)
    assert not row.is_best and row.is_finite
    assert not score_row(np.array([0, np.nan, 1], np.float32), 0, -1).is_finite


# ---- completions


def test_nothing_unless_asked_for(make_llm):
    output = one(make_llm(), PROMPT, greedy())
    assert (output.prompt_logprobs, output.outputs[0].logprobs, output.outputs[0].cumulative_logprob) == (None,) * 3


@pytest.mark.parametrize("num_best", [0, 1, 4])
def test_the_token_first_then_the_best(make_llm, num_best):
    llm = make_llm()
    output = one(llm, PROMPT, SamplingParams(temperature=1, seed=4, max_tokens=8, ignore_eos=True, logprobs=num_best))
    completion = output.outputs[0]
    expected = raw_logprobs(llm, output)
    assert len(completion.logprobs) == 8
    for token_id, row, distribution in zip(completion.token_ids, completion.logprobs, expected, strict=True):
        best = np.argsort(-distribution, kind="stable")[:num_best].tolist()
        assert list(row) == [token_id, *(i for i in best if i != token_id)]
        for i, entry in row.items():
            assert entry.logprob == pytest.approx(distribution[i], abs=1e-5)
            assert entry.rank == 1 + np.sum(distribution > distribution[i])
            assert entry.decoded_token == llm.tokenizer.decode([i], skip_special_tokens=False)
    total = sum(row[i].logprob for i, row in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total)
    assert any(row[i].rank > 1 for i, row in zip(completion.token_ids, completion.logprobs, strict=True))


def test_the_distribution_is_the_one_before_any_processor(make_llm):
    llm = make_llm()
    processed = {"repetition_penalty": 1.8, "presence_penalty": 1.5, "min_tokens": 5, "stop_token_ids": [425]}
    for params in (
        greedy(logprobs=2, ignore_eos=False, **processed),
        SamplingParams(temperature=0.3, top_k=2, seed=1, max_tokens=6, logprobs=2, **processed),
    ):
        output = one(llm, PROMPT, params)
        for row, distribution in zip(output.outputs[0].logprobs, raw_logprobs(llm, output), strict=True):
            for i, entry in row.items():
                assert entry.logprob == pytest.approx(distribution[i], abs=1e-5)


def test_ids_asked_for_come_with_each_token(make_llm):
    llm = make_llm()
    output = one(llm, PROMPT, greedy(logprob_token_ids=[3, 499, 3]))
    for row, token_id, distribution in zip(
        output.outputs[0].logprobs, output.outputs[0].token_ids, raw_logprobs(llm, output), strict=True
    ):
        assert list(row) == [token_id, *(i for i in (3, 499) if i != token_id)]
        assert row[499].logprob == pytest.approx(distribution[499], abs=1e-5)
        assert row[499].rank == 1 + np.sum(distribution > distribution[499])
    both = one(llm, PROMPT, greedy(logprobs=1, logprob_token_ids=[3])).outputs[0]
    assert [list(row) for row in both.logprobs] == [[i, 3] for i in both.token_ids]


def test_ids_that_the_model_lacks_are_an_error_of_that_request(make_llm):
    outputs = make_llm().generate([PROMPT] * 2, [greedy(logprob_token_ids=[500]), greedy()], use_tqdm=False)
    assert [output.error and output.error.code for output in outputs] == ["invalid_token_id", None]
    assert "logprob_token_ids: 500 is outside the model's vocabulary of 500" in str(outputs[0].error)


@pytest.mark.parametrize("bad", [{"logprobs": -2}, {"prompt_logprobs": 1001}, {"logprob_token_ids": range(129)}])
def test_limits(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SamplingParams(**bad)


def test_logprobs_change_no_token_and_ids_alone_need_no_text(make_llm):
    llm = make_llm()
    plain = one(llm, PROMPT, greedy()).outputs[0]
    with_logprobs = one(llm, PROMPT, greedy(logprobs=3, prompt_logprobs=3, detokenize=False)).outputs[0]
    assert with_logprobs.token_ids == plain.token_ids
    assert {entry.decoded_token for row in with_logprobs.logprobs for entry in row.values()} == {None}


def test_a_stop_string_keeps_one_entry_for_each_token(make_llm):
    llm = make_llm()
    text = one(llm, PROMPT, greedy(max_tokens=12)).outputs[0].text
    completion = one(llm, PROMPT, greedy(max_tokens=12, stop=[text[3:5]], logprobs=0)).outputs[0]
    assert completion.finish_reason == "stop"
    assert [list(row) for row in completion.logprobs] == [[i] for i in completion.token_ids]


def test_the_whole_vocabulary_is_what_as_many_as_it_has_would_be(make_llm):
    llm = make_llm()
    size = llm.engine.spec.vocab_size
    drawn = {"temperature": 1, "seed": 4, "max_tokens": 5, "ignore_eos": True, "repetition_penalty": 1.5}
    whole = one(llm, PROMPT, SamplingParams(logprobs=-1, prompt_logprobs=-1, **drawn))
    counted = one(llm, PROMPT, SamplingParams(logprobs=size, prompt_logprobs=size, **drawn))
    assert whole.outputs[0].token_ids == counted.outputs[0].token_ids
    assert whole.prompt_logprobs[0] is None
    rows = [*whole.prompt_logprobs[1:], *whole.outputs[0].logprobs]
    expected = [*counted.prompt_logprobs[1:], *counted.outputs[0].logprobs]
    for row, other in zip(rows, expected, strict=True):
        assert list(row) == list(other) and len(row) == size
        assert [entry.rank for entry in row.values()] == [entry.rank for entry in other.values()]
        assert [entry.decoded_token for entry in row.values()] == [entry.decoded_token for entry in other.values()]
        found, scores = ([entry.logprob for entry in one_row.values()] for one_row in (row, other))
        np.testing.assert_allclose(found, scores, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "asking", "num_positions"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs", 4),
        ({"logprobs": -1, "max_tokens": 5}, "logprobs", 5),
        ({"logprobs": -1, "max_tokens": None}, "logprobs", 195),  # as many as max_model_len leaves
        ({"logprobs": -1, "max_tokens": 2, "n": 2, "temperature": 1}, "logprobs", 4),
        ({"logprobs": -1, "max_tokens": 1, "prompt_logprobs": -1}, "logprobs and prompt_logprobs", 5),
    ],
)
def test_more_of_the_whole_vocabulary_than_memory_has_room_for_is_refused(
    make_llm, models_dir, monkeypatch, settings, asking, num_positions
):
    monkeypatch.setattr(limits, "MAX_WHOLE_LOGPROBS", 1999)  # 3 positions of 500 ids
    refused, fine = make_llm().generate(
        [PROMPT] * 2, [greedy(**settings), greedy(prompt_logprobs=4, logprobs=-1, max_tokens=3)], use_tqdm=False
    )
    assert refused.error.code == "invalid_sampling"
    assert f"{asking} -1 would give all 500 ids at up to {num_positions} positions, expected at most 3" in str(
        refused.error
    )
    assert fine.error is None
    plan = plan_model(models_dir / "llama-f32", dtype="float32", max_model_len=200)
    with pytest.raises(RequestError, match=f"{asking} -1 would give all 500 ids"):
        plan.check_request(PROMPT, greedy(**settings))


# ---- prompts


def test_prompt_logprobs_read_no_prefix_cache_and_are_equal_each_time(make_llm):
    llm = make_llm()
    params = greedy(prompt_logprobs=2, logprobs=2, max_tokens=3)
    first = one(llm, LONG, params)
    again = one(llm, LONG, params)
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 0)
    assert first.prompt_logprobs == again.prompt_logprobs
    assert len(first.prompt_logprobs) == len(LONG) and first.prompt_logprobs[0] is None
    cached = one(llm, LONG, greedy(logprobs=2, max_tokens=3))
    assert cached.num_cached_tokens == 64
    assert cached.outputs[0].logprobs == first.outputs[0].logprobs == again.outputs[0].logprobs
    llm.engine.block_manager.check([])


def test_samples_share_the_prompt_that_is_scored_once(make_llm):
    llm = make_llm()
    params = SamplingParams(n=3, temperature=1, seed=2, max_tokens=4, ignore_eos=True, prompt_logprobs=0, logprobs=0)
    output = one(llm, LONG, params)
    assert len(output.prompt_logprobs) == len(LONG)
    assert llm.stats()["computed_tokens"] == len(LONG) + 2 * 1 + 3 * 3
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3
    for i, completion in enumerate(output.outputs):
        for row, token_id, distribution in zip(
            completion.logprobs, completion.token_ids, raw_logprobs(llm, output, i), strict=True
        ):
            assert row[token_id].logprob == pytest.approx(distribution[token_id], abs=1e-5)


def test_alone_in_a_batch_in_chunks_and_preempted_give_the_same_bits(make_llm):
    rows = [
        (PROMPT, greedy(logprobs=2, prompt_logprobs=2, max_tokens=30)),
        (LONG, SamplingParams(temperature=1, seed=5, max_tokens=30, logprobs=3, ignore_eos=True)),
        (LONG[:40], greedy(prompt_logprobs=0, max_tokens=40)),
        (LONG[:40] + PROMPT, greedy(logprob_token_ids=[1, 2], max_tokens=25)),
        ([9] * 33, greedy(max_tokens=35)),
        (LONG[5:40], greedy(logprobs=-1, prompt_logprobs=-1, max_tokens=20)),
    ]
    alone = make_llm()
    expected = [one(alone, prompt, params) for prompt, params in rows]
    small = alone.engine.limits.kv_cache_bytes // alone.engine.limits.num_blocks * 7
    for settings in ({}, {"max_num_batched_tokens": 7}, {"kv_cache_memory": small}, {"enable_prefix_caching": False}):
        llm = make_llm(**settings)
        found = llm.generate([prompt for prompt, _ in rows], [params for _, params in rows], use_tqdm=False)
        assert [o.prompt_logprobs for o in found] == [o.prompt_logprobs for o in expected]
        assert [o.outputs[0].logprobs for o in found] == [o.outputs[0].logprobs for o in expected]
        assert (llm.stats()["preemptions"] > 0) == ("kv_cache_memory" in settings)
