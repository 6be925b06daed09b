"""Sizes of an engine: what "auto" becomes, and refusals that say what to lower."""

import pytest

from nanovllm.config import EngineConfig
from nanovllm.engine.limits import Limits, block_bytes, decide_limits, resolve_dtype
from nanovllm.errors import ConfigError, MemoryBudgetError
from nanovllm.info import machine_info
from nanovllm.kernels import isa
from nanovllm.models import load_spec

MIB = 1 << 20
CASE = "qwen3-bf16"
# 2 layers, 2 kv heads, head_dim 32, 512 positions. A block is 2 * 2 * 32 positions * (32 + 32) * 4 bytes.
BLOCK = 32768


@pytest.fixture(scope="module")
def spec(models_dir):
    return load_spec(models_dir / CASE)


def limits(spec, free=100 * MIB, **settings):
    return decide_limits(EngineConfig(**settings), spec, "float32", free)


def test_bytes_of_a_block(models_dir, spec):
    assert (spec.num_hidden_layers, spec.num_key_value_heads, spec.head_dim) == (2, 2, 32)
    assert block_bytes(spec) == BLOCK
    # head_dim 24: keys as they are, values padded to a multiple of 32; 2 layers, 3 kv heads.
    odd = load_spec(models_dir / "llama-odd")
    assert (odd.num_hidden_layers, odd.num_key_value_heads, odd.head_dim) == (2, 3, 24)
    assert block_bytes(odd) == 2 * 3 * 32 * (24 + 32) * 4
    assert block_bytes(odd, "bfloat16") == 2 * 3 * 32 * (24 + 32) * 2
    # int8: a float32 scale of the key and one of the value for each position and head.
    assert block_bytes(odd, "int8") == 2 * 3 * 32 * (24 + 32 + 2 * 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_cache_is_kept_as_the_weights_are_unless_told_otherwise(make_engine, dtype):
    assert make_engine("llama-f32", max_model_len=64, dtype=dtype).kv_cache_dtype == dtype
    assert make_engine("llama-f32", max_model_len=64, dtype=dtype, kv_cache_dtype="int8").kv_cache_dtype == "int8"


def test_an_int8_cache_holds_more_of_the_same_memory(spec):
    # head_dim 32: a position and head takes 72 bytes instead of 256 or 128.
    blocks = [decide_limits(EngineConfig(kv_cache_memory=2 * MIB), spec, dtype, 100 * MIB).num_blocks
              for dtype in ("float32", "bfloat16", "int8")]  # fmt: skip
    assert blocks == [64, 128, 227]


@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("case", ["llama-f32", "llama-odd", "qwen3-bf16"])
def test_the_cache_takes_what_was_counted(make_engine, case, dtype, cache_dtype):
    engine = make_engine(case, max_model_len=64, max_num_seqs=3, dtype=dtype, kv_cache_dtype=cache_dtype)
    assert (engine.dtype, engine.kv_cache_dtype) == (dtype, cache_dtype)
    decoder = engine.runner.decoder
    assert decoder.k_cache.nbytes + decoder.v_cache.nbytes == engine.limits.kv_cache_bytes
    assert engine.limits.num_blocks == decoder.num_blocks == 6


def test_auto(spec):
    # 64 sequences of 512 positions would take 32 MiB: all of them fit into half of what is free.
    assert limits(spec) == Limits(512, 64, 512, 1024, 32 * MIB)


def test_auto_takes_half_of_what_is_free(spec):
    assert limits(spec, free=20 * MIB) == Limits(512, 64, 512, 320, 10 * MIB)


def test_auto_length_is_lowered_to_the_memory(spec):
    assert limits(spec, free=10 * BLOCK) == Limits(160, 64, 512, 5, 5 * BLOCK)


def test_explicit_sizes(spec):
    found = limits(spec, max_model_len=100, max_num_seqs=3, max_num_batched_tokens=7, kv_cache_memory=9 * BLOCK + 5)
    assert found == Limits(100, 3, 7, 9, 9 * BLOCK)


def test_the_default_budget_holds_a_token_of_every_sequence(spec):
    assert limits(spec, max_num_seqs=2000, max_model_len=32).max_num_batched_tokens == 2000


def test_one_longest_sequence_must_fit_to_the_token(spec):
    assert limits(spec, max_model_len=160, kv_cache_memory=5 * BLOCK).num_blocks == 5
    with pytest.raises(MemoryBudgetError, match=r"one sequence of 161 tokens, which takes 192\.0 KiB") as caught:
        limits(spec, max_model_len=161, kv_cache_memory=5 * BLOCK)
    assert "KV cache of 160.0 KiB (kv_cache_memory) is too small" in str(caught.value)
    assert "lower max_model_len, raise kv_cache_memory or free memory" in str(caught.value)


def test_too_little_free_memory_says_what_to_lower(spec):
    with pytest.raises(MemoryBudgetError, match=r"half of the 160.0 KiB that is free.*lower max_model_len"):
        limits(spec, free=5 * BLOCK, max_model_len=200)


@pytest.mark.parametrize("free", [0, 1, 2 * BLOCK - 1])
def test_no_memory_for_a_single_block(spec, free):
    with pytest.raises(MemoryBudgetError, match="free memory"):
        limits(spec, free=free)


def test_more_cache_than_free_memory(spec):
    with pytest.raises(MemoryBudgetError, match=r"kv_cache_memory: 2\.0 MiB asked for, only 1\.0 MiB is free"):
        limits(spec, free=MIB, kv_cache_memory="2MiB")


def test_lengths_beyond_the_model_are_refused(models_dir, spec):
    assert limits(spec, max_model_len=512).max_model_len == 512
    with pytest.raises(ConfigError, match=r"max_model_len: 513 is more than the 512 positions"):
        limits(spec, max_model_len=513)
    scaled = load_spec(models_dir / "qwen2-yarn")
    assert limits(scaled).max_model_len == 256  # 64 original positions times 4


def test_dynamic_rope_is_bent_only_when_asked_for(models_dir):
    assert limits(load_spec(models_dir / "llama-dynamic")).max_model_len == 40
    assert limits(load_spec(models_dir / "llama-dynamic", 320), max_model_len=320).max_model_len == 320
    with pytest.raises(ConfigError, match="321 is more than the 320"):
        limits(load_spec(models_dir / "llama-dynamic", 321), max_model_len=321)


def test_the_free_memory_of_the_machine_is_what_counts(make_engine, monkeypatch):
    monkeypatch.setattr("nanovllm.engine.llm_engine.available_memory", lambda: 10 * BLOCK)
    assert make_engine(CASE).limits.num_blocks == 5
    with pytest.raises(MemoryBudgetError, match="lower kv_cache_memory or free memory"):
        make_engine(CASE, kv_cache_memory="3MiB")


@pytest.mark.parametrize(
    ("has_units", "settings", "dtype"),
    [
        (True, {}, "bfloat16"),
        (False, {}, "float32"),
        (True, {"gemm": "blas"}, "float32"),
        (True, {"dtype": "float32"}, "float32"),
        (False, {"dtype": "bfloat16"}, "bfloat16"),
        (True, {"dtype": "int8"}, "int8"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(monkeypatch, has_units, settings, dtype):
    monkeypatch.setattr(isa, "has_bf16_units", lambda: has_units)
    assert resolve_dtype(EngineConfig.from_dict(settings)) == dtype
    if not settings:
        assert machine_info()["dtype_auto"] == dtype
