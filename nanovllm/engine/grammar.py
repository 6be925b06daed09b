"""What the tokens of a completion must conform to, seen from the engine: masks and a place that moves on.

Owns the protocol and the masks of a step. The layer that knows text brings the grammars; must not know texts itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

from nanovllm.engine.processors import TokenRules
from nanovllm.errors import RequestError


class TokenGrammar(ABC):
    """A grammar with the place that one completion has reached in it.

    It moves with the completion's tokens alone, so a preempted sequence, whose tokens stay, finds it where it was.

    Attributes:
        is_done: whether nothing may follow any more.
        error: why it cannot say what may follow; None as long as it can.
    """

    is_done: bool = False
    error: RequestError | None = None

    @abstractmethod
    def accept(self, token_id: int) -> None:
        """Move on by a token that the mask allowed."""

    @abstractmethod
    def fill(self, grammars: Sequence[TokenGrammar], masks: np.ndarray) -> None:
        """Write what may come next in each of `grammars`, which are of this one's kind, to its row of `masks`.

        A row is uint32 [ceil(vocab_size / 32)], bit i % 32 of word i // 32 for id i, as the sampling kernel takes it.
        One with an error gets a row of zeros.
        """

    def narrow(self, mask: np.ndarray) -> None:  # noqa: B027
        """Take from a mask that every rule has passed what is allowed and not wanted, but never all of it."""


class StepMasks:
    """Makes the masks of a step's rows, in memory that is used again."""

    def __init__(self, vocab_size: int):
        self._masks = np.empty((0, (vocab_size + 31) // 32), np.uint32)

    def of(self, rules: list[TokenRules | None], grammars: list[TokenGrammar | None]) -> dict[str, np.ndarray]:
        """Return masks and which rows have them as the kernel takes it; nothing where none has any.

        Valid until next asked.
        """
        bound = [i for i, grammar in enumerate(grammars) if grammar is not None]
        allowing = [None if one is None else one.mask for one in rules]
        breaking = [None if one is None else one.breaker_mask for one in rules]
        fixed = list({id(mask): mask for mask in (*allowing, *breaking) if mask is not None}.values())
        if not bound and not fixed:
            return {}
        masks = self._room(len(bound) + len(fixed))
        if bound:
            grammars[bound[0]].fill([grammars[i] for i in bound], masks[: len(bound)])
        for row, mask in enumerate(fixed, start=len(bound)):
            masks[row] = mask
        places = {id(None): -1} | {id(mask): row for row, mask in enumerate(fixed, start=len(bound))}
        mask_rows, breaker_rows = (
            np.array([places[id(mask)] for mask in of_rows], np.int32) for of_rows in (allowing, breaking)
        )
        for row, i in enumerate(bound):
            if mask_rows[i] >= 0:
                masks[row] &= rules[i].mask
            grammars[i].narrow(masks[row])
            mask_rows[i] = row
        return {"masks": masks, "mask_rows": mask_rows, "breaker_rows": breaker_rows}

    def _room(self, num_masks: int) -> np.ndarray:
        if len(self._masks) < num_masks:
            self._masks = np.empty((num_masks, self._masks.shape[1]), np.uint32)
        return self._masks[:num_masks]


def allows_only(mask: np.ndarray, token_ids: Iterable[int]) -> bool:
    """Return whether a mask has no bit outside `token_ids`."""
    rest = mask.copy()
    for token_id in token_ids:
        rest[token_id // 32] &= ~np.uint32(1 << (token_id % 32))
    return not rest.any()
