"""What a model would get on this machine, found out without reading a weight: for checks before a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanovllm.checkpoint.hub import resolve_model
from nanovllm.checkpoint.loader import Checkpoint, check_tensors
from nanovllm.config import EngineConfig
from nanovllm.engine.limits import (
    Limits,
    check_whole_vocabulary,
    decide_limits,
    resolve_cache_dtype,
    resolve_dtype,
    step_bytes,
)
from nanovllm.engine.weights import HEAD
from nanovllm.errors import ConfigError, MemoryBudgetError, RequestError
from nanovllm.machine import available_memory, format_bytes
from nanovllm.models import load_spec
from nanovllm.models.spec import ModelSpec
from nanovllm.sampling_params import SamplingParams
from nanovllm.structured import check_structured_outputs
from nanovllm.token_rules import check_vocabulary, find_thinking_tags
from nanovllm.tokenizer import Tokenizer

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(slots=True)
class ModelPlan:
    """A model with its settings, as `LLM` would serve it.

    Attributes:
        tokenizer: the tokenizer.
        spec: the architecture.
        limits: lengths and batch sizes.
        dtype: how weights will be kept.
        kv_cache_dtype: what the KV cache will hold.
        weights_bytes: about what the weights will take.
        scratch_bytes: the most that activations and logits of a step take.
        free_bytes: what is free now.
        defaults: sampling parameters of requests that set none.
    """

    tokenizer: Tokenizer
    spec: ModelSpec
    limits: Limits
    dtype: str
    kv_cache_dtype: str
    weights_bytes: int
    scratch_bytes: int
    free_bytes: int
    defaults: SamplingParams

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self.limits.max_model_len

    def check_request(self, token_ids: list[int], params: SamplingParams) -> None:
        """Refuse a request as `LLM` would. Raises RequestError."""
        check_vocabulary(params, self.spec.vocab_size)
        find_thinking_tags(params, self.tokenizer, self.spec.vocab_size)
        try:
            check_structured_outputs(params)
        except ConfigError as error:
            raise RequestError("structured_outputs_unavailable", str(error)) from None
        if not token_ids:
            raise RequestError("empty_prompt", "the prompt has no tokens; give at least one")
        vocab_size = self.spec.vocab_size
        bad = next((i for i in token_ids if not 0 <= i < vocab_size), None)
        if bad is not None:
            raise RequestError("invalid_token_id", f"token id {bad} is outside the model's vocabulary of {vocab_size}")
        if len(token_ids) >= self.max_model_len:
            raise RequestError(
                "prompt_too_long",
                f"the prompt has {len(token_ids)} tokens, and with at least one to generate the limit is "
                f"{self.max_model_len} (max_model_len); shorten it or raise max_model_len",
            )
        check_whole_vocabulary(params, len(token_ids), vocab_size, self.max_model_len)


def plan_model(model: str | Path, **settings: Any) -> ModelPlan:
    """Decide everything about a model but load nothing.

    Args:
        model: a Hugging Face directory or hub id.
        **settings: the fields of `EngineConfig`.

    Raises:
        UsageError: the model or a setting cannot be used on this machine.
    """
    config = EngineConfig.from_dict(settings)
    model_dir = resolve_model(model)
    spec = load_spec(model_dir, None if config.max_model_len == "auto" else config.max_model_len)
    with Checkpoint(model_dir) as checkpoint:
        check_tensors(checkpoint, spec.slots(), ignorable=(HEAD,))
    dtype = resolve_dtype(config)
    weights, free = _BYTES[dtype] * spec.num_parameters, available_memory()
    if weights > free:
        raise MemoryBudgetError(
            f"the weights take about {format_bytes(weights)} in {dtype}, and {format_bytes(free)} is free: choose a "
            "smaller dtype or free memory"
        )
    cache_dtype = resolve_cache_dtype(config, dtype)
    limits = decide_limits(config, spec, cache_dtype, free - weights)
    return ModelPlan(
        tokenizer=Tokenizer.from_pretrained(model_dir, config.chat_template),
        spec=spec,
        limits=limits,
        dtype=dtype,
        kv_cache_dtype=cache_dtype,
        weights_bytes=weights,
        scratch_bytes=step_bytes(spec, limits.max_num_seqs, limits.max_num_batched_tokens),
        free_bytes=free,
        defaults=_defaults(config, spec, model_dir),
    )


def _defaults(config: EngineConfig, spec: ModelSpec, model_dir: Path) -> SamplingParams:
    if config.generation_config == "none":
        return SamplingParams()
    try:
        return SamplingParams.from_dict(spec.generation_defaults)
    except ConfigError as error:
        raise ConfigError(f"{model_dir / 'generation_config.json'}: {error}") from None
