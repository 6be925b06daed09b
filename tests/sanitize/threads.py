"""Drive the team of threads and the whole decoder on four threads; `make sanitize` runs it under ThreadSanitizer.

A script and no pytest file, since a sanitizer ends the process at the first race.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nanovllm import LLM, Request, SamplingParams
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


def longer_model(folder: Path) -> Path:
    """Return a copy of the checkpoint that takes more positions than two pieces of attention have."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("expected.*"))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "max_position_embeddings": 2048}), encoding="utf-8")
    return folder


def share(model: Path, dtype: str) -> None:
    """Generate for 24 sequences at once that begin alike: two whole pieces, which tiles of several sequences read."""
    llm = LLM(model, dtype=dtype, threads=4, max_model_len=1100, max_num_seqs=24, kv_cache_memory="4MiB")
    beginning = [7 * i % 400 + 3 for i in range(1040)]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    outputs, most = [], 0

    def source() -> Iterator[Request | None]:
        nonlocal most
        yield from (Request([*beginning, 3 + i], params, str(i)) for i in range(24))
        while len(outputs) < 24:
            yield None
            most = max(most, llm.engine.runner.decoder.num_sharing)

    for output in llm.generate_iter(source()):
        outputs.append(output)
    if most < 24:
        raise SystemExit(f"{dtype}: expected a step in which 24 sequences share keys and values, found {most}")
    print(f"{dtype}: up to {most} sequences shared what their prompts begin with")


def main() -> None:
    """Cross barriers, then generate in every number format, without and with a common beginning."""
    violations = barrier_violations(Team(4), 2000)
    if violations:
        raise SystemExit(f"{violations} barriers were crossed too early")
    with tempfile.TemporaryDirectory() as folder:
        model = longer_model(Path(folder) / "model")
        for dtype in KV_CACHE:
            generate(dtype)
            share(model, dtype)


if __name__ == "__main__":
    main()
