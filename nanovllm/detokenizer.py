"""Token ids back to text, all at once or one token at a time.

Owns the decoder part of a tokenizer.json: `TextDecoder` reads which steps it has, decodes whole lists, and starts an
`IncrementalDetokenizer` for each sequence that is being generated. Must not know requests, stop strings or templates.

Rules that hold for both ways, so that pieces joined always equal the whole:
- an id without a token (a model's vocabulary is often padded past its tokenizer's) decodes to nothing;
- bytes that are no UTF-8 become U+FFFD, one for each maximal invalid part. That holds for byte-fallback tokenizers
  too, where the `tokenizers` library would turn every byte of a run into U+FFFD, complete characters included;
- text that ends inside a character keeps its bytes back until the character completes; `flush` gives one U+FFFD.
"""

from __future__ import annotations

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import tokenizers

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# A prompt acts on what follows only by its beginning (is there text already?) and by its last, perhaps unfinished,
# character. This many ids from each side settle both without reading a long prompt.
_CONTEXT_IDS = 32
# The window decoder gives up waiting for a character after this many ids: no character has so many bytes.
_MAX_WITHHELD_IDS = 8


class IncrementalDetokenizer(ABC):
    """Turn one sequence's ids into text as they come, in constant time for each."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """Return the text that is certain now and was not before, often one token's."""

    @abstractmethod
    def flush(self) -> str:
        """Return what is left at the end: a U+FFFD for an unfinished character, or nothing."""


