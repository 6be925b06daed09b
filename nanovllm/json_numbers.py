"""Where a JSON text stands inside a number, and which tokens make that number longer.

Owns the bound on digits: a grammar lets a number go on for ever, and a model that has begun to repeat itself takes that
up, until its text is cut off and does not parse. Must not know grammars' sources, requests or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from nanovllm.kernels.sampling_step import pack_mask

MAX_DIGITS = 24
"""From so many digits a number goes on only where it must: integers of 64 bits have 20, and the shortest text of any
double of at least 1e-7 has at most 7 zeros and 17 digits."""
MAX_DIGITS_NEAR_BOUND = 13
"""The same for numbers with a fraction where a schema excludes a bound: as doubles, 0.99… with 17 digits is 1. A last
token of three digits and a digit that must follow still make no more than 16."""
MAX_EXPONENT_DIGITS = 3
"""As many as the exponents of doubles have."""
_MAX_SOUGHT = 2  # so a multiple of any number up to 100 is found
_DIGITS = frozenset(b"0123456789")
_SIGNS = frozenset(b"+-")
_EXPONENTS = frozenset(b"eE")
_QUOTE, _BACKSLASH, _POINT = b'"\\.'


class JsonPlace(NamedTuple):
    """Where a JSON text stands, a function of its bytes alone.

    Attributes:
        num_digits: of the number that the text ends in, those of its exponent aside; 0 elsewhere.
        num_exponent_digits: of that number's exponent, None before one.
        has_fraction: whether that number has a decimal point.
        in_string: whether a string is open.
        is_escaped: whether its last byte is a backslash that escapes the next.
        most_with_fraction: digits that are enough for a number with a fraction.
    """

    num_digits: int = 0
    num_exponent_digits: int | None = None
    has_fraction: bool = False
    in_string: bool = False
    is_escaped: bool = False
    most_with_fraction: int = MAX_DIGITS

    @property
    def is_long(self) -> bool:
        """Whether the text ends in a number that has enough digits."""
        most = self.most_with_fraction if self.has_fraction else MAX_DIGITS
        return self.num_digits >= most or (self.num_exponent_digits or 0) >= MAX_EXPONENT_DIGITS

    def after(self, piece: bytes) -> JsonPlace:
        """Return the place when a piece of the text has followed."""
        num_digits, num_exponent_digits, has_fraction, in_string, is_escaped, most = self
        for byte in piece:
            if in_string:
                in_string = is_escaped or byte != _QUOTE
                is_escaped = byte == _BACKSLASH and not is_escaped
            elif byte in _DIGITS:
                if num_exponent_digits is None:
                    num_digits += 1
                else:
                    num_exponent_digits += 1
            elif num_digits and byte == _POINT:
                has_fraction = True
            elif num_digits and byte in _EXPONENTS:
                num_exponent_digits = 0
            elif byte not in _SIGNS:
                num_digits, num_exponent_digits, has_fraction = 0, None, False
                in_string = byte == _QUOTE
        return JsonPlace(num_digits, num_exponent_digits, has_fraction, in_string, is_escaped, most)


class DigitTokens:
    """The tokens of a vocabulary that begin with a digit.

    Args:
        pieces: bytes of each token, by id.
        num_words: length of a mask.
    """

    def __init__(self, pieces: Iterable[bytes], num_words: int):
        digits = {token_id: piece for token_id, piece in enumerate(pieces) if piece[:1].isdigit()}
        self._single = [token_id for token_id, piece in digits.items() if len(piece) == 1]
        self._others = ~pack_mask(list(digits), 32 * num_words)

    def end_number(self, matcher: Any, mask: np.ndarray) -> None:
        """Take from a mask, which must be that of the matcher or less, what makes a number longer.

        Where the number cannot end yet, the digits stay after which it can end soonest, if they are seen; else the
        mask stays as it is. So it never becomes empty.
        """
        kept = mask & self._others[: len(mask)]
        if mask.any() and not kept.any():
            for token_id in self._leading_to_end(matcher, mask):
                kept[token_id // 32] |= np.uint32(1 << (token_id % 32))
        if kept.any():
            mask[:] = kept

    def _leading_to_end(self, matcher: Any, mask: np.ndarray) -> set[int]:
        allowed = [i for i in self._single if i < 32 * len(mask) and mask[i // 32] >> np.uint32(i % 32) & 1]
        for num_more in range(_MAX_SOUGHT):
            found = {ids[0] for ids in self._continued(allowed, num_more) if self._can_end(matcher, ids)}
            if found:
                return found
        return set()

    def _continued(self, first: list[int], num_more: int) -> Iterator[tuple[int, ...]]:
        return product(first, *[self._single] * num_more)

    def _can_end(self, matcher: Any, ids: tuple[int, ...]) -> bool:
        ahead = matcher.deep_copy()
        if not ahead.consume_tokens(list(ids)):
            return False
        after = np.frombuffer(ahead.compute_bitmask(), np.uint32)[: len(self._others)]  # it may have a word more
        return ahead.is_accepting() or bool((after & self._others).any())
