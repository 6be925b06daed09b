"""Rotary position embedding: from the rope keys of config.json to one table of inverse frequencies.

Owns every spelling (`rope_scaling`, `rope_parameters`, `type`, `rope_type`) and every scaling scheme. A scheme that
depends on the length is settled here once, for the engine's `max_model_len`. Must not know the model families.

Each step rounds to float32 where Hugging Face transformers does, because at position 100,000 one unit in the last place
of a frequency already turns a vector by a hundredth of a radian.
Source: transformers 5.24.0, modeling_rope_utils.py (formulas and defaults).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanovllm.models.fields import Fields, name_keys
from nanovllm.models.spec import RopeTable

_DEFAULT_THETA = 10_000.0
MAX_POSITIONS = 1 << 30  # positions are int32 in the kernels
_MAX_FACTOR = 1e6
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class _Setting:
    """What every scheme starts from; `config` is the whole file, `scaling` its rope object."""

    config: Fields
    scaling: Fields
    theta: float
    head_dim: int
    max_positions: int
    max_model_len: int | None

    def factor(self) -> float:
        return self.scaling.number("factor", high=_MAX_FACTOR)

    def original_positions(self) -> int:
        """Return the length before scaling; the key at the top level wins, as in transformers."""
        key = "original_max_position_embeddings"
        inside = self.scaling.integer(key, low=2, high=MAX_POSITIONS, default=self.max_positions)
        return self.config.integer(key, low=2, high=MAX_POSITIONS, default=inside)


@dataclass(frozen=True)
class _Scheme:
    """A scheme's answer: frequencies, factor on cos and sin, usable context, and the phrase that `info` prints."""

    inv_freq: np.ndarray
    attention_scaling: float
    max_context: int
    regime: str


def build_rope(
    config: Fields, *, head_dim: int, max_positions: int, max_model_len: int | None, warnings: list[str]
) -> tuple[RopeTable, int]:
    """Build the rotary table that `config` asks for.

    Args:
        config: the whole config.json.
        head_dim: size of one head, even.
        max_positions: `max_position_embeddings`.
        max_model_len: length that settles dynamic and longrope; None: dynamic stays unscaled, longrope serves its
            longest context.
        warnings: receives one sentence if the rope object holds keys without a meaning here.

    Returns:
        The table, and the longest usable context in tokens.

    Raises:
        ConfigError: unknown rope type, missing or impossible values.
    """
    scaling = _scaling(config)
    rope_type = "default" if scaling.raw("rope_type") is None else scaling.text("rope_type")
    scheme = _SCHEMES.get(rope_type)
    if scheme is None:
        scaling.refuse("rope_type", f"one of {', '.join(_SCHEMES)}", "this rotary scaling is not supported")
    for fields in (scaling, config):
        if fields.number("partial_rotary_factor", high=1, default=1.0) != 1.0:
            fields.refuse("partial_rotary_factor", "1", "a partly rotated head is not supported")
    theta = config.number("rope_theta", above=1, high=1e20, default=_DEFAULT_THETA)
    theta = scaling.number("rope_theta", above=1, high=1e20, default=theta)
    with np.errstate(all="ignore"):  # absurd factors overflow here and are refused below
        result = scheme(_Setting(config, scaling, theta, head_dim, max_positions, max_model_len))
    if not np.all(np.isfinite(result.inv_freq) & (result.inv_freq > 0)):
        scaling.refuse("rope_type", "factors that give finite frequencies above 0")
    if not 1 <= result.max_context <= MAX_POSITIONS:
        scaling.refuse("factor", f"a factor that keeps the context between 1 and {MAX_POSITIONS} positions")
    if unknown := scaling.unasked():
        warnings.append(
            f"{config.where}: {scaling.prefix[:-1]} of type {rope_type} has keys without a meaning here, "
            f"ignored: {name_keys(unknown)}"
        )
    result.inv_freq.setflags(write=False)
    return RopeTable(rope_type, result.inv_freq, result.attention_scaling, result.regime), result.max_context


