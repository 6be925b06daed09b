"""Offline batch generation with language models on ordinary CPUs.

The names in `__all__` are the whole public surface. They are imported on first use, so that `import nanovllm` and
`nanovllm --help` cost next to nothing.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "LLM": "nanovllm.llm",
    "SamplingParams": "nanovllm.sampling_params",
    "THINKING_TAGS": "nanovllm.sampling_params",
    "StructuredOutputsParams": "nanovllm.structured_params",
    "check_structured_outputs": "nanovllm.structured",
    "Request": "nanovllm.outputs",
    "RequestOutput": "nanovllm.outputs",
    "CompletionOutput": "nanovllm.outputs",
    "Logprob": "nanovllm.outputs",
    "ScoreOutput": "nanovllm.outputs",
    "PerplexityOutput": "nanovllm.outputs",
    "ScoreRequest": "nanovllm.outputs",
    "ScoredRequest": "nanovllm.outputs",
    "Tokenizer": "nanovllm.tokenizer",
    "NanovllmError": "nanovllm.errors",
    "UsageError": "nanovllm.errors",
    "ConfigError": "nanovllm.errors",
    "CheckpointError": "nanovllm.errors",
    "TokenizerError": "nanovllm.errors",
    "MemoryBudgetError": "nanovllm.errors",
    "RequestError": "nanovllm.errors",
    "EngineConfig": "nanovllm.config",
    "convert_gguf": "nanovllm.checkpoint.gguf",
    "fetch_demo": "nanovllm.checkpoint.demo",
    "resolve_model": "nanovllm.checkpoint.hub",
    "machine_info": "nanovllm.info",
    "model_identity": "nanovllm.info",
    "model_info": "nanovllm.info",
    "plan_model": "nanovllm.plan",
    "bench_model": "nanovllm.bench",
    "check_invariance": "nanovllm.invariance",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'nanovllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
