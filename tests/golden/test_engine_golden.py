"""The engine in float32 against what transformers computed, however the same work is cut into steps.

Where the rotary scaling depends on the length, an engine is made for each regime and given what stays inside it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nanovllm.config import EngineConfig
from nanovllm.engine.limits import block_bytes
from nanovllm.engine.llm_engine import load_engine
from nanovllm.engine.sequence import Sequence
from nanovllm.models import load_spec
from nanovllm.sampling_params import SamplingParams

MODELS = Path(__file__).parent / "models"
CASES = sorted(path.name for path in MODELS.iterdir() if path.is_dir())
TOLERANCE = 1e-3  # of the oracle's README
NUM_GREEDY = 32
PROMPT_LENGTHS = (1, 2, 17, 33, 64, 130)


@dataclass(frozen=True)
class Regime:
    """Prompts of a case that one engine can serve with the oracle's rotary table."""

    case: str
    max_model_len: int
    prompts: tuple[int, ...]
    lengths_grow: bool = True  # False: the table holds for exactly max_model_len, so only prompts are compared

    def __str__(self):
        return f"{self.case}-{self.max_model_len}"


def regimes():
    for case in CASES:
        if case == "llama-dynamic":
            yield Regime(case, 40, (0, 1, 2, 3))
            yield Regime(case, 64, (4,), lengths_grow=False)
            yield Regime(case, 130, (5,), lengths_grow=False)
        elif "longrope" in case:
            yield Regime(case, 40, (0, 1, 2, 3))
            yield Regime(case, 170, (4, 5))
        else:
            yield Regime(case, 170, (0, 1, 2, 3, 4, 5))


ALL = list(regimes())
GROWING = [regime for regime in ALL if regime.lengths_grow]


@cache
def oracle(case):
    expected = json.loads((MODELS / case / "expected.json").read_text(encoding="utf-8"))
    with np.load(MODELS / case / "expected.npz") as arrays:
        return expected["prompts"], {key: arrays[key] for key in arrays.files}


def engine_for(regime, **settings):
    config = EngineConfig(dtype="float32", max_model_len=regime.max_model_len, max_num_seqs=10, threads=2, **settings)
    return load_engine(MODELS / regime.case, config)[0]


def add(engine, regime, index):
    params = SamplingParams(temperature=0, max_tokens=NUM_GREEDY, ignore_eos=True)
    seq = Sequence(str(index), oracle(regime.case)[1][f"prompt_ids_{index}"].tolist(), params)
    engine.add(seq)
    return seq


def run(engine, live):
    while engine.has_unfinished:
        engine.step()
        engine.block_manager.check(engine.scheduler.running)
    engine.block_manager.check([])
    assert {seq.finish_reason for seq in live} == {"length"}


def assert_greedy_ids(regime, index, seq):
    row = oracle(regime.case)[0][index]
    num_steps = min(NUM_GREEDY, regime.max_model_len - row["length"])
    assert len(seq.completion_ids) == num_steps
    compared = min(num_steps, NUM_GREEDY if row["first_near_tie_step"] is None else row["first_near_tie_step"])
    assert compared >= 3
    assert seq.completion_ids[:compared] == row["greedy_ids"][:compared], f"prompt {index}"


def test_the_suite_covers_every_case_and_prompt():
    assert len(CASES) == 17
    for case in CASES:
        assert sorted({i for regime in ALL if regime.case == case for i in regime.prompts}) == list(range(6))
        assert tuple(row["length"] for row in oracle(case)[0]) == PROMPT_LENGTHS


def prompt_numbers(engine, seq):
    """Step until the prompt is done: logits after its last token and the log probability of each token before."""
    logprobs, begin = [], engine.stats.computed_tokens
    while seq.num_completion == 0:
        start = engine.stats.computed_tokens - begin
        engine.step()
        num_rows = engine.stats.computed_tokens - begin - start
        end = min(start + num_rows, seq.num_prompt - 1)
        targets = seq.token_ids[start + 1 : end + 1]
        logprobs += engine.runner.token_logprobs(np.arange(end - start), targets).tolist()
    return newest_logits(engine, num_rows - 1), logprobs


def newest_logits(engine, row):
    """Logits after a row of the last step."""
    logits = np.empty((1, engine.spec.vocab_size), np.float32)
    engine.runner.decoder.logits(np.array([row], np.int32), logits)
    return logits[0]


