"""One engine in a process of its own: loads the model, then runs the workloads that it is told on stdin.

    python benchmarks/engines.py ENGINE DTYPE MODEL THREADS

Reads lines "W1 SEED", answers each with one JSON line. Started by peers.py, with the Python of the environment that has
the engine. Every engine is greedy, ignores EOS, takes token ids and gives them back.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import workloads

Run = Callable[[list[list[int]], int], list[list[int]]]


def nanovllm(model: str, dtype: str, threads: int) -> tuple[Run, str]:
    """Load nanovllm."""
    import nanovllm as package

    llm = package.LLM(model, dtype=dtype, threads=threads, max_model_len=1024)

    def run(prompts, new):
        params = package.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        return [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]

    return run, package.__version__


def vllm(model: str, dtype: str, threads: int) -> tuple[Run, str]:
    """Load vLLM's CPU build."""
    import os

    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    import vllm as package

    llm = package.LLM(model, dtype={"bf16": "bfloat16", "fp32": "float32"}[dtype], max_model_len=1024)

    def run(prompts, new):
        params = package.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [list(o.outputs[0].token_ids) for o in outputs]

    return run, package.__version__


def transformers(model: str, dtype: str, threads: int) -> tuple[Run, str]:
    """Load transformers; prompts of unequal length are padded on the left in one batch."""
    import torch
    import transformers as package

    torch.set_num_threads(threads)
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    lm = package.AutoModelForCausalLM.from_pretrained(model, dtype=kind).eval()

    def run(prompts, new):
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = lm.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new,
                              pad_token_id=0)  # fmt: skip
        return out[:, width:].tolist()

    return run, package.__version__


def openvino(model: str, dtype: str, threads: int) -> tuple[Run, str]:
    """Load OpenVINO GenAI; MODEL/../ov-NAME/DTYPE holds the exported model."""
    import numpy as np
    import openvino as core
    import openvino_genai as package

    folder = Path(model).parent / f"ov-{Path(model).name}" / dtype
    scheduler = package.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens, scheduler.max_num_seqs = 4, 2048, 64
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if "ONEDNN_MAX_CPU_ISA" in os.environ:  # it would still choose bfloat16 by the CPU's own units, and fail
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    pipe = package.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)

    def run(prompts, new):
        config = package.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        inputs = [core.Tensor(np.array([p], np.int64)) for p in prompts]
        handles = [pipe.add_request(0, inputs[0], config)]
        if len(prompts) > 1 and prompts[0][:64] == prompts[1][:64]:
            pipe.step()  # its cache only serves blocks that were computed before a request came
        handles += [pipe.add_request(i, tensor, config) for i, tensor in enumerate(inputs) if i]
        while pipe.has_non_finished_requests():
            pipe.step()
        return [list(handle.read_all()[0].generated_ids) for handle in handles]

    return run, package.__version__


def llamacpp(model: str, dtype: str, threads: int) -> tuple[Run, str]:
    """Load llama.cpp."""
    from llamacpp import LlamaCpp

    engine = LlamaCpp(model, dtype, threads)
    return engine.run, engine.version


ENGINES = {
    "nanovllm": nanovllm, "vllm": vllm, "transformers": transformers, "openvino": openvino, "llamacpp": llamacpp,
}  # fmt: skip


def main() -> None:
    """Load, warm up, then serve stdin."""
    engine, dtype, model, threads = sys.argv[1:5]
    vocab = workloads.vocabulary(model)
    start = time.perf_counter()
    run, version = ENGINES[engine](model, dtype, int(threads))
    load_s = time.perf_counter() - start
    run(*workloads.warm_up(vocab))
    print(json.dumps({"ready": True, "version": version, "load_s": round(load_s, 2)}), flush=True)
    for line in sys.stdin:
        name, seed = line.split()
        prompts, new = workloads.make(name, vocab, int(seed))
        start = time.perf_counter()
        out = run(prompts, new)
        wall = time.perf_counter() - start
        wrong = [len(ids) for ids in out if len(ids) != new]
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        answer = {"wall_s": round(wall, 3), "wrong_lengths": len(wrong), "peak_rss_mib": rss, "first_ids": out[0][:6]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
