"""Structured output: JSON schemas, regexes, choices and grammars as masks over token ids, through `llguidance`.

Owns that package, which is an extra and imported late, and the limits that keep a hostile grammar from taking the
process down. What cannot be enforced is an error: no completion is ever left unconstrained.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nanovllm.engine.grammar import TokenGrammar
from nanovllm.errors import ConfigError, RequestError
from nanovllm.grammar_trial import GrammarTrial, compiled, try_to_compile
from nanovllm.json_numbers import MAX_DIGITS_NEAR_BOUND, DigitTokens, JsonPlace
from nanovllm.sampling_params import SamplingParams
from nanovllm.structured_params import StructuredOutputsParams
from nanovllm.tokenizer import Tokenizer

_NUM_KEPT = 64  # compiled grammars of so many different settings: usually all requests of a job have the same few
_MAX_GBNF_CHARS = 2**15  # its translation takes time quadratic in the number of rules
# What a schema must be to be compiled without a trial: short, and without keywords that multiply each other.
_MAX_PLAIN_CHARS = 2**14
_NOT_PLAIN = re.compile(r'"(pattern|patternProperties|allOf|multipleOf|x-guidance)":')
_EXCLUDING = re.compile(r'"exclusiveM(in|ax)imum":')
_MAX_SHOWN_CHARS = 200
_EXPLAINED = {"NoExtensionBias": "no text conforms to it"}
# Where llguidance's messages go on with its own state.
_DETAILS = re.compile(r"<(state|backtrace|non-verbose/?)>.*", re.DOTALL)


def check_structured_outputs(params: SamplingParams) -> None:
    """Refuse settings whose grammar no model could follow, without a model.

    Raises:
        ConfigError: the package that compiles grammars is not installed.
        RequestError: `invalid_grammar`.
    """
    if params.structured_outputs is None:
        return
    _llguidance()
    problem = _problem(params.structured_outputs)
    if problem:
        raise _invalid(params.structured_outputs, problem)


class GrammarMaker:
    """Compiles the grammars of requests for one model.

    Args:
        tokenizer: the model's.
        vocab_size: of the model; ids past the tokenizer's are never allowed.
        eos_token_ids: what ends a completion, where the grammar lets it end.
        num_threads: how many fill the masks of a step.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Iterable[int], num_threads: int = 1):
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = [token_id for token_id in eos_token_ids if token_id < vocab_size]
        self._num_threads = num_threads
        self._kept = functools.lru_cache(_NUM_KEPT)(self._compile)

    def make(self, params: SamplingParams) -> Grammar | None:
        """Return a request's grammar, of which each completion needs a copy; None if it has none.

        Raises:
            RequestError: `invalid_grammar`, or `structured_outputs_unavailable` where the package is missing or does
                not know this kind of tokenizer.
        """
        if params.structured_outputs is None:
            return None
        found = self._kept(params.structured_outputs)
        if isinstance(found, str):
            raise _invalid(params.structured_outputs, found)
        return found

    def _compile(self, structured: StructuredOutputsParams) -> Grammar | str:
        """Return a grammar or what is wrong with it: that can take long to find out as well, and is kept too."""
        filler, matchers = self._filler, []

        def compile_it() -> str:
            source = _source(structured)
            if not _is_plain(structured) and (problem := filler.trial.problem(source)):
                return problem
            matchers.append(compiled(filler.tokenizer, source))
            return matchers[0].get_error()

        problem = try_to_compile(compile_it)
        return problem or Grammar(matchers[0], filler, _json_start(structured))

    @functools.cached_property
    def _filler(self) -> _MaskFiller:
        try:
            return _MaskFiller(self._tokenizer, self._vocab_size, self._eos_ids, self._num_threads)
        except ConfigError as error:
            raise RequestError("structured_outputs_unavailable", str(error)) from None


