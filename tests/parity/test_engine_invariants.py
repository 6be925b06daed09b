"""What the engine promises without an oracle: nothing about how work is cut into steps can change a token.

Our own kernels add up in an order that depends on the inner dimension alone, so their results must be equal to the bit.
BLAS chooses its order by shape: there only tokens whose margin is clear are compared.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm.config import EngineConfig
from nanovllm.engine.limits import block_bytes, resolve_cache_dtype
from nanovllm.engine.llm_engine import load_engine
from nanovllm.engine.sequence import Sequence
from nanovllm.models import load_spec
from nanovllm.sampling_params import SamplingParams

MAX_MODEL_LEN = 160
MARGIN = 1e-3  # of the two best logits, as for the oracle
# dtype, gemm, kv_cache_dtype; what BLAS multiplies comes last.
KINDS = [
    ("float32", "native", "float32"),
    ("bfloat16", "native", "bfloat16"),
    ("int8", "native", "int8"),
    ("float32", "native", "int8"),
    ("int8", "native", "bfloat16"),
    ("bfloat16", "native", "float32"),
    ("float32", "blas", "float32"),
]
NAMES = ("dtype", "gemm", "kv_cache_dtype")


@pytest.fixture(params=KINDS, ids="-".join)
def kind(request):
    return dict(zip(NAMES, request.param, strict=True))


def make(models_dir, case, num_blocks=40, **settings):
    spec = load_spec(models_dir / case, MAX_MODEL_LEN)
    config = EngineConfig(**{"threads": 1, "max_model_len": MAX_MODEL_LEN, "dtype": "float32", **settings})
    size = block_bytes(spec, resolve_cache_dtype(config, config.dtype)) * num_blocks
    config = dataclasses.replace(config, kv_cache_memory=size)
    return load_engine(models_dir / case, config)[0]


def record(engine, jobs, arrivals=None):
    """Serve (prompt, max_tokens) jobs; for each the ids and the logits that chose them."""
    seqs, logits, waiting, step = [], {}, list(zip(arrivals or [0] * len(jobs), jobs, strict=True)), 0
    run, newest = engine.runner.run, []

    def run_and_keep_logits(batch):
        token_ids = run(batch)
        if batch.samples:
            kept = np.empty((len(batch.samples), engine.spec.vocab_size), np.float32)
            engine.runner.decoder.logits(batch.sample_rows, kept)
            newest[:] = kept
            assert token_ids == kept.argmax(axis=1).tolist()
        return token_ids

    engine.runner.run = run_and_keep_logits
    while waiting or engine.has_unfinished:
        while waiting and (waiting[0][0] <= step or not engine.has_unfinished):
            prompt, max_tokens = waiting.pop(0)[1]
            params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
            seqs.append(Sequence("", list(prompt), params))
            engine.add(seqs[-1])
        advanced = engine.step()
        for row, seq in enumerate(advanced):
            logits.setdefault(seq, []).append(newest[row])
        engine.block_manager.check(engine.scheduler.running)
        step += 1
    engine.block_manager.check([])
    engine.runner.run = run
    return [(seq.completion_ids, np.stack(logits[seq])) for seq in seqs]


def assert_same(found, expected, exact):
    for (ids, logits), (expected_ids, expected_logits) in zip(found, expected, strict=True):
        if exact:
            assert ids == expected_ids
            np.testing.assert_array_equal(logits, expected_logits)
            continue
        top = np.sort(expected_logits, axis=1)
        unclear = np.flatnonzero(top[:, -1] - top[:, -2] < MARGIN)
        stop = int(unclear[0]) if len(unclear) else len(expected_ids)
        assert ids[:stop] == expected_ids[:stop]
        np.testing.assert_allclose(logits[: stop + 1], expected_logits[: stop + 1], atol=MARGIN, rtol=0)


def alone(engine, jobs):
    return [record(engine, [job])[0] for job in jobs]


def some_jobs(seed, vocab_size=500):
    """Prompts around block borders, some with a common beginning."""
    rng = np.random.default_rng(seed)
    beginning = rng.integers(0, vocab_size, 70).tolist()
    ends = [rng.integers(0, vocab_size, n).tolist() for n in (1, 31, 32, 33, 5, 64)]
    return [(prompt, 10) for prompt in (*ends, beginning + ends[0], beginning[:33] + ends[4], beginning)]


@pytest.mark.parametrize("case", ["llama-f32", "qwen2-swa-layers", "llama-odd", "qwen3-bf16"])
def test_batch_chunks_preemption_cache_and_threads_change_nothing(models_dir, case, kind):
    jobs, exact = some_jobs(1), kind["gemm"] == "native"
    expected = alone(make(models_dir, case, enable_prefix_caching=False, **kind), jobs)
    assert_same(record(make(models_dir, case, **kind), jobs), expected, exact)
    for chunk in (7, 33):
        assert_same(record(make(models_dir, case, max_num_batched_tokens=chunk, **kind), jobs), expected, exact)
    small = make(models_dir, case, num_blocks=5, **kind)
    assert_same(record(small, jobs), expected, exact)
    assert small.scheduler.num_preemptions > 0
    cached = make(models_dir, case, **kind)
    record(cached, jobs)
    before = cached.stats.cached_tokens
    assert_same(record(cached, jobs), expected, exact)
    assert cached.stats.cached_tokens - before >= 5 * 32
    for threads in (2, 3):
        assert_same(record(make(models_dir, case, threads=threads, **kind), jobs), expected, exact)


JOBS = st.lists(
    st.tuples(
        st.builds(
            lambda shared, length, end: ([7, 11, 13, 17] * 24)[:length] * shared + end or [1],
            st.booleans(), st.integers(1, 96), st.lists(st.integers(0, 499), max_size=40),
        ),
        st.integers(1, 12),
    ),
    min_size=1, max_size=7,
)  # fmt: skip


@given(
    jobs=JOBS,
    arrivals=st.lists(st.integers(0, 6), min_size=7, max_size=7),
    num_blocks=st.integers(5, 12),
    chunk=st.sampled_from([1, 5, 7, 32, 33, 64, 512]),
    max_num_seqs=st.integers(1, 7),
    caching=st.booleans(),
    threads=st.integers(1, 3),
    kind=st.sampled_from(KINDS[:-1]),
)
@settings(max_examples=40)
def test_random_mixes(models_dir, jobs, arrivals, num_blocks, chunk, max_num_seqs, caching, threads, kind):
    kind = dict(zip(NAMES, kind, strict=True))
    expected = alone(make(models_dir, "llama-f32", enable_prefix_caching=False, **kind), jobs)
    engine = make(
        models_dir, "llama-f32", num_blocks, max_num_batched_tokens=chunk, max_num_seqs=max_num_seqs,
        enable_prefix_caching=caching, threads=threads, **kind,
    )  # fmt: skip
    assert_same(record(engine, jobs, sorted(arrivals[: len(jobs)])), expected, exact=True)


@pytest.mark.parametrize(
    "dtype, cache",
    [("float32", "auto"), ("bfloat16", "auto"), ("int8", "auto"), ("float32", "int8"), ("bfloat16", "int8")],
)
def test_every_level_keeps_the_promise(models_dir, level, dtype, cache):
    jobs, kind = some_jobs(2)[:5], {"dtype": dtype, "kv_cache_dtype": cache}
    expected = alone(make(models_dir, "llama-f32", enable_prefix_caching=False, **kind), jobs)
    assert_same(record(make(models_dir, "llama-f32", num_blocks=5, **kind), jobs), expected, exact=True)
    chunked = make(models_dir, "llama-f32", max_num_batched_tokens=7, threads=2, **kind)
    assert_same(record(chunked, jobs), expected, exact=True)


def test_prompt_logprobs_do_not_depend_on_chunks(models_dir):
    prompt = np.random.default_rng(3).integers(0, 500, 90).tolist()
    found = []
    for chunk in (512, 7, 33):
        engine = make(models_dir, "llama-f32", max_num_batched_tokens=chunk, dtype="float32")
        engine.add(Sequence("", list(prompt), SamplingParams(temperature=0, max_tokens=1)))
        logprobs, start = [], 0
        while engine.has_unfinished:
            engine.step()
            end = min(engine.stats.computed_tokens, len(prompt) - 1)
            logprobs += engine.runner.token_logprobs(np.arange(end - start), prompt[start + 1 : end + 1]).tolist()
            start = engine.stats.computed_tokens
        found.append(logprobs)
    assert len(found[0]) == 89
    assert found[0] == found[1] == found[2]
