"""lm-evaluation-harness's generation settings as sampling parameters, and what it wants of a generated text.

Knows nothing of the harness's code, so that it can be tested without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanovllm import ConfigError, SamplingParams

_MAX_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one counts
_STOP_NAMES = ("until", "stop")
# Settings of transformers' generate(): some change nothing here, others only mean nothing with this value.
_WITHOUT_EFFECT = frozenset({"use_cache", "pad_token_id", "early_stopping", "length_penalty"})
_ONLY_ONE = ("num_beams", "num_return_sequences", "n")


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How one request of the harness is generated and cut.

    Attributes:
        stops: what ends the text; none of them is in it.
    """

    params: SamplingParams
    stops: tuple[str, ...]

    @classmethod
    def read(cls, gen_kwargs: Mapping[str, Any], max_gen_toks: int, eos: str | None) -> GenerationSettings:
        """Read what a task says, over the harness's defaults: greedy, at most `max_gen_toks` tokens.

        Args:
            gen_kwargs: `until`, `max_gen_toks` and its other names, `do_sample`, and any sampling parameter.
            max_gen_toks: where the task gives no number.
            eos: text of the end-of-sequence token, which ends a text also where the model spells it out.

        Raises:
            ConfigError: a setting is unknown or has no possible value.
        """
        rest = {key: value for key, value in gen_kwargs.items() if key not in _WITHOUT_EFFECT and value is not None}
        limits = [value for value in (rest.pop(name, None) for name in _MAX_TOKENS_NAMES) if value is not None]
        stops = [stop for name in _STOP_NAMES for stop in _as_list(name, rest.pop(name, []))]
        for name in _ONLY_ONE:
            if (found := rest.pop(name, 1)) != 1:
                raise ConfigError(f"generation setting {name}: expected 1, found {found!r}; take it out of gen_kwargs")
        if "max_length" in rest:
            raise ConfigError("generation setting max_length: prompts count in it; give max_gen_toks instead")
        rest["temperature"] = _temperature(rest.pop("do_sample", None), rest.get("temperature"))
        stops = tuple(dict.fromkeys(stop for stop in [*stops, eos] if stop))
        settings = {**rest, "max_tokens": _whole(limits[0] if limits else max_gen_toks), "stop": stops}
        try:
            return cls(SamplingParams.from_dict(settings), stops)
        except ConfigError as error:
            raise ConfigError(f"the task's generation settings cannot be used: {error}") from None

    def finished(self, text: str, think_end: str | None = None) -> str:
        """Return the answer in a generated text: after the thinking, before the first stop."""
        if think_end:
            text = text.split(think_end)[-1].lstrip()
        return text[: min((at for at in map(text.find, self.stops) if at >= 0), default=len(text))]


def _as_list(name: str, value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) for one in values):
        raise ConfigError(f"generation setting {name}: expected a string or a list of strings, found {value!r}")
    return list(values)


def _whole(number: Any) -> Any:
    """Return 256 for 256.0 and "256"; what is no whole number is for `SamplingParams` to refuse."""
    is_whole = number.isdecimal() if isinstance(number, str) else isinstance(number, float) and number.is_integer()
    return int(number) if is_whole else number


def _temperature(do_sample: bool | None, temperature: float | None) -> float:
    """Return 0 for greedy: that is what `do_sample: false` asks for, and what is meant where nothing is said."""
    if do_sample is False:
        return 0.0
    if temperature is None:
        return 1.0 if do_sample else 0.0
    return temperature