class Grammar(TokenGrammar):
    """A compiled grammar with a completion's place in it; with a `json_place`, one whose numbers are bounded."""

    def __init__(self, matcher: Any, filler: _MaskFiller, json_place: JsonPlace | None = None):
        self.matcher = matcher
        self._filler = filler
        self._json_place = json_place

    def copy(self) -> Grammar:
        """Return an independent one at the same place."""
        other = copy.copy(self)
        other.matcher = self.matcher.deep_copy()
        return other

    def accept(self, token_id: int) -> None:
        """Move on by a token that the mask allowed."""
        if self._json_place is not None:
            self._json_place = self._json_place.after(self._filler.tokenizer.decode_bytes([token_id]))
        if self.matcher.consume_token(token_id):
            self.is_done = self.matcher.is_stopped()
        else:
            self.check()

    def check(self) -> bool:
        """Return whether the matcher still works, and take its error if not."""
        if self.matcher.is_error():
            self.error = RequestError(
                "grammar_failed",
                f"structured_outputs: what may come next could not be told: {_short(self.matcher.get_error())}; "
                "simplify the schema, regex or grammar",
            )
        return self.error is None

    def fill(self, grammars: Sequence[Grammar], masks: np.ndarray) -> None:
        """Write what may come next in each grammar to its row of `masks`."""
        self._filler.fill(grammars, masks)

    def narrow(self, mask: np.ndarray) -> None:
        """Let a JSON number that has enough digits end."""
        if self._json_place is not None and self._json_place.is_long:
            self._filler.digits.end_number(self.matcher, mask)


class _MaskFiller:
    """Fills masks over one model's vocabulary, many at once and without the GIL."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: list[int], num_threads: int):
        llguidance = _llguidance()
        if not eos_ids:
            raise ConfigError("structured_outputs need an end-of-sequence id, and the model's files name none")
        size = max(vocab_size, tokenizer.vocab_size)
        arguments = {"tokenizer": tokenizer.to_json(), "n_vocab": size, "eos_token": eos_ids}
        try:
            self.tokenizer = llguidance.LLTokenizer(**arguments)
        except ValueError as error:
            raise ConfigError(f"structured_outputs cannot be had with this tokenizer: {_short(str(error))}") from None
        self.trial = GrammarTrial(arguments)
        self._executor = llguidance.LLExecutor(num_threads=num_threads)
        self._num_words = (size + 31) // 32
        # EOS ids that are also text: the matcher allows them as text, but the engine would end there.
        self._plain_eos_ids = [i for i in eos_ids if not self.tokenizer.is_special_token(i)]

    @functools.cached_property
    def digits(self) -> DigitTokens:
        """The tokens that make numbers longer; they are looked for when the first number is long."""
        pieces = (self.tokenizer.decode_bytes([token_id]) for token_id in range(self.tokenizer.vocab_size))
        return DigitTokens(pieces, self._num_words)

    def fill(self, grammars: Sequence[Grammar], masks: np.ndarray) -> None:
        wide = masks
        if masks.shape[1] != self._num_words:  # a tokenizer with more ids than the model
            wide = np.empty((len(masks), self._num_words), np.uint32)
        self._executor.unsafe_compute_mask_ptr(
            [(grammar.matcher, row) for row, grammar in enumerate(grammars)], wide.ctypes.data, 4 * wide.shape[1],
            len(wide),
        )  # fmt: skip
        if wide is not masks:
            masks[:] = wide[:, : masks.shape[1]]
        for row, grammar in enumerate(grammars):
            if not grammar.check():  # the matcher's own mask would let the completion end here
                masks[row] = 0
            elif self._plain_eos_ids and not grammar.matcher.is_accepting():
                for token_id in self._plain_eos_ids:
                    masks[row, token_id // 32] &= ~np.uint32(1 << (token_id % 32))


@functools.cache
def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError(
            "structured_outputs need the package llguidance, which is not installed: pip install 'nanovllm[structured]'"
        ) from None
    return llguidance


@functools.lru_cache(_NUM_KEPT)
def _problem(structured: StructuredOutputsParams) -> str:
    """Return why a grammar cannot be compiled; empty if it can, as far as that shows without a tokenizer."""

    def validate() -> str:
        source = _source(structured)
        if not _is_plain(structured):
            return _trial_without_tokenizer().problem(source)
        return _llguidance().LLMatcher.validate_grammar(source)

    return try_to_compile(validate)


@functools.cache
def _trial_without_tokenizer() -> GrammarTrial:
    return GrammarTrial()


def _is_plain(structured: StructuredOutputsParams) -> bool:
    """Whether no trial is needed before a grammar is compiled in this process."""
    if structured.json is not None:
        is_short = len(structured.json) <= _MAX_PLAIN_CHARS and structured.whitespace_pattern is None
        return is_short and not _NOT_PLAIN.search(structured.json)
    return structured.choice is not None or (bool(structured.json_object) and structured.whitespace_pattern is None)


def _json_start(structured: StructuredOutputsParams) -> JsonPlace | None:
    """Return the place where a JSON text begins; None for a grammar whose digits are its own affair."""
    if structured.json is None:
        return JsonPlace() if structured.json_object else None
    return JsonPlace(most_with_fraction=MAX_DIGITS_NEAR_BOUND) if _EXCLUDING.search(structured.json) else JsonPlace()


def _source(structured: StructuredOutputsParams) -> str:
    """Return a grammar as llguidance takes it. Raises ValueError for one that cannot be read."""
    matcher = _llguidance().LLMatcher
    if structured.regex is not None:
        # \d is ASCII, as in a schema's patterns; the other digits of Unicode are rarely meant
        return matcher.grammar_from_lark(f"start: /{_llguidance().regex_to_lark(structured.regex, 'd')}/")
    if structured.choice is not None:
        return matcher.grammar_from_regex("|".join(map(_escaped, structured.choice)))
    if structured.grammar is not None:
        return matcher.grammar_from_lark(_lark(structured.grammar))
    schema = structured.json or '{"type":"object"}'
    opened = json.loads(schema)
    if structured.disable_additional_properties:
        close_objects(opened)
        schema = json.dumps(opened)
    refuse_uncounted_keys(opened)
    return matcher.grammar_from_json_schema(schema, overrides=_json_options(structured))


def _json_options(structured: StructuredOutputsParams) -> dict[str, Any]:
    """Return options that go over those in a schema's `x-guidance`, which must not loosen anything."""
    options: dict[str, Any] = {"lenient": False, "whitespace_flexible": structured.whitespace_pattern is not None}
    if structured.whitespace_pattern is not None:
        return {**options, "whitespace_pattern": structured.whitespace_pattern}
    blank = "" if structured.disable_any_whitespace else " ?"
    return {**options, "item_separator": f",{blank}", "key_separator": f":{blank}"}


