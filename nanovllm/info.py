"""Facts about the machine, a model folder and a loaded engine, for `nanovllm info` and manifests."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import nanovllm
from nanovllm import machine

_PACKAGES = ("numpy", "scipy", "safetensors", "tokenizers", "pyyaml", "tqdm", "jinja2")


@functools.cache  # reading the packages' metadata takes longer than a whole run of a few short rows
def _versions() -> dict[str, str]:
    found = {"nanovllm": nanovllm.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine_info() -> dict[str, Any]:
    """Describe CPU, kernels, threads, BLAS, memory and versions."""
    from nanovllm.config import EngineConfig
    from nanovllm.engine.limits import resolve_dtype
    from nanovllm.kernels import blas, isa

    cpu = machine.cpu()
    return {
        "cpu": cpu.model,
        "architecture": cpu.architecture,
        "cpu_features": " ".join(cpu.flags),
        "kernels": isa.active_level(),
        "kernels_available": " ".join(isa.available_levels()),
        "dtype_auto": resolve_dtype(EngineConfig()),
        "threads": machine.usable_cpus(),
        "blas": " ".join(blas.describe()) or "unknown",
        "memory_free": machine.format_bytes(machine.available_memory()),
        "versions": dict(_versions()),
    }


def model_identity(model_dir: Path) -> str:
    """Name the weights in a model folder, as `model_info` and `LLM.facts` do, and read nothing else of it.

    Raises:
        CheckpointError: there are no weights, or their headers are broken.
    """
    from nanovllm.checkpoint.loader import Checkpoint

    with Checkpoint(model_dir) as checkpoint:
        return checkpoint.identity()


def model_info(path: str | Path, max_model_len: int | None = None) -> dict[str, Any]:
    """Describe a model folder without loading its weights.

    Raises:
        UsageError: it is not a checkpoint that can be served.
    """
    from nanovllm.checkpoint.hub import resolve_model
    from nanovllm.checkpoint.loader import Checkpoint, check_tensors
    from nanovllm.config import CACHE_DTYPES
    from nanovllm.engine.limits import block_bytes
    from nanovllm.engine.weights import HEAD
    from nanovllm.kernels.decoder import BLOCK_SIZE
    from nanovllm.models import load_spec
    from nanovllm.tokenizer import Tokenizer

    model_dir = resolve_model(path)
    spec = load_spec(model_dir, max_model_len)
    with Checkpoint(model_dir) as checkpoint:
        check_tensors(checkpoint, spec.slots(), ignorable=(HEAD,))
        identity = checkpoint.identity()
        stored = sorted({checkpoint.names[slot.name].dtype for slot in spec.slots() if slot.name in checkpoint.names})
    tokenizer = Tokenizer.from_pretrained(model_dir)
    windows = sorted(set(spec.sliding_windows) - {0})
    eos = ", ".join(map(str, spec.eos_token_ids)) or "none: only max_tokens or a stop ends a completion"
    return {
        "model": str(model_dir),
        "architecture": spec.model_type,
        "parameters": f"{spec.num_parameters:,}",
        "stored_dtype": " ".join(stored),
        "layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "heads": f"{spec.num_attention_heads} query, {spec.num_key_value_heads} key/value, of {spec.head_dim}",
        "vocabulary": spec.vocab_size,
        "context": f"{spec.max_context} positions",
        "rope": spec.rope.regime,
        "sliding_window": ", ".join(map(str, windows)) or "none",
        "tied_embeddings": f"{'yes' if spec.tie_word_embeddings else 'no'} ({spec.tie_origin})",
        "eos_token_ids": eos,
        "chat_template": "yes" if tokenizer.has_chat_template else "no",
        "sampling_defaults": spec.generation_defaults or "built-in",
        "memory_weights_float32": machine.format_bytes(4 * spec.num_parameters),
        "memory_kv_per_1000_tokens": {
            dtype: machine.format_bytes(block_bytes(spec, dtype) / BLOCK_SIZE * 1000)
            for dtype in CACHE_DTYPES
            if dtype != "auto"
        },
        "identity": identity,
        "warnings": list(spec.warnings),
    }


def engine_facts(llm: Any) -> dict[str, Any]:
    """Describe a loaded `LLM` as a manifest wants it."""
    from nanovllm.kernels import isa

    engine, limits, cpu = llm.engine, llm.engine.limits, machine.cpu()
    return {
        "model": {
            "path": str(llm.model_dir),
            "identity": llm.model_identity,
            "architecture": engine.spec.model_type,
            "parameters": engine.spec.num_parameters,
            "rope": engine.spec.rope.regime,
            "eos_token_ids": list(engine.spec.eos_token_ids),
            "generation_defaults": dict(engine.spec.generation_defaults),
        },
        "tokenizer": {"sha256": llm.tokenizer.sha256, "chat_template_sha256": llm.tokenizer.chat_template_sha256},
        "engine": {
            "dtype": engine.dtype,
            "kv_cache_dtype": engine.kv_cache_dtype,
            "threads": engine.runner.team.num_threads,
            "max_model_len": limits.max_model_len,
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "kv_cache_bytes": limits.kv_cache_bytes,
            "enable_prefix_caching": llm.config.enable_prefix_caching,
            "reorder": llm.config.reorder,
            "seed": llm.config.seed,
            "generation_config": llm.config.generation_config,
        },
        "kernels": isa.active_level(),
        "cpu": {"model": cpu.model, "architecture": cpu.architecture, "features": list(cpu.flags)},
        "versions": dict(_versions()),
    }
