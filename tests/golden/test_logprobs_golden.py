"""Log probabilities against what transformers computed: of prompts, of first tokens, under chunks and preemption."""

import json

import numpy as np
import pytest

from nanovllm import SamplingParams
from nanovllm.engine.limits import block_bytes
from nanovllm.models import load_spec

CASES = ["llama-f32", "llama-bf16-llama3rope", "llama-bias", "qwen2-bf16-tied", "qwen2-swa-layers", "qwen3-sharded",
         "mistral-swa", "llama-odd"]  # fmt: skip
TOLERANCE = 1e-3  # of the oracle's README
NUM_BEST = 5


@pytest.fixture(scope="module")
def oracle(models_dir):
    def read(case):
        rows = json.loads((models_dir / case / "expected.json").read_text(encoding="utf-8"))["prompts"]
        with np.load(models_dir / case / "expected.npz") as stored:
            return rows, {key: stored[key] for key in stored.files}

    return read


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def params(**changes):
    return SamplingParams(
        **{"temperature": 0, "max_tokens": 2, "ignore_eos": True, "logprobs": NUM_BEST, "prompt_logprobs": 1, **changes}
    )


def assert_prompt(output, expected):
    ids, logprobs = output.prompt_token_ids, output.prompt_logprobs
    assert len(logprobs) == len(ids) and logprobs[0] is None
    found = [row[token_id].logprob for row, token_id in zip(logprobs[1:], ids[1:], strict=True)]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    for row, token_id in zip(logprobs[1:], ids[1:], strict=True):
        assert next(iter(row)) == token_id  # the prompt's own token comes first
        best = max(row.values(), key=lambda entry: entry.logprob)
        assert best.rank == 1 and len(row) == (1 if row[token_id].rank == 1 else 2)


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 7}, {"gemm": "blas"}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_all_prompts_in_one_batch(make_llm, oracle, case, settings):
    rows, arrays = oracle(case)
    outputs = make_llm(case, **settings).generate([row["ids"] for row in rows], params(), use_tqdm=False)
    for i, output in enumerate(outputs):
        assert_prompt(output, arrays[f"prompt_logprobs_{i}"])
        expected = log_softmax(arrays[f"last_logits_{i}"])
        first = output.outputs[0].logprobs[0]
        best = np.argsort(-expected, kind="stable")[:NUM_BEST].tolist()
        assert next(iter(first)) == best[0] == output.outputs[0].token_ids[0]
        assert len(first) == NUM_BEST
        for rank, (token_id, entry) in enumerate(first.items(), 1):
            assert entry.rank == rank
            assert entry.logprob == pytest.approx(expected[token_id], abs=TOLERANCE)
        np.testing.assert_allclose([entry.logprob for entry in first.values()], expected[best], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("chunk", [512, 7])
@pytest.mark.parametrize("case", ["llama-f32", "qwen2-swa-layers"])
def test_preempted_prompts_are_scored_once(make_llm, oracle, models_dir, case, chunk):
    rows, arrays = oracle(case)
    spec = load_spec(models_dir / case, 170)
    llm = make_llm(case, max_model_len=170, max_num_batched_tokens=chunk, kv_cache_memory=block_bytes(spec) * 6)
    order = [0, 1, 2, 0, 1, 2, 3, 4, 5]
    # Unequal lengths, so that equal prompts are not one request.
    settings = [params(max_tokens=32 - n, logprobs=0) for n in range(len(order))]
    outputs = llm.generate([rows[i]["ids"] for i in order], settings, use_tqdm=False)
    assert llm.stats()["preemptions"] >= 1
    for i, output in zip(order, outputs, strict=True):
        assert_prompt(output, arrays[f"prompt_logprobs_{i}"])
        completion = output.outputs[0]
        stop = rows[i]["first_near_tie_step"]
        assert completion.token_ids[:stop] == rows[i]["greedy_ids"][: len(completion.token_ids)][:stop]
        assert [list(row) for row in completion.logprobs] == [[token_id] for token_id in completion.token_ids]
    llm.engine.block_manager.check([])


@pytest.mark.parametrize("case", CASES)
def test_scores_and_perplexities_are_those_of_the_prompt(make_llm, oracle, case):
    rows, arrays = oracle(case)
    llm = make_llm(case)
    chosen = [i for i, row in enumerate(rows) if row["length"] > 1]
    cut = 1 + len(rows[chosen[0]]["ids"]) // 3
    scores = llm.score(
        [rows[i]["ids"][:cut] for i in chosen], [[rows[i]["ids"][cut:], [7]] for i in chosen], use_tqdm=False
    )
    perplexities = llm.perplexity([rows[i]["ids"] for i in chosen], score_first=False, use_tqdm=False)
    for i, (score, _), perplexity in zip(chosen, scores, perplexities, strict=True):
        expected = arrays[f"prompt_logprobs_{i}"]
        np.testing.assert_allclose(score.logprobs, expected[cut - 1 :], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(perplexity.logprobs, expected, atol=TOLERANCE, rtol=0)
        assert perplexity.perplexity == pytest.approx(np.exp(-expected.astype(np.float64).mean()), rel=TOLERANCE)
        assert perplexity.num_tokens == rows[i]["length"] - 1
