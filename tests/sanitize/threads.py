"""Drive the team of threads and the whole decoder on four threads; `make sanitize` runs it under ThreadSanitizer.

A script and no pytest file, since a sanitizer ends the process at the first race.
"""

from pathlib import Path

from nanovllm import LLM, SamplingParams
from nanovllm.kernels.team import Team, barrier_violations

MODEL = Path(__file__).parents[1] / "golden" / "models" / "llama-f32"
# Room for some of the prompts at a time; a bfloat16 cache takes half, an int8 cache of small heads a third.
KV_CACHE = {"float32": "250KiB", "bfloat16": "125KiB", "int8": "80KiB"}


def generate(dtype: str) -> None:
    """Generate with prefill in chunks, a cache that is too small for all, and sampling."""
    llm = LLM(
        MODEL, dtype=dtype, threads=4, max_num_batched_tokens=64, max_model_len=100, kv_cache_memory=KV_CACHE[dtype]
    )
    prompts = [[(7 * i + j) % 100 + 3 for j in range(5 + 9 * i)] for i in range(8)]
    params = SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.1, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    if lengths != [12] * 8:
        raise SystemExit(f"{dtype}: expected 12 tokens for each prompt, found {lengths}")
    print(f"{dtype}: {llm.stats()['steps']} steps on 4 threads, {llm.stats()['preemptions']} preemptions")


def main() -> None:
    """Cross barriers, then generate in every number format."""
    violations = barrier_violations(Team(4), 2000)
    if violations:
        raise SystemExit(f"{violations} barriers were crossed too early")
    for dtype in KV_CACHE:
        generate(dtype)


if __name__ == "__main__":
    main()
