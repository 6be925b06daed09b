"""How one request is sampled: names and defaults as in vLLM, checked when they are made.

Owns the fields, their ranges and the seed of a request that brings none. Leaf module: knows nothing of models, files or
kernels. Numbers must be numbers: a bool is not one, a string is not one, NaN and infinity are refused. A float with an
integral value (64.0, as spreadsheets and data frames write it) is taken for an int; any other float is not.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from nanovllm.errors import ConfigError

GREEDY_TEMPERATURE = 1e-5
"""Below this, sampling is greedy (vLLM's border)."""
MIN_TEMPERATURE = 1e-2
"""Temperatures between greedy and this are raised to it, since exponents grow too large (vLLM's guard)."""
_MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """What one field accepts; the commands build their flags and help from it.

    Attributes:
        name: field of `SamplingParams`.
        kind: "int", "float", "bool", "str_list" or "int_list".
        default: value when nothing is given.
        optional: whether None is allowed.
        low: smallest value allowed, or None.
        high: largest value allowed, or None.
        above_low: whether `low` itself is excluded.
        help: one line for people.
    """

    name: str
    kind: str
    default: Any
    optional: bool
    low: float | None
    high: float | None
    above_low: bool
    help: str

    @property
    def expected(self) -> str:
        """Say in words what the field accepts."""
        words = {
            "int": "an integer",
            "float": "a number",
            "bool": "true or false",
            "str_list": "a non-empty string or a list of them",
            "int_list": "a list of token ids (integers from 0)",
        }[self.kind]
        if self.kind in ("int", "float"):
            if self.low is not None:
                words += f" above {self.low}" if self.above_low else f" of at least {self.low}"
            if self.high is not None:
                words += f" and at most {self.high}"
        return words + (" or null" if self.optional else "")


def _about(
    kind: str,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above_low: bool = False,
    optional: bool = False,
) -> dict[str, Any]:
    return {"kind": kind, "help": text, "low": low, "high": high, "above_low": above_low, "optional": optional}


@dataclass(slots=True)
class SamplingParams:
    """Settings of one request; every field is described by `describe_fields`.

    Order of processing: ids banned until `min_tokens`, repetition penalty (prompt and completion), frequency and
    presence penalties (completion only), then either the largest logit (greedy, lowest id wins a tie) or temperature,
    min_p, top_k, top_p, typical_p and the draw. A greedy request ignores the five settings after the penalties but
    keeps their values, so that a later override of the temperature alone finds them.

    `top_k` -1 becomes 0 (off), `seed` -1 becomes None, a temperature below 1e-5 becomes 0 (greedy) and one between
    that and 0.01 becomes 0.01; `stop` and `stop_token_ids` become tuples.

    Raises:
        ConfigError: a value has the wrong type or range, or two values contradict each other.
    """

    n: int = field(default=1, metadata=_about("int", "completions for each prompt; 1 when greedy", low=1))
    presence_penalty: float = field(
        default=0.0, metadata=_about("float", "subtracted once for ids in the completion", low=-2, high=2)
    )
    frequency_penalty: float = field(
        default=0.0, metadata=_about("float", "subtracted for each time an id is in the completion", low=-2, high=2)
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata=_about("float", "divides positive logits of ids seen, multiplies negative", low=0, above_low=True),
    )
    temperature: float = field(default=1.0, metadata=_about("float", "0 is greedy, 1 the model's own", low=0, high=2))
    top_p: float = field(
        default=1.0,
        metadata=_about("float", "keep the smallest set with this probability", low=0, high=1, above_low=True),
    )
    top_k: int = field(default=0, metadata=_about("int", "keep the k most likely ids; 0 or -1 is off", low=-1))
    min_p: float = field(
        default=0.0, metadata=_about("float", "drop ids below this times the largest probability", low=0, high=1)
    )
    typical_p: float = field(
        default=1.0,
        metadata=_about("float", "keep the most typical ids with this probability", low=0, high=1, above_low=True),
    )
    seed: int | None = field(
        default=None,
        metadata=_about(
            "int", "makes draws repeatable; null or -1 derives one", low=-(2**63), high=2**64 - 1, optional=True
        ),
    )
    stop: str | tuple[str, ...] | list[str] | None = field(
        default=(), metadata=_about("str_list", "strings that end the completion", optional=True)
    )
    stop_token_ids: tuple[int, ...] | list[int] | None = field(
        default=(), metadata=_about("int_list", "token ids that end the completion", optional=True)
    )
    ignore_eos: bool = field(default=False, metadata=_about("bool", "go on past end-of-sequence ids"))
    max_tokens: int | None = field(
        default=16,
        metadata=_about("int", "most tokens to generate; null: up to the model's length", low=1, optional=True),
    )
    min_tokens: int = field(
        default=0, metadata=_about("int", "tokens before an end-of-sequence or stop id may come", low=0)
    )
    skip_special_tokens: bool = field(default=True, metadata=_about("bool", "leave special tokens out of the text"))
    spaces_between_special_tokens: bool = field(
        default=True, metadata=_about("bool", "put spaces between special tokens in the text")
    )
    include_stop_str_in_output: bool = field(default=False, metadata=_about("bool", "keep the stop string in the text"))
    detokenize: bool = field(default=True, metadata=_about("bool", "make text; false gives token ids only"))

    def __post_init__(self):
        for info in describe_fields():
            setattr(self, info.name, _checked(info, getattr(self, info.name)))
        if self.top_k == -1:
            self.top_k = 0
        if self.seed == -1:
            self.seed = None
        if self.temperature < GREEDY_TEMPERATURE:
            self.temperature = 0.0
        elif self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE
        self._check_together()

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"sampling: min_tokens is {self.min_tokens}, expected at most max_tokens, which is {self.max_tokens}; "
                "raise max_tokens or lower min_tokens"
            )
        if self.is_greedy and self.n > 1:
            raise ConfigError(
                f"sampling: n is {self.n}, expected 1 because temperature 0 is greedy and all completions would be "
                "equal; raise temperature or set n to 1"
            )
        if self.stop and not self.detokenize:
            raise ConfigError(
                f"sampling: detokenize is false but stop is {_shown(list(self.stop))}, expected no stop strings "
                "without text; use stop_token_ids or set detokenize to true"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the largest logit is taken instead of a draw."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether the kernel needs the ids seen so far."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], base: SamplingParams | None = None) -> SamplingParams:
        """Make settings from a mapping, on top of `base` or of the defaults.

        Raises:
            ConfigError: an unknown key (the nearest right one is named), or a value that a field refuses.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(
                f"sampling: found {_shown(mapping)}, expected a mapping of settings such as max_tokens: 64"
            )
        names = [info.name for info in describe_fields()]
        for key in mapping:
            if key not in names:
                raise ConfigError(_unknown_key(key, names))
        return (base or cls()).replace(**mapping)

    def replace(self, **changes: Any) -> SamplingParams:
        """Return a checked copy with some fields changed; an unknown name is a TypeError."""
        return dataclasses.replace(self, **changes)

    def clone(self) -> SamplingParams:
        """Return an equal, independent object."""
        return self.replace()

    def to_dict(self, only_changed: bool = False) -> dict[str, Any]:
        """Return the fields as JSON values; with `only_changed`, those that differ from their defaults.

        `from_dict` of the result gives an equal object, either way.
        """
        values = {}
        for info in describe_fields():
            value = getattr(self, info.name)
            if not only_changed or value != info.default:
                values[info.name] = list(value) if isinstance(value, tuple) else value
        return values


_FIELDS = tuple(FieldInfo(name=f.name, default=f.default, **f.metadata) for f in dataclasses.fields(SamplingParams))


def describe_fields() -> tuple[FieldInfo, ...]:
    """Describe every field of `SamplingParams`, in their order."""
    return _FIELDS


def derive_seed(engine_seed: int, key: str) -> int:
    """Derive the seed of a request that has none of its own.

    A function of its arguments alone, so neither order nor batch nor a resume can change it.

    Args:
        engine_seed: seed of the job or engine; any integer.
        key: the request's own key.

    Returns:
        An integer from 0 to 2**64 - 1.
    """
    text = f"{engine_seed}:{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _checked(info: FieldInfo, value: Any) -> Any:
    if value is None and info.optional:
        return () if info.kind.endswith("_list") else None
    if info.kind == "bool":
        if not isinstance(value, bool):
            raise _refusal(info, value)
        return value
    if info.kind == "str_list":
        return _checked_strings(info, value)
    if info.kind == "int_list":
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise _refusal(info, value)
        items = list(value)
        return tuple(_checked_number(info, item, integral=True, low=0, high=2**31 - 1) for item in items)
    return _checked_number(
        info, value, integral=info.kind == "int", low=info.low, high=info.high, above_low=info.above_low
    )


def _checked_strings(info: FieldInfo, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise _refusal(info, value)
    for item in items:
        if not isinstance(item, str) or not item:
            raise _refusal(info, item)
    return tuple(items)


def _checked_number(
    info: FieldInfo,
    value: Any,
    *,
    integral: bool,
    low: float | None,
    high: float | None,
    above_low: bool = False,
) -> int | float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _refusal(info, value)
    if not isinstance(value, Integral) and not math.isfinite(value):
        raise _refusal(info, value)
    if integral and value != int(value):
        raise _refusal(info, value)
    # Compared as given: an int beyond float range must be refused by its range, not by an OverflowError.
    if low is not None and (value < low or (above_low and value == low)):
        raise _refusal(info, value)
    if high is not None and value > high:
        raise _refusal(info, value)
    try:
        return int(value) if integral else float(value)
    except OverflowError:
        raise _refusal(info, value) from None


def _refusal(info: FieldInfo, value: Any) -> ConfigError:
    return ConfigError(f"sampling: {info.name} is {_shown(value)}, expected {info.expected}")


def _unknown_key(key: Any, names: list[str]) -> str:
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(names)}"
    return f"sampling: unknown key {_shown(key)}; {cure}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # int with more digits than Python prints
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."