def _scaling(config: Fields) -> Fields:
    """Merge the old and the new spelling of the rope object; both may be present if they do not contradict."""
    merged: dict[str, Any] = {}
    prefix = "rope_scaling."
    for spelling in ("rope_parameters", "rope_scaling"):
        values = _same_for_all_layers(config, spelling)
        if not values:
            continue
        old_type = values.pop("type", None)
        names = (values.get("rope_type"), old_type, "default")
        values["rope_type"] = next(name for name in names if name is not None)
        if any(key in merged and merged[key] != value for key, value in values.items()):
            config.refuse("rope_scaling", "the values of rope_parameters", "remove one of the two keys")
        merged.update(values)
        prefix = spelling + "."
    return Fields(merged, config.where, prefix)


def _same_for_all_layers(config: Fields, key: str) -> dict[str, Any]:
    """Return the rope object under `key`, unwrapped when it is written once for each layer type."""
    values = dict(config.mapping(key))
    nested = [values.pop(name) for name in _LAYER_TYPES if name in values]
    nested = [value for value in nested if value is not None]
    if not nested:
        return values
    if not all(isinstance(value, dict) and value == nested[0] for value in nested):
        config.refuse(key, "the same values for every layer type", "different rotations by layer are not supported")
    return {**values, **nested[0]}


