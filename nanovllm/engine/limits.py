"""What "auto" means: lengths, batch sizes and KV memory from the model and the machine."""

from __future__ import annotations

from dataclasses import dataclass

from nanovllm.config import EngineConfig
from nanovllm.errors import ConfigError, MemoryBudgetError, RequestError
from nanovllm.kernels import isa
from nanovllm.kernels.decoder import BLOCK_SIZE, cache_block_bytes
from nanovllm.machine import format_bytes
from nanovllm.models.spec import ModelSpec
from nanovllm.sampling_params import WHOLE_VOCABULARY, SamplingParams

DEFAULT_MAX_NUM_SEQS = 64
DEFAULT_MAX_NUM_BATCHED_TOKENS = 512
# Half of what is free: the rest is for the page cache of the weights' file, activations and the user's other programs.
KV_SHARE = 0.5
# The cache's rounding is to be smaller than that of the weights beside it; docs/performance.md has what it costs.
AUTO_CACHE_DTYPE = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8"}
# Of a request that asks for those of all ids. Each takes about 200 bytes in a result: so this many take 800 MB.
MAX_WHOLE_LOGPROBS = 2**22


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's sizes, all decided.

    Attributes:
        kv_cache_bytes: what num_blocks blocks take over all layers.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    kv_cache_bytes: int


def resolve_dtype(config: EngineConfig) -> str:
    """Decide what dtype "auto" is: bfloat16 only where the CPU multiplies it, since elsewhere float32 is exact too."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if isa.has_bf16_units() and config.gemm == "native" else "float32"


def resolve_cache_dtype(config: EngineConfig, dtype: str) -> str:
    """Decide what the KV cache beside weights of `dtype` holds."""
    return AUTO_CACHE_DTYPE[dtype] if config.kv_cache_dtype == "auto" else config.kv_cache_dtype


def block_bytes(spec: ModelSpec, cache_dtype: str = "float32") -> int:
    """Bytes of one KV block over all layers."""
    return spec.num_hidden_layers * spec.num_key_value_heads * cache_block_bytes(cache_dtype, spec.head_dim)


def step_bytes(spec: ModelSpec, seqs: int, tokens: int) -> int:
    """Most bytes of scratch that a step touches: activations of its rows, logits of its sequences (generously)."""
    heads = spec.num_attention_heads + 2 * spec.num_key_value_heads
    row = 3 * spec.hidden_size + 2 * heads * spec.head_dim + 3 * spec.intermediate_size
    return 4 * (tokens * row + min(seqs, tokens) * spec.vocab_size)


def _wanted_length(config: EngineConfig, spec: ModelSpec) -> int:
    if config.max_model_len == "auto":
        # Dynamic NTK bends the frequencies for every position once the length passes the trained one: ask for that.
        return spec.max_position_embeddings if spec.rope.rope_type == "dynamic" else spec.max_context
    if config.max_model_len > spec.max_context:
        raise ConfigError(
            f"max_model_len: {config.max_model_len} is more than the {spec.max_context} positions this model "
            f"was made for ({spec.rope.regime}); set at most that"
        )
    return config.max_model_len


def decide_limits(config: EngineConfig, spec: ModelSpec, cache_dtype: str, free_bytes: int) -> Limits:
    """Size the engine for `free_bytes` of free memory (the weights already loaded).

    Raises:
        ConfigError: max_model_len is beyond the model.
        MemoryBudgetError: the KV cache cannot hold one sequence of max_model_len.
    """
    length = _wanted_length(config, spec)
    seqs = DEFAULT_MAX_NUM_SEQS if config.max_num_seqs == "auto" else config.max_num_seqs
    tokens = config.max_num_batched_tokens
    tokens = max(DEFAULT_MAX_NUM_BATCHED_TOKENS, seqs) if tokens == "auto" else tokens
    each = block_bytes(spec, cache_dtype)
    if config.kv_cache_memory == "auto":
        budget = min(int(free_bytes * KV_SHARE), seqs * -(-length // BLOCK_SIZE) * each)
        source = f"half of the {format_bytes(free_bytes)} that is free"
    else:
        budget, source = config.kv_cache_memory, "kv_cache_memory"
        if budget > free_bytes:
            raise MemoryBudgetError(
                f"kv_cache_memory: {format_bytes(budget)} asked for, only {format_bytes(free_bytes)} is free on this "
                f"machine: lower kv_cache_memory or free memory"
            )
    blocks = budget // each
    if config.max_model_len == "auto":
        length = min(length, blocks * BLOCK_SIZE)
    if blocks < 1 or blocks * BLOCK_SIZE < length:
        needed = max(1, -(-length // BLOCK_SIZE)) * each
        raise MemoryBudgetError(
            f"the KV cache of {format_bytes(budget)} ({source}) is too small for one sequence of {length} tokens, "
            f"which takes {format_bytes(needed)}: lower max_model_len, raise kv_cache_memory or free memory"
        )
    scratch = step_bytes(spec, seqs, tokens)
    if max(seqs, tokens) > DEFAULT_MAX_NUM_BATCHED_TOKENS and scratch > free_bytes:
        raise MemoryBudgetError(
            f"one step of {tokens} tokens and {seqs} sequences takes {format_bytes(scratch)} of scratch, only "
            f"{format_bytes(free_bytes)} is free: lower max_num_batched_tokens and max_num_seqs"
        )
    return Limits(length, seqs, tokens, blocks, blocks * each)


def check_whole_vocabulary(params: SamplingParams, num_prompt: int, vocab_size: int, max_model_len: int) -> None:
    """Refuse a request whose log probabilities of all ids would fill the memory.

    Raises:
        RequestError: code invalid_sampling.
    """
    room = max_model_len - num_prompt
    length = room if params.max_tokens is None else min(params.max_tokens, room)
    positions = {"logprobs": params.n * length, "prompt_logprobs": num_prompt - 1}
    asking = [name for name in positions if getattr(params, name) == WHOLE_VOCABULARY]
    num_positions = sum(positions[name] for name in asking)
    if num_positions * vocab_size > MAX_WHOLE_LOGPROBS:
        raise RequestError(
            "invalid_sampling",
            f"{' and '.join(asking)} -1 would give all {vocab_size} ids at up to {num_positions} positions, expected "
            f"at most {MAX_WHOLE_LOGPROBS // vocab_size} positions, since more would fill the memory; ask for a number "
            "of the best ids, lower max_tokens or shorten the prompt",
        )
