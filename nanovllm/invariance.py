"""`nanovllm bench --check-invariance`: does a request get the same bits whatever runs beside it?

Requests of mixed lengths and settings run alone, then in batches of different sizes, reversed, on one or more threads,
with small and large prefill chunks, with and without prefix caching, and with a KV cache that forces preemptions.
Token ids and log probabilities of all samples must be equal bit for bit. The engine promises this for every dtype with
its own kernels (`gemm: native`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nanovllm.engine.limits import block_bytes
from nanovllm.kernels.decoder import BLOCK_SIZE
from nanovllm.llm import LLM
from nanovllm.outputs import Request
from nanovllm.sampling_params import SamplingParams

NUM_REQUESTS = 60
NEW_TOKENS = 48
LONGEST_PROMPT = 160


def make_requests(vocab_size: int, count: int = NUM_REQUESTS, seed: int = 0) -> list[Request]:
    """Return requests of mixed lengths, some sharing a beginning.

    Greedy ones and sampled ones of 1 to 4 samples, with and without penalties, log probabilities and prompt logprobs.
    """
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, vocab_size, 70).tolist()
    requests = []
    for i in range(count):
        ids = rng.integers(0, vocab_size, int(rng.integers(1, LONGEST_PROMPT - 70))).tolist()
        prompt = shared + ids if i % 5 == 0 else ids
        params = SamplingParams(
            temperature=0.0 if i % 2 else 0.9, top_k=(0, 20, 0)[i % 3], top_p=(1.0, 0.9)[i % 4 // 2], seed=i,
            n=1 if i % 2 else 1 + i // 2 % 4, repetition_penalty=1.2 if i % 7 == 0 else 1.0, max_tokens=NEW_TOKENS,
            ignore_eos=True, logprobs=(None, 0, 1, 5)[i % 4], prompt_logprobs=1 if i % 11 == 0 else None,
        )  # fmt: skip
        requests.append(Request(prompt, params, str(i), data=i))
    return requests


def _answers(llm: LLM, requests: list[Request], group: int) -> dict[int, tuple]:
    """Ids and log probabilities by request, `group` requests in flight at a time."""
    found = {}
    for start in range(0, len(requests), group):
        for output in llm.generate_iter(requests[start : start + group]):
            steps = [step for completion in output.outputs for step in completion.logprobs or []]
            steps += (output.prompt_logprobs or [None])[1:]
            scores = [(token_id, entry.logprob) for step in steps for token_id, entry in step.items()]
            ids = tuple(tuple(completion.token_ids) for completion in output.outputs)
            found[output.data] = (ids, np.array(scores, np.float64).tobytes())
    return found


def variants(count: int, tight_cache: int) -> Iterator[tuple[str, dict[str, Any], int, bool]]:
    """Yield (name, settings of LLM, requests in flight, reversed order)."""
    for size in (2, 7, 32):
        yield f"batches of {size}", {}, size, False
    yield f"all {count} at once", {}, count, False
    yield "all at once, reversed", {}, count, True
    yield "one thread", {"threads": 1}, count, False
    yield "two threads", {"threads": 2}, count, False
    yield "prefill chunks of 16", {"max_num_batched_tokens": 16}, count, False
    yield "prefill chunks of 512", {"max_num_batched_tokens": 512}, count, False
    yield "no prefix caching", {"enable_prefix_caching": False}, count, False
    yield "a cache that forces preemptions", {"kv_cache_memory": tight_cache}, count, False


def check_invariance(
    model: Any, *, num_requests: int = NUM_REQUESTS, progress: Callable[[str], None] | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Run every variant.

    Args:
        model: a Hugging Face directory or hub id.
        num_requests: how many requests.
        progress: called with a few words before and after each part.
        settings: keyword arguments of `LLM`, such as dtype.

    Returns:
        For each variant: its name, how many of the requests differ from running alone, and the preemptions it had.
    """
    say = progress or (lambda text: None)
    length = LONGEST_PROMPT + NEW_TOKENS + 1
    settings = {"max_model_len": length, **settings}
    say("each request alone")
    llm = LLM(model, **settings)
    requests = make_requests(llm.engine.spec.vocab_size, num_requests)
    alone = _answers(llm, requests, 1)
    # Room for seven of the longest sequences, where many of mixed length want to run and grow.
    tight = block_bytes(llm.engine.spec, llm.engine.kv_cache_dtype) * 7 * -(-length // BLOCK_SIZE)
    del llm
    rows = []
    for name, changes, group, backwards in variants(num_requests, tight):
        say(name)
        llm = LLM(model, **(settings | changes))
        found = _answers(llm, requests[::-1] if backwards else requests, group)
        different, preemptions = sum(found[i] != alone[i] for i in alone), llm.stats()["preemptions"]
        rows.append({"variant": name, "different": different, "preemptions": preemptions})
        say(f"{name}: {different} different, {preemptions} preemptions")
        del llm
    return rows