@pytest.mark.parametrize("chunk", [512, 7])
@pytest.mark.parametrize("regime", ALL, ids=str)
def test_each_alone(regime, chunk):
    arrays = oracle(regime.case)[1]
    engine = engine_for(regime, max_num_batched_tokens=chunk, enable_prefix_caching=False)
    for index in regime.prompts:
        seq = add(engine, regime, index)
        logits, logprobs = prompt_numbers(engine, seq)
        np.testing.assert_allclose(logits, arrays[f"last_logits_{index}"], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(logprobs, arrays[f"prompt_logprobs_{index}"], atol=TOLERANCE, rtol=0)
        assert len(logprobs) == seq.num_prompt - 1
        if not regime.lengths_grow:
            engine.abort(seq)
            continue
        run(engine, [seq])
        assert_greedy_ids(regime, index, seq)
        if seq.num_completion == NUM_GREEDY and oracle(regime.case)[0][index]["first_near_tie_step"] is None:
            np.testing.assert_allclose(
                newest_logits(engine, 0), arrays[f"final_logits_{index}"], atol=TOLERANCE, rtol=0
            )
    assert engine.stats.cached_tokens == 0


@pytest.mark.parametrize("gemm, chunk", [("native", 512), ("native", 7), ("blas", 512)])
@pytest.mark.parametrize("regime", GROWING, ids=str)
def test_all_in_one_batch(regime, gemm, chunk):
    engine = engine_for(regime, gemm=gemm, max_num_batched_tokens=chunk)
    seqs = [add(engine, regime, index) for index in regime.prompts]
    run(engine, seqs)
    for index, seq in zip(regime.prompts, seqs, strict=True):
        assert_greedy_ids(regime, index, seq)
    if chunk == 512:
        assert engine.stats.steps == NUM_GREEDY  # together from the first step to the last
    if {4, 5} <= set(regime.prompts):
        # Prompt 5 starts with the 64 tokens of prompt 4; at 7 tokens a step its second block comes too late to share.
        assert engine.stats.cached_tokens >= 32


@pytest.mark.parametrize("chunk", [512, 7])
@pytest.mark.parametrize("regime", GROWING, ids=str)
def test_preempted(regime, chunk):
    spec = load_spec(MODELS / regime.case, regime.max_model_len)
    num_blocks = -(-regime.max_model_len // 32)  # one longest sequence, no more
    engine = engine_for(regime, max_num_batched_tokens=chunk, kv_cache_memory=block_bytes(spec, "float32") * num_blocks)
    assert engine.block_manager.num_blocks == num_blocks
    # The short ones twice: each is admitted with one block and wants a second when all are taken.
    order = [*regime.prompts[:3], *regime.prompts]
    seqs = [add(engine, regime, index) for index in order]
    run(engine, seqs)
    assert engine.scheduler.num_preemptions >= 1
    assert max(seq.num_preemptions for seq in seqs) >= 1
    for index, seq in zip(order, seqs, strict=True):
        assert_greedy_ids(regime, index, seq)


@pytest.mark.parametrize("case", ["llama-f32", "qwen2-swa-layers", "llama-odd"])
def test_a_cached_prompt_gives_the_same_ids_again(case):
    regime = Regime(case, 170, (5,))
    engine = engine_for(regime)
    run(engine, [add(engine, regime, 5)])
    again = add(engine, regime, 5)
    run(engine, [again])
    assert again.num_cached == 128  # four full blocks of 130 tokens
    assert_greedy_ids(regime, 5, again)


def test_hidden_states_are_those_before_the_final_norm():
    regime = Regime("llama-f32", 170, (2,))
    engine = engine_for(regime)
    add(engine, regime, 2)
    engine.step()
    weights = np.fromfile(MODELS / "llama-f32" / "model.safetensors", np.uint8).tobytes()
    header_size = int.from_bytes(weights[:8], "little")
    begin, end = json.loads(weights[8 : 8 + header_size])["model.norm.weight"]["data_offsets"]
    norm = np.frombuffer(weights[8 + header_size + begin : 8 + header_size + end], "<f4")
    x = engine.runner.decoder.hidden(17).astype(np.float64)
    normed = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5) * norm
    np.testing.assert_allclose(normed, oracle("llama-f32")[1]["hidden_2"][-1], atol=TOLERANCE, rtol=0)
