"""How far bfloat16 and int8 are from float32: perplexity, greedy ids, logits of tiny checkpoints."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nanovllm.config import EngineConfig
from nanovllm.engine.batch import Batch
from nanovllm.engine.llm_engine import load_engine
from nanovllm.engine.sequence import Sequence
from nanovllm.kernels.decoder import BLOCK_SIZE
from nanovllm.sampling_params import SamplingParams

GOLDEN = Path(__file__).parent
# By dtype and kv_cache_dtype.
# Of the logits after the last prompt token, whose standard deviation is about 3 in these random checkpoints. Most found:
# 0.036, 0.157, 0.183, 0.082 and 0.075, in this order.
LOGITS_RMS = {
    ("bfloat16", "bfloat16"): 0.06, ("int8", "bfloat16"): 0.25, ("int8", "int8"): 0.25,
    ("bfloat16", "int8"): 0.12, ("float32", "int8"): 0.12,
}  # fmt: skip
# Found: -0.06, 0.01, -0.01, -0.13 and 0.01 %.
PERPLEXITY = {
    ("bfloat16", "bfloat16"): 0.005, ("int8", "bfloat16"): 0.01, ("int8", "int8"): 0.01,
    ("bfloat16", "int8"): 0.005, ("float32", "int8"): 0.002,
}  # fmt: skip
CLEAR_MARGIN = 0.1


@pytest.mark.parametrize("dtype, cache", LOGITS_RMS)
@pytest.mark.parametrize("case", ["qwen2-bf16-tied", "qwen2-yarn", "qwen3-bf16", "qwen3-sharded"])
def test_logits_of_tiny_checkpoints(models_dir, case, dtype, cache):
    arrays = np.load(models_dir / case / "expected.npz")
    engine, _ = load_engine(models_dir / case, EngineConfig(dtype=dtype, kv_cache_dtype=cache, threads=2))
    for index in range(6):
        expected = arrays[f"last_logits_{index}"]
        found = engine.next_token_logits(arrays[f"prompt_ids_{index}"].tolist())
        assert np.sqrt(np.mean((found - expected) ** 2)) < LOGITS_RMS[dtype, cache]
        assert np.corrcoef(found, expected)[0, 1] > 0.99


@pytest.fixture(scope="module")
def demo_model():
    if "NANOVLLM_DEMO_MODEL" not in os.environ:
        pytest.skip("NANOVLLM_DEMO_MODEL does not name the demo model")
    return Path(os.environ["NANOVLLM_DEMO_MODEL"])


def passage_logprobs(engine, ids):
    """log p of every token of a text given those before it."""
    engine.add(Sequence("", list(ids), SamplingParams(temperature=0, max_tokens=1)))
    logprobs = []
    while engine.has_unfinished:
        step = engine.scheduler.schedule()
        engine.runner.next_logits(Batch.build(step, BLOCK_SIZE))
        targets = np.array(ids[step[0].start + 1 : step[0].start + step[0].count + 1], np.int32)
        logprobs.append(engine.runner.token_logprobs(np.arange(len(targets)), targets))
        if step[0].is_last_chunk:
            step[0].seq.finish_reason = "length"
        engine.scheduler.finish_step(step)
    return np.concatenate(logprobs)


@pytest.mark.weights
@pytest.mark.parametrize("dtype, cache", PERPLEXITY)
def test_perplexity_of_the_recorded_passage(demo_model, dtype, cache):
    arrays = np.load(GOLDEN / "smollm2" / "passage.npz")
    engine, _ = load_engine(demo_model, EngineConfig(dtype=dtype, kv_cache_dtype=cache, max_model_len=2048))
    found = passage_logprobs(engine, arrays["ids"].tolist())
    assert len(found) == len(arrays["logprobs"])
    change = np.exp(arrays["logprobs"].mean() - found.mean()) - 1
    assert abs(change) < PERPLEXITY[dtype, cache]


@pytest.mark.weights
def test_bfloat16_greedy_ids_agree_where_the_margin_is_clear(demo_model):
    rows = json.loads((GOLDEN / "smollm2" / "chat.json").read_text())["prompts"]
    engine, _ = load_engine(demo_model, EngineConfig(dtype="bfloat16", max_model_len=2048))
    seqs = []
    for row in rows[:20]:
        params = SamplingParams(temperature=0, max_tokens=len(row["greedy_ids"]), ignore_eos=True)
        seqs.append(Sequence(row["name"], list(row["prompt_ids"]), params))
        engine.add(seqs[-1])
    while engine.has_unfinished:
        engine.step()
    compared = 0
    for row, seq in zip(rows, seqs, strict=False):
        unclear = [i for i, margin in enumerate(row["greedy_margins"]) if margin < CLEAR_MARGIN]
        stop = unclear[0] if unclear else len(row["greedy_ids"])
        assert seq.completion_ids[:stop] == row["greedy_ids"][:stop], row["name"]
        compared += stop
    assert compared > 200
