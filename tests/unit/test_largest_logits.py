"""Tokens drawn from the largest logits alone are those drawn from all logits."""

import dataclasses
import json

import numpy as np
import pytest
from tensor_bytes import overwrite

from nanovllm import SamplingParams
from nanovllm.kernels.sampler import Sampler
from nanovllm.kernels.sampling_step import ROW_PARAMS_DTYPE, pack_row
from nanovllm.kernels.team import Team
from nanovllm.kernels.top_rows import MOST, TopRows

CASE = "llama-f32"
PROMPTS = [[5 + i, 7, 9 + 2 * i] for i in range(12)]


def settings(**changes):
    return [
        SamplingParams(
            temperature=0.4 + 0.15 * (i % 8), top_k=(1, 2, 20, MOST)[i % 4], top_p=(1, 0.7, 0.95)[i % 3],
            min_p=(0, 0, 0.05)[i % 3], max_tokens=12, seed=i, ignore_eos=True, **changes,
        )
        for i in range(len(PROMPTS))
    ]  # fmt: skip


def tokens(llm, params, prompts=PROMPTS):
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


def count_full_rows(llm, monkeypatch):
    """A list that gets the number of rows of each step whose logits were all written."""
    head, counts = llm.engine.runner.decoder.head, []

    class Counting:
        def __getattr__(self, name):
            return getattr(decoder, name)

        def head(self, rows, best_ids, logits, top=None):
            counts.append(len(rows) - len(best_ids) - (0 if top is None else top.num_rows))
            head(rows, best_ids, logits, top)

    decoder = llm.engine.runner.decoder
    monkeypatch.setattr(llm.engine.runner, "decoder", Counting())
    return counts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_tokens_as_from_all_logits(level, make_llm, monkeypatch, dtype, threads):
    llm = make_llm(CASE, dtype=dtype, threads=threads)
    expected = tokens(llm, settings(logprobs=0))  # log probabilities need every logit
    counts = count_full_rows(llm, monkeypatch)
    assert tokens(llm, settings()) == expected
    assert sum(counts) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": MOST + 1}, {"top_k": 0}, {"typical_p": 0.9}, {"top_n_sigma": 1.0}, {"presence_penalty": 0.5},
        {"logprobs": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_needs_more_gets_all_logits(make_llm, monkeypatch, changes):
    llm = make_llm(CASE)
    counts = count_full_rows(llm, monkeypatch)
    params = dataclasses.replace(
        SamplingParams(temperature=1.0, top_k=5, max_tokens=3, seed=1, ignore_eos=True), **changes
    )
    tokens(llm, params, PROMPTS[:1])
    assert counts == [1, 1, 1]


def test_all_ties_with_the_last_one_may_be_drawn(make_llm, edited_model):
    # Every logit is 0: with top_k 2 all are kept, more than there is room for.
    folder = edited_model(CASE)
    config = json.loads((folder / "config.json").read_text())
    llm = make_llm(overwrite(folder, "lm_head.weight", np.zeros((config["vocab_size"], config["hidden_size"]))))
    params = [SamplingParams(temperature=1, top_k=2, max_tokens=4, seed=i, ignore_eos=True) for i in range(12)]
    found = tokens(llm, params)
    assert found == tokens(llm, [dataclasses.replace(one, logprobs=0) for one in params])
    assert len({token_id for ids in found for token_id in ids}) > 30


def test_a_few_ties_are_kept_in_the_order_of_their_ids(make_llm, edited_model):
    # Logits of 100 ids are equal, those of the others are far below or above as the hidden state wills.
    folder = edited_model(CASE)
    hidden_size = json.loads((folder / "config.json").read_text())["hidden_size"]
    llm = make_llm(overwrite(folder, "lm_head.weight", np.ones((100, hidden_size))))
    params = [SamplingParams(temperature=2, top_k=40, max_tokens=6, seed=i, ignore_eos=True) for i in range(12)]
    assert tokens(llm, params) == tokens(llm, [dataclasses.replace(one, logprobs=0) for one in params])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_end_the_request(make_llm, edited_model, bad):
    folder = edited_model(CASE)
    llm = make_llm(overwrite(folder, "lm_head.weight", np.array([bad])))
    output = llm.generate([[5]], SamplingParams(temperature=1, top_k=3, max_tokens=2), use_tqdm=False)[0]
    assert output.error.code == "invalid_logits"


@pytest.mark.parametrize("k", [0, -1, MOST + 1])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k of row 1 is {k}, expected 1 to {MOST}"):
        TopRows(1, np.array([3, k], np.int32))


def test_arrays_that_do_not_fit_are_refused(make_llm):
    team = Team(2)
    top = TopRows(2, np.array([3, 3], np.int32))
    row = pack_row(SamplingParams(temperature=1, top_k=3))
    with pytest.raises(ValueError, match="params has 1 entries, there are 2 rows"):
        Sampler(team, 100).sample_top(top, np.array([row], ROW_PARAMS_DTYPE))
    assert Sampler(team, 100).sample_top(TopRows(2, np.empty(0, np.int32)), np.empty(0, ROW_PARAMS_DTYPE)).size == 0
    runner = make_llm(CASE, threads=2).engine.runner
    logits, none = np.empty((0, runner.spec.vocab_size), np.float32), np.empty(0, np.int32)
    with pytest.raises(ValueError, match="1 rows of logits, 0 of them best ids and 2 the largest"):
        runner.decoder.head(np.zeros(1, np.int32), none, logits, top)
    with pytest.raises(ValueError, match="largest logits of 1 threads, there are 2"):
        runner.decoder.head(np.zeros(1, np.int32), none, logits, TopRows(1, np.array([3], np.int32)))