class _Utf8Stream:
    """Decode bytes to text, keeping an unfinished character back.

    A character that the prompt began and the output completes belongs to the output; when the output does not complete
    it, its U+FFFD is the prompt's and is left out.
    """

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._only_prompt_bytes = False

    def start_output(self) -> None:
        self._only_prompt_bytes = bool(self._decoder.getstate()[0])

    def feed(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        if self._only_prompt_bytes and data:
            self._only_prompt_bytes = False
            return text.removeprefix(_REPLACEMENT)
        return text

    def finish(self) -> str:
        text = self._decoder.decode(b"", True)
        text = "" if self._only_prompt_bytes else text
        self._only_prompt_bytes = False
        return text


class _Step:
    """One step of a decoder: token strings in, token strings out, with what it must remember."""

    def feed(self, tokens: list[str]) -> list[str]:
        raise NotImplementedError

    def finish(self) -> list[str]:
        return []

    def start_output(self) -> None:
        """Note that what was fed so far was the prompt."""


class _Each(_Step):
    """Apply a function to each token."""

    def __init__(self, function: Callable[[str], str]):
        self._function = function

    def feed(self, tokens: list[str]) -> list[str]:
        return [self._function(token) for token in tokens]


class _ByteLevel(_Step):
    """Map GPT-2's printable stand-ins back to bytes and decode these."""

    def __init__(self, bytes_of: Callable[[str], bytes]):
        self._bytes_of = bytes_of
        self._stream = _Utf8Stream()

    def feed(self, tokens: list[str]) -> list[str]:
        return [self._stream.feed(self._bytes_of(token)) for token in tokens]

    def finish(self) -> list[str]:
        return [self._stream.finish()]

    def start_output(self) -> None:
        self._stream.start_output()


class _ByteFallback(_Step):
    """Decode runs of tokens such as <0xE2>; other tokens pass."""

    def __init__(self):
        self._stream = _Utf8Stream()

    def feed(self, tokens: list[str]) -> list[str]:
        result = []
        for token in tokens:
            match = _BYTE_TOKEN.fullmatch(token)
            text = self._stream.feed(bytes([int(match[1], 16)])) if match else self._stream.finish()
            # Bytes that complete nothing are no token yet, so later steps must not count them as the first one.
            if text:
                result.append(text)
            if not match:
                result.append(token)
        return result

    def finish(self) -> list[str]:
        text = self._stream.finish()
        return [text] if text else []

    def start_output(self) -> None:
        self._stream.start_output()


class _Metaspace(_Step):
    """Turn the space sign into spaces, and drop those that open the text."""

    def __init__(self, sign: str, drops_first: bool):
        self._sign = sign
        self._at_start = drops_first

    def feed(self, tokens: list[str]) -> list[str]:
        result = []
        for token in tokens:
            result.append(token.replace(self._sign, "" if self._at_start else " "))
            self._at_start = False
        return result


class _StripStart(_Step):
    """Drop up to `count` of `sign` from the beginning of the whole text."""

    def __init__(self, sign: str, count: int):
        self._sign = sign
        self._num_left = count

    def feed(self, tokens: list[str]) -> list[str]:
        result = []
        for token in tokens:
            while self._num_left and token.startswith(self._sign):
                token = token[len(self._sign) :]
                self._num_left -= 1
            if token:
                self._num_left = 0
            result.append(token)
        return result


class _Spaces(_Step):
    """Put a space between tokens: what a tokenizer without a decoder does."""

    def __init__(self, unspaced: frozenset[str]):
        self._unspaced = unspaced
        self._last: str | None = None

    def feed(self, tokens: list[str]) -> list[str]:
        result = []
        for token in tokens:
            glued = self._last is None or (token in self._unspaced and self._last in self._unspaced)
            result.append(token if glued else " " + token)
            self._last = token
        return result


class _Chain(IncrementalDetokenizer):
    """Run each token through the decoder's steps."""

    def __init__(self, steps: list[_Step], token_of: Callable[[int], str | None], prompt_ids: Sequence[int]):
        self._steps = steps
        self._token_of = token_of
        for token_id in _context(prompt_ids):
            self.push(token_id)
        for step in steps:
            step.start_output()

    def push(self, token_id: int) -> str:
        token = self._token_of(token_id)
        return "" if token is None else self._run([token], 0)

    def flush(self) -> str:
        return "".join(self._run(step.finish(), index + 1) for index, step in enumerate(self._steps))

    def _run(self, tokens: list[str], first_step: int) -> str:
        for step in self._steps[first_step:]:
            tokens = step.feed(tokens)
        return "".join(tokens)


class _Window(IncrementalDetokenizer):
    """Decode the last few ids twice, with and without the new ones, and return the difference.

    For decoders whose steps are not known here. Exact as long as a token's text depends on nothing further back than
    the tokens of the last piece.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt_ids: Sequence[int]):
        self._decode = decode
        self._shown_ids = list(_context(prompt_ids))[-_MAX_WITHHELD_IDS:]
        self._withheld_ids: list[int] = []

    def push(self, token_id: int) -> str:
        self._withheld_ids.append(token_id)
        text = self._new_text()
        if not text or (text.endswith(_REPLACEMENT) and len(self._withheld_ids) < _MAX_WITHHELD_IDS):
            # Ids without text must not pile up: they would be decoded again and again.
            if not text and len(self._withheld_ids) >= _MAX_WITHHELD_IDS:
                self._withheld_ids.clear()
            return ""
        self._shown_ids, self._withheld_ids = self._withheld_ids, []
        return text

    def flush(self) -> str:
        text = self._new_text()
        self._withheld_ids = []
        return text

    def _new_text(self) -> str:
        return self._decode(self._shown_ids + self._withheld_ids)[len(self._decode(self._shown_ids)) :]


def _context(prompt_ids: Sequence[int]) -> Sequence[int]:
    if len(prompt_ids) <= 2 * _CONTEXT_IDS:
        return prompt_ids
    return [*prompt_ids[:_CONTEXT_IDS], *prompt_ids[-_CONTEXT_IDS:]]


def _gpt2_alphabet() -> dict[str, int]:
    """Return the byte behind each of GPT-2's 256 stand-in characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class _ByteLevelTable:
    """The bytes of each byte-level token, worked out once."""

    def __init__(self):
        self._alphabet = _gpt2_alphabet()
        self._bytes: dict[str, bytes] = {}

    def __call__(self, token: str) -> bytes:
        data = self._bytes.get(token)
        if data is None:
            try:
                data = bytes([self._alphabet[char] for char in token])
            except KeyError:
                # A token with any other character, such as an added token, stands for itself.
                data = token.encode("utf-8", "replace")
            self._bytes[token] = data
        return data


class TextDecoder:
    """The decoder of one tokenizer.

    Args:
        tokenizer: the loaded tokenizer; its decoder and added tokens must not change afterwards.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added_texts = frozenset(token.content for token in added.values())
        self._bytes_of = _ByteLevelTable()
        # `__getstate__` is the public way to a component's JSON without serializing the whole vocabulary.
        specs = None if tokenizer.decoder is None else _flatten(json.loads(tokenizer.decoder.__getstate__()))
        self._joins_with_spaces = specs is None
        self._has_byte_fallback = specs is not None and any(spec["type"] == "ByteFallback" for spec in specs)
        self._recipe = None if specs is None else _recipe(specs, self._bytes_of)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool, spaces_between_special_tokens: bool = True) -> str:
        """Return the text of a whole list of ids."""
        known = [token_id for token_id in map(int, ids) if 0 <= token_id < 2**32]
        spaced = skip_special_tokens or spaces_between_special_tokens or not self._joins_with_spaces
        if spaced:
            text = self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens)
            if not (self._has_byte_fallback and _REPLACEMENT in text):
                return text
        detokenizer = self.start(skip_special_tokens, spaces_between_special_tokens)
        return "".join([detokenizer.push(token_id) for token_id in known]) + detokenizer.flush()

    def start(
        self, skip_special_tokens: bool, spaces_between_special_tokens: bool = True, prompt_ids: Sequence[int] = ()
    ) -> IncrementalDetokenizer:
        """Return a detokenizer for the text that follows `prompt_ids`."""

        def token_of(token_id: int) -> str | None:
            if token_id < 0 or token_id >= 2**32 or (skip_special_tokens and token_id in self._special_ids):
                return None
            return self._tokenizer.id_to_token(token_id)

        if self._joins_with_spaces:
            spaced = skip_special_tokens or spaces_between_special_tokens
            return _Chain([_Spaces(frozenset() if spaced else self._added_texts)], token_of, prompt_ids)
        if self._recipe is None:
            return _Window(lambda ids: self.decode(ids, skip_special_tokens), prompt_ids)
        return _Chain([make() for make in self._recipe], token_of, prompt_ids)


def _flatten(spec: dict) -> list[dict]:
    """Return the steps of a decoder, nested sequences opened."""
    if spec["type"] != "Sequence":
        return [spec]
    return [step for inner in spec["decoders"] for step in _flatten(inner)]


def _recipe(specs: list[dict], bytes_of: Callable[[str], bytes]) -> list[Callable[[], _Step]] | None:
    """Return a maker for each step, or None when a step cannot be run on pieces of text."""
    makers: list[Callable[[], _Step]] = []
    fused = False  # whether the steps so far have joined all tokens into one text
    for spec in specs:
        kind = spec["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "ByteLevel" and not fused:
            makers.append(lambda: _ByteLevel(bytes_of))
            fused = True
        elif kind == "ByteFallback" and not fused:
            makers.append(_ByteFallback)
        elif kind == "Metaspace" and not fused:
            drops_first = spec.get("prepend_scheme", "always") != "never"
            makers.append(lambda sign=spec["replacement"], drops=drops_first: _Metaspace(sign, drops))
        elif kind == "Replace" and _is_piecewise(spec["pattern"], fused):
            pattern, content = spec["pattern"]["String"], spec["content"]
            makers.append(lambda old=pattern, new=content: _Each(lambda token: token.replace(old, new)))
        elif kind == "Strip" and fused and spec["stop"] == 0:
            makers.append(lambda sign=spec["content"], count=spec["start"]: _StripStart(sign, count))
        else:
            return None
    return makers


def _is_piecewise(pattern: dict, fused: bool) -> bool:
    """Return whether a replacement gives the same on pieces as on the joined text."""
    text = pattern.get("String", "")
    return len(text) == 1 or (bool(text) and not fused)