def _powers(theta: float, head_dim: int) -> np.ndarray:
    """Return theta ** (2i / head_dim) for each pair i, rounded to float32 as torch does.

    The power itself is taken in float64: NumPy's float32 power differs from one CPU to the next.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)  # [head_dim // 2]
    base = np.float64(np.float32(theta))
    return np.power(base, exponents.astype(np.float64)).astype(np.float32)


def _inverse(values: np.ndarray) -> np.ndarray:
    return np.float32(1.0) / values


def _default(setting: _Setting) -> _Scheme:
    inv_freq = _inverse(_powers(setting.theta, setting.head_dim))
    return _Scheme(inv_freq, 1.0, setting.max_positions, f"default, theta {setting.theta:.10g}")


def _linear(setting: _Setting) -> _Scheme:
    """Divide every position by `factor`. Source: Chen et al. 2023, arXiv 2306.15595."""
    factor = setting.factor()
    inv_freq = _inverse(_powers(setting.theta, setting.head_dim)) / np.float32(factor)
    context = int(setting.max_positions * factor)
    return _Scheme(inv_freq, 1.0, context, f"linear, factor {factor:g} over {setting.max_positions} original positions")


def _dynamic(setting: _Setting) -> _Scheme:
    """Raise theta with the length: theta * (f * len / max - (f - 1)) ** (d / (d - 2)), once, for the whole engine."""
    factor = setting.factor()
    head_dim, max_positions = setting.head_dim, setting.max_positions
    if head_dim <= 2:
        setting.config.refuse("head_dim", "more than 2 for dynamic rope")
    length = max(setting.max_model_len or max_positions, max_positions)
    growth = factor * length / max_positions - (factor - 1)
    theta = setting.theta * growth ** (head_dim / (head_dim - 2))
    regime = f"dynamic, unscaled up to {max_positions} positions"
    if length > max_positions:
        regime = f"dynamic, scaled for {length} positions over {max_positions} original ones (theta {theta:.10g})"
    return _Scheme(_inverse(_powers(theta, head_dim)), 1.0, int(max_positions * factor), regime)


def _yarn(setting: _Setting) -> _Scheme:
    """Interpolate slow pairs, keep fast ones, blend between. Source: Peng et al. 2023, arXiv 2309.00071, 3.2 to 3.4."""
    scaling, head_dim = setting.scaling, setting.head_dim
    original = setting.original_positions()
    if scaling.has("factor") and scaling.raw("factor") is None:
        factor = setting.max_positions / original
    else:
        factor = setting.factor()
    low, high = _yarn_ramp_ends(setting, original)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = np.float32(1.0) - np.clip(ramp, np.float32(0.0), np.float32(1.0))
    powers = _powers(setting.theta, head_dim)
    interpolated = _inverse(np.float32(factor) * powers)
    inv_freq = interpolated * (np.float32(1.0) - kept) + _inverse(powers) * kept
    regime = f"yarn, factor {factor:g} over {original} original positions"
    return _Scheme(inv_freq, _yarn_attention(scaling, factor), int(original * factor), regime)


def _yarn_ramp_ends(setting: _Setting, original: int) -> tuple[float, float]:
    """Return the pair indices where interpolation starts and where it is complete."""
    scaling, head_dim = setting.scaling, setting.head_dim

    def pair_of(num_rotations: float) -> float:
        wavelength_ratio = original / (num_rotations * 2 * math.pi)
        return head_dim * math.log(wavelength_ratio) / (2 * math.log(setting.theta))

    low = pair_of(scaling.number("beta_fast", high=_MAX_FACTOR, default=32.0))
    high = pair_of(scaling.number("beta_slow", high=_MAX_FACTOR, default=1.0))
    if scaling.boolean("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high if high != low else high + 0.001  # keeps the ramp's slope finite


def _yarn_attention(scaling: Fields, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    # 0 counts as "not given", as in transformers.
    over = scaling.number("mscale", high=_MAX_FACTOR, or_zero=True, default=0.0)
    under = scaling.number("mscale_all_dim", high=_MAX_FACTOR, or_zero=True, default=0.0)
    derived = mscale(over) / mscale(under) if over and under else mscale(1.0)
    return scaling.number("attention_factor", high=_MAX_FACTOR, default=derived)


def _llama3(setting: _Setting) -> _Scheme:
    """Divide slow pairs by `factor`, keep fast ones, blend between. Source: Llama 3.1 reference, apply_scaling."""
    scaling = setting.scaling
    factor = setting.factor()
    low = scaling.number("low_freq_factor", high=_MAX_FACTOR)
    high = scaling.number("high_freq_factor", high=_MAX_FACTOR)
    original = setting.original_positions()
    if high <= low:
        scaling.refuse("high_freq_factor", f"more than low_freq_factor, {low:g}")
    inv_freq = _inverse(_powers(setting.theta, setting.head_dim))
    # torch evaluates number / tensor as reciprocal * number; a plain division would differ in the last bit.
    wavelength = _inverse(inv_freq) * np.float32(2 * math.pi)
    rotations = _inverse(wavelength) * np.float32(original)
    smooth = (rotations - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1.0) - smooth) * inv_freq / np.float32(factor) + smooth * inv_freq
    slow = wavelength > np.float32(original / low)
    fast = wavelength < np.float32(original / high)
    scaled = np.where(slow, inv_freq / np.float32(factor), np.where(fast, inv_freq, blended))
    regime = f"llama3, factor {factor:g} over {original} original positions"
    return _Scheme(scaled, 1.0, setting.max_positions, regime)


def _longrope(setting: _Setting) -> _Scheme:
    """Divide each pair by its own factor, of one of two lists. Source: Ding et al. 2024, arXiv 2402.13753."""
    scaling, num_pairs = setting.scaling, setting.head_dim // 2
    original = setting.original_positions()
    lists = {
        name: scaling.numbers(name, length=num_pairs, high=_MAX_FACTOR) for name in ("short_factor", "long_factor")
    }
    factor = scaling.number("factor", high=_MAX_FACTOR, default=setting.max_positions / original)
    derived = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    attention = scaling.number("attention_factor", high=_MAX_FACTOR, default=derived)
    chosen = "long_factor" if (setting.max_model_len or setting.max_positions) > original else "short_factor"
    divisors = np.array(lists[chosen], dtype=np.float32)  # [head_dim // 2]
    inv_freq = _inverse(divisors * _powers(setting.theta, setting.head_dim))
    bound = "more than" if chosen == "long_factor" else "up to"
    regime = f"longrope, {chosen} for {bound} {original} original positions"
    return _Scheme(inv_freq, attention, setting.max_positions, regime)


_SCHEMES: dict[str, Callable[[_Setting], _Scheme]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