def _escaped(text: str) -> str:
    """Return a regex of the `regex` crate that matches this text alone."""
    return re.sub(r"[^\w ]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def _lark(text: str) -> str:
    """Return a grammar as Lark; one with GBNF's ::= is translated."""
    if not re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE):
        return text
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if len(text) > _MAX_GBNF_CHARS:
        raise ValueError(f"a GBNF grammar has {len(text)} characters, expected at most {_MAX_GBNF_CHARS}")
    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise
    except Exception as error:  # the translator raises plain Exception too
        raise ValueError(f"the GBNF grammar cannot be read: {error}") from None


def close_objects(schema: Any) -> None:
    """Forbid other properties, in place, wherever a schema lists some and does not speak of others."""
    for one in _schemas(schema):
        if "properties" in one or "patternProperties" in one:
            one.setdefault("additionalProperties", False)


def refuse_uncounted_keys(schema: Any) -> None:
    """Raise ValueError where a schema wants several properties with names of its own choosing.

    The grammar does not know which such names were used before, and a repeated one counts once.
    """
    for one in _schemas(schema):
        is_free = "patternProperties" in one or one.get("additionalProperties") is not False
        least, required = one.get("minProperties"), one.get("required")
        if not is_free or not isinstance(least, int):
            continue
        num_required = len(required) if isinstance(required, list) else 0
        if least > num_required + 1:
            raise ValueError(
                f"minProperties is {least} where {num_required} properties are required and others have names of their "
                "own choosing, which may repeat: list the names, or use an array"
            )


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Give every schema within a schema, the innermost first."""
    if isinstance(schema, list):
        for item in schema:
            yield from _schemas(item)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
            for inner in value.values() if isinstance(value, dict) else ():
                yield from _schemas(inner)
        elif key not in ("enum", "const", "default", "examples"):
            yield from _schemas(value)
    yield schema


def _invalid(structured: StructuredOutputsParams, problem: str) -> RequestError:
    kind = next(iter(structured.to_dict()))
    return RequestError("invalid_grammar", f"structured_outputs.{kind} cannot be enforced: {_short(problem)}")


def _short(message: str) -> str:
    """Return an error of llguidance in one line, without its state."""
    text = " ".join(_DETAILS.sub("", message).split())
    text = _EXPLAINED.get(text, text)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."
