"""Engine settings: sizes as people write them, and a sentence for every value that cannot be meant."""

import dataclasses

import pytest

from nanovllm.config import EngineConfig, parse_size
from nanovllm.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    "value, expected",
    [
        (1, 1),
        (5_000_000_000_000, 5_000_000_000_000),
        ("7", 7),
        ("7b", 7),
        ("2KiB", 2048),
        ("2k", 2048),
        ("2kb", 2000),
        ("500 MB", 500_000_000),
        ("512MiB", 512 << 20),
        ("512m", 512 << 20),
        ("2GiB", 2 << 30),
        (" 2 gib ", 2 << 30),
        ("2g", 2 << 30),
        ("2GB", 2_000_000_000),
        ("1TiB", 1 << 40),
        ("1tb", 10**12),
        ("1.5GiB", 3 << 29),
        ("0.1kb", 100),
        ("0.29 kb", 290),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(value, expected):
    assert parse_size(value, "kv_cache_memory") == expected


@pytest.mark.parametrize(
    "value",
    [0, -1, "0", "0.2b", "-1", "+1", "", " ", "GiB", "2 XB", "2GiBs", "1e9", "1,5GiB", ".5GiB", "1.GiB", "٣GiB", 2.5,
     True, None, [], "auto", "inf", "nan", "9" * 400 + "GiB", "9" * 5000, 10**400, 1 << 63, "9" * 20 + "TiB"],
)  # fmt: skip
def test_what_is_no_size(value):
    with pytest.raises(ConfigError, match='kv_cache_memory: expected bytes or a size such as "2GiB", found'):
        parse_size(value, "kv_cache_memory")


def test_defaults():
    config = EngineConfig()
    assert (config.dtype, config.threads, config.max_num_seqs, config.max_num_batched_tokens) == ("auto",) * 4
    assert (config.max_model_len, config.kv_cache_memory, config.generation_config) == ("auto",) * 3
    assert (config.enable_prefix_caching, config.seed, config.chat_template) == (True, 0, None)


def test_values_as_meant():
    config = EngineConfig(
        dtype="float32", threads=2, max_num_seqs=None, max_model_len=1, kv_cache_memory="1KiB", seed=-(2**63),
        generation_config="none", chat_template="tool_use", enable_prefix_caching=False,
    )  # fmt: skip
    assert (config.threads, config.max_num_seqs, config.max_model_len, config.kv_cache_memory) == (2, "auto", 1, 1024)
    assert EngineConfig(kv_cache_memory=None).kv_cache_memory == "auto"
    assert EngineConfig(seed=2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize(
    "key, value, found",
    [
        ("dtype", "float16", "expected one of auto, float32, bfloat16, int8, found 'float16'"),
        ("gemm", "cublas", "expected one of native, blas, found 'cublas'"),
        ("dtype", None, "found None"),
        ("kv_cache_dtype", "fp8", "expected one of auto, float32, bfloat16, int8, found 'fp8'"),
        *[(key, value, 'expected "auto" or a whole number from 1 up, found')
          for key in ("threads", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
          for value in (0, -1, 1.0, "2", "AUTO", True, False, [], float("nan"))],
        ("threads", 1025, "expected at most 1024, found 1025"),
        ("kv_cache_memory", "much", "expected bytes or a size"),
        ("kv_cache_memory", 0, "expected bytes or a size"),
        ("enable_prefix_caching", 1, "expected true or false, found 1"),
        ("enable_prefix_caching", "false", "expected true or false, found 'false'"),
        ("enable_prefix_caching", None, "expected true or false"),
        *[("seed", value, "expected a whole number of at most 64 bits, found")
          for value in (None, "1", 1.0, True, 2**64, -(2**63) - 1)],
        ("generation_config", "vllm", 'expected "auto" or "none", found \'vllm\''),
        ("generation_config", None, "found None"),
        ("chat_template", 5, "expected a name, a file or a template, found 5"),
    ],
)  # fmt: skip
def test_refusals_name_the_key(key, value, found):
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_dict({key: value})
    assert str(caught.value).startswith(f"{key}: ")
    assert found in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_blas_multiplies_float32_only(dtype):
    with pytest.raises(ConfigError, match=f"gemm: blas multiplies float32 only, found dtype '{dtype}'; set dtype to"):
        EngineConfig(gemm="blas", dtype=dtype)
    assert EngineConfig(gemm="blas").dtype == "auto"


def test_an_unknown_key_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown engine setting 'max_num_seq'; did you mean 'max_num_seqs'\?"):
        EngineConfig.from_dict({"max_num_seq": 3})
    with pytest.raises(ConfigError, match="unknown engine setting 'gpu'; the engine's settings are dtype, "):
        EngineConfig.from_dict({"gpu": 0})
    with pytest.raises(ConfigError, match="unknown engine setting 3"):
        EngineConfig.from_dict({3: 3})


def test_from_dict_takes_every_field():
    values = dataclasses.asdict(EngineConfig(threads=3, seed=5))
    assert EngineConfig.from_dict(values) == EngineConfig(threads=3, seed=5)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EngineConfig().threads = 3
