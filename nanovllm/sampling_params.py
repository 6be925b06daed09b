"""How one request is sampled: names and defaults as in vLLM, checked when they are made.

Owns the fields, their ranges and the seed of a request that brings none. Leaf module: knows nothing of models, files or
kernels.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nanovllm.errors import ConfigError
from nanovllm.foreign_settings import instead_of
from nanovllm.sampling_fields import MIN_LIKENESS, FieldInfo, about, checked, shown
from nanovllm.structured_params import StructuredOutputsParams, as_structured_outputs

GREEDY_TEMPERATURE = 1e-5
"""Below this, sampling is greedy (vLLM's border)."""
MIN_TEMPERATURE = 1e-2
"""Temperatures between greedy and this are raised to it, since exponents grow too large (vLLM's guard)."""
MAX_COMPLETIONS = 16384
"""Most completions of a prompt (vLLM's limit): each is a sequence in memory."""
MAX_LOGPROBS = 1000
"""Most log probabilities of a position, unless all are asked for."""
WHOLE_VOCABULARY = -1
"""As a number of log probabilities: those of every id (vLLM's)."""
MAX_LOGPROB_TOKEN_IDS = 128
"""Most ids of `logprob_token_ids` (vLLM's limit)."""
THINKING_TAGS = "<think>", "</think>"
"""What most reasoning models write around what they think before they answer."""


@dataclass(slots=True)
class SamplingParams:
    """Settings of one request; every field is described by `describe_fields`.

    Order of processing: structured outputs and allowed ids, bad words, n-grams and ids banned until `min_tokens`,
    logit bias, repetition, frequency and presence penalties, DRY; then either the largest logit (greedy, lowest id wins
    a tie) or temperature, top_n_sigma, min_p, top_k, top_p, typical_p and the draw. A greedy request ignores the six
    settings after DRY but keeps their values, so that a later override of the temperature alone finds them.

    `top_k` and `top_n_sigma` -1 become 0 (off), `seed` and `thinking_token_budget` -1 become None, a temperature below
    1e-5 becomes 0 (greedy) and one between that and 0.01 becomes 0.01; lists become tuples and an empty mapping None. A
    bias beyond 100 counts as 100.

    Raises:
        ConfigError: a value has the wrong type or range, or two values contradict each other.
    """

    n: int = field(
        default=1, metadata=about("int", "completions for each prompt; 1 when greedy", low=1, high=MAX_COMPLETIONS)
    )
    presence_penalty: float = field(
        default=0.0, metadata=about("float", "subtracted once for ids in the completion", low=-2, high=2)
    )
    frequency_penalty: float = field(
        default=0.0, metadata=about("float", "subtracted for each time an id is in the completion", low=-2, high=2)
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata=about("float", "divides positive logits of ids seen, multiplies negative", low=0, above_low=True),
    )
    temperature: float = field(default=1.0, metadata=about("float", "0 is greedy, 1 the model's own", low=0, high=2))
    top_p: float = field(
        default=1.0,
        metadata=about("float", "keep the smallest set with this probability", low=0, high=1, above_low=True),
    )
    top_k: int = field(
        default=0, metadata=about("int", "keep the k most likely ids; 0 or -1 is off", low=-1, high=2**31 - 1)
    )
    min_p: float = field(
        default=0.0, metadata=about("float", "drop ids below this times the largest probability", low=0, high=1)
    )
    typical_p: float = field(
        default=1.0,
        metadata=about("float", "keep the most typical ids with this probability", low=0, high=1, above_low=True),
    )
    top_n_sigma: float = field(
        default=0.0,
        metadata=about("float", "drop logits so many deviations below the largest; 0 or -1 is off", low=-1),
    )
    seed: int | None = field(
        default=None,
        metadata=about(
            "int", "makes draws repeatable; null or -1 derives one", low=-(2**63), high=2**64 - 1, optional=True
        ),
    )
    stop: str | tuple[str, ...] | list[str] | None = field(
        default=(), metadata=about("str_list", "strings that end the completion", optional=True)
    )
    stop_token_ids: tuple[int, ...] | list[int] | None = field(
        default=(), metadata=about("int_list", "token ids that end the completion", optional=True)
    )
    bad_words: tuple[str, ...] | list[str] | None = field(
        default=(), metadata=about("str_list", "words that must not be completed", optional=True)
    )
    logit_bias: dict[int, float] | None = field(
        default=None, metadata=about("bias", "added to the logits of these ids, -100 to 100", optional=True)
    )
    allowed_token_ids: tuple[int, ...] | list[int] | None = field(
        default=None, metadata=about("int_list", "no other ids can be drawn", optional=True)
    )
    no_repeat_ngram_size: int = field(
        default=0, metadata=about("int", "no n-gram of this size comes twice; 0 is off", low=0, high=2**31 - 1)
    )
    repetition_detection: dict[str, int] | None = field(
        default=None,
        metadata=about("repetition", "ends a completion whose last tokens repeat a pattern", optional=True),
    )
    dry_multiplier: float = field(
        default=0.0, metadata=about("float", "strength of DRY, against repeated sequences; 0 is off", low=0)
    )
    dry_base: float = field(default=1.75, metadata=about("float", "growth of DRY with each repeated token", low=1))
    dry_allowed_length: int = field(
        default=2, metadata=about("int", "repetitions shorter than this are free", low=1, high=2**31 - 1)
    )
    dry_penalty_last_n: int = field(
        default=-1, metadata=about("int", "tokens that DRY looks back; -1 is all, 0 is off", low=-1, high=2**31 - 1)
    )
    dry_sequence_breakers: tuple[str, ...] | list[str] | None = field(
        default=None,
        metadata=about("str_list", "texts that end a repetition; null is line end, colon, quote, star", optional=True),
    )
    ignore_eos: bool = field(default=False, metadata=about("bool", "go on past end-of-sequence ids"))
    max_tokens: int | None = field(
        default=16,
        metadata=about("int", "most tokens to generate; null: up to the model's length", low=1, optional=True),
    )
    min_tokens: int = field(
        default=0, metadata=about("int", "tokens before an end-of-sequence or stop id may come", low=0)
    )
    thinking_token_budget: int | None = field(
        default=None,
        metadata=about(
            "int", "most tokens of thinking before </think> is forced; null or -1: no limit", low=-1, high=2**31 - 1,
            optional=True,
        ),
    )  # fmt: skip
    logprobs: int | None = field(
        default=None,
        metadata=about(
            "int", "log probabilities of each token and of so many best ids; -1: of all", low=WHOLE_VOCABULARY,
            high=MAX_LOGPROBS, optional=True,
        ),
    )  # fmt: skip
    prompt_logprobs: int | None = field(
        default=None,
        metadata=about(
            "int", "the same for the prompt's tokens", low=WHOLE_VOCABULARY, high=MAX_LOGPROBS, optional=True
        ),
    )
    logprob_token_ids: tuple[int, ...] | list[int] | None = field(
        default=(), metadata=about("int_list", "ids whose log probabilities come with each token", optional=True)
    )
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = field(
        default=None,
        metadata=about(
            "structured", "the text conforms to a JSON schema, regex, choice or grammar", optional=True,
            convert=as_structured_outputs,
        ),
    )  # fmt: skip
    skip_special_tokens: bool = field(default=True, metadata=about("bool", "leave special tokens out of the text"))
    spaces_between_special_tokens: bool = field(
        default=True, metadata=about("bool", "put spaces between special tokens in the text")
    )
    include_stop_str_in_output: bool = field(default=False, metadata=about("bool", "keep the stop string in the text"))
    detokenize: bool = field(default=True, metadata=about("bool", "make text; false gives token ids only"))

    def __post_init__(self):
        for info in describe_fields():
            setattr(self, info.name, checked(info, getattr(self, info.name)))
        if self.top_k == -1:
            self.top_k = 0
        if self.top_n_sigma < 0:
            self.top_n_sigma = 0.0
        if self.seed == -1:
            self.seed = None
        if self.thinking_token_budget == -1:
            self.thinking_token_budget = None
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
        if len(self.logprob_token_ids) > MAX_LOGPROB_TOKEN_IDS:
            raise ConfigError(
                f"sampling: logprob_token_ids has {len(self.logprob_token_ids)} ids, expected at most "
                f"{MAX_LOGPROB_TOKEN_IDS}; name those that matter"
            )
        if self.allowed_token_ids == ():
            raise ConfigError("sampling: allowed_token_ids is [], expected at least one id; null allows every id")
        if self.structured_outputs is not None and self.ignore_eos:
            raise ConfigError(
                "sampling: ignore_eos is true but structured_outputs says where the text may end; set ignore_eos to "
                "false"
            )
        if self.structured_outputs is not None and self.thinking_token_budget is not None:
            raise ConfigError(
                f"sampling: thinking_token_budget is {self.thinking_token_budget} but structured_outputs says what the "
                "whole text conforms to, which leaves no room to think; give one of them"
            )
        if self.stop and not self.detokenize:
            raise ConfigError(
                f"sampling: detokenize is false but stop is {shown(list(self.stop))}, expected no stop strings "
                "without text; use stop_token_ids or set detokenize to true"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the largest logit is taken instead of a draw."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether ids seen so far have penalties (DRY apart)."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    @property
    def uses_dry(self) -> bool:
        """Whether DRY does anything."""
        return self.dry_multiplier > 0 and self.dry_penalty_last_n != 0

    @property
    def needs_history(self) -> bool:
        """Whether the kernel needs the ids of prompt and completion."""
        return self.has_penalties or self.uses_dry or self.no_repeat_ngram_size > 0

    @property
    def changes_logits(self) -> bool:
        """Whether anything can make the greedy choice another one at every token.

        So min_tokens does not count, which ends, nor does the budget of thinking, which takes a token now and then.
        """
        return bool(
            self.needs_history
            or self.logit_bias
            or self.allowed_token_ids is not None
            or self.bad_words
            or self.structured_outputs is not None
        )

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], base: SamplingParams | None = None) -> SamplingParams:
        """Make settings from a mapping, on top of `base` or of the defaults.

        Raises:
            ConfigError: an unknown key (with what to do instead, or the one that was probably meant), or a value that a
                field refuses.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(
                f"sampling: found {shown(mapping)}, expected a mapping of settings such as max_tokens: 64"
            )
        names = [info.name for info in describe_fields()]
        for key in mapping:
            if key not in names:
                raise ConfigError(_unknown_key(key, names))
        return (base or cls()).replace(**mapping)

    @staticmethod
    def instead_of(name: object) -> str | None:
        """Say what to do instead of a setting that other tools have and this class has not; None for other names."""
        return instead_of(name)

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
                values[info.name] = _as_json(value)
        return values


def _as_json(value: Any) -> Any:
    if isinstance(value, StructuredOutputsParams):
        return value.to_dict()
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


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


def _unknown_key(key: Any, names: list[str]) -> str:
    cure = instead_of(key)
    if cure is None:
        near = difflib.get_close_matches(str(key), names, n=1, cutoff=MIN_LIKENESS)
        cure = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(names)}"
    return f"sampling: unknown key {shown(key)}; {cure}"
