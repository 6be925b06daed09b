"""Settings of an engine: the keyword arguments of `LLM(model, ...)`, checked.

Leaf module. "auto" stays "auto" here; what it means on this machine is decided where the facts are known
(`machine.py` for threads and memory, the model's config.json for lengths).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from fractions import Fraction

from nanovllm.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "int8")
CACHE_DTYPES = DTYPES
GEMMS = ("native", "blas")
_MAX_SIZE = 1 << 63
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "k": 1 << 10, "m": 1 << 20, "g": 1 << 30,
          "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}  # fmt: skip


def parse_size(value: int | str, key: str) -> int:
    """Read a number of bytes: an int, or a string such as "2GiB" or "500 MB".

    Raises:
        ConfigError: it is neither, or not positive, or beyond 64 bits.
    """
    size = None
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([A-Za-z]*)\s*", value)
        if match and match[2].lower() in _UNITS:
            size = int(Fraction(match[1]) * _UNITS[match[2].lower()])
    if size is None or not 0 < size < _MAX_SIZE:
        raise ConfigError(f'{key}: expected bytes or a size such as "2GiB", found {value!r}')
    return size


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What a caller may set about the engine.

    Attributes:
        dtype: how weights are kept and multiplied: "float32" (exact), "bfloat16", "int8" (rotated, one scale for each
            output channel and each row of activations); "auto" is bfloat16 where the CPU has units for it, else
            float32.
        gemm: "native" or "blas" (SciPy's, float32 only: its results depend on what else is in the batch).
        threads: "auto" (CPU affinity and cgroup quota decide) or a number.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: most token rows in one step; long prompts are cut into chunks of it.
        max_model_len: longest prompt plus completion; "auto" is what the model and the KV memory allow.
        kv_cache_dtype: how keys and values are kept, beside weights of any dtype: "float32", "bfloat16", "int8" (one
            scale for each position and head); "auto" is the weights' own.
        kv_cache_memory: bytes or "2GiB"; "auto" is a share of the memory that is free once the weights are loaded.
        enable_prefix_caching: share the KV blocks of equal prompt beginnings.
        reorder: let waiting requests overtake others, within bounds, to run beside those with the same beginning.
        seed: seeds the requests that bring no seed of their own (together with their key).
        generation_config: "auto" takes sampling defaults from generation_config.json, "none" ignores them.
        chat_template: name of a named template, a file, or the template's text; None is the checkpoint's.

    Raises:
        ConfigError: a value has the wrong type or range; the message names the key.
    """

    dtype: str = "auto"
    gemm: str = "native"
    threads: int | str = "auto"
    max_num_seqs: int | str = "auto"
    max_num_batched_tokens: int | str = "auto"
    max_model_len: int | str = "auto"
    kv_cache_dtype: str = "auto"
    kv_cache_memory: int | str = "auto"
    enable_prefix_caching: bool = True
    reorder: bool = True
    seed: int = 0
    generation_config: str = "auto"
    chat_template: str | None = None

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, found {self.dtype!r}")
        if self.kv_cache_dtype not in CACHE_DTYPES:
            raise ConfigError(
                f"kv_cache_dtype: expected one of {', '.join(CACHE_DTYPES)}, found {self.kv_cache_dtype!r}"
            )
        if self.gemm not in GEMMS:
            raise ConfigError(f"gemm: expected one of {', '.join(GEMMS)}, found {self.gemm!r}")
        if self.gemm == "blas" and self.dtype not in ("auto", "float32"):
            raise ConfigError(f"gemm: blas multiplies float32 only, found dtype {self.dtype!r}; set dtype to float32")
        for key in ("threads", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            value = getattr(self, key)
            if value is None:
                object.__setattr__(self, key, "auto")
            elif value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f'{key}: expected "auto" or a whole number from 1 up, found {value!r}')
        if self.threads != "auto" and self.threads > 1024:
            raise ConfigError(f"threads: expected at most 1024, found {self.threads}")
        if self.kv_cache_memory is None:
            object.__setattr__(self, "kv_cache_memory", "auto")
        elif self.kv_cache_memory != "auto":
            object.__setattr__(self, "kv_cache_memory", parse_size(self.kv_cache_memory, "kv_cache_memory"))
        for key in ("enable_prefix_caching", "reorder"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"{key}: expected true or false, found {getattr(self, key)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**64:
            raise ConfigError(f"seed: expected a whole number of at most 64 bits, found {self.seed!r}")
        if self.generation_config not in ("auto", "none"):
            raise ConfigError(f'generation_config: expected "auto" or "none", found {self.generation_config!r}')
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise ConfigError(f"chat_template: expected a name, a file or a template, found {self.chat_template!r}")

    @classmethod
    def from_dict(cls, mapping: dict) -> EngineConfig:
        """Build from keyword arguments; an unknown key is an error that names the nearest right one."""
        names = [f.name for f in dataclasses.fields(cls)]
        for key in mapping:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; the engine's settings are {', '.join(names)}"
                raise ConfigError(f"unknown engine setting {key!r}{hint}")
        return cls(**mapping)
