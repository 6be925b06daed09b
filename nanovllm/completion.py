"""The text side of one completion: decoding token by token, stop strings, and what may already be shown.

Knows tokenizer and sampling params; has never heard of batches or caches.
"""

from __future__ import annotations

from nanovllm.sampling_params import SamplingParams
from nanovllm.tokenizer import Tokenizer


class CompletionText:
    """Text of a completion as it grows.

    Attributes:
        text: what the completion is so far; final once `finish` was called or a stop string matched.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt_ids: list[int]):
        self._params = params
        self._detokenizer = None
        if params.detokenize:
            self._detokenizer = tokenizer.detokenizer(
                params.skip_special_tokens, params.spaces_between_special_tokens, prompt_ids
            )
        self._longest_stop = max((len(stop) for stop in params.stop), default=0)
        self._num_shown = 0
        self._finished = False
        self.text = ""

    def push(self, token_id: int, num_completion: int) -> str | None:
        """Add a token; returns the stop string that it completed, if any (the text is then cut there)."""
        if self._detokenizer is None:
            return None
        piece = self._detokenizer.push(token_id)
        before = len(self.text)
        self.text += piece
        if num_completion <= self._params.min_tokens:
            return None
        return self._match_stop(before) if piece and self._longest_stop else None

    def _match_stop(self, before: int) -> str | None:
        """Cut at the stop string that the text beyond `before` completes first; of several, the one listed first."""
        found = [(self.text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self._params.stop]
        matches = [(at + len(stop), at, stop) for at, stop in found if at >= 0]
        if not matches:
            return None
        end, at, stop = min(matches, key=lambda match: match[0])
        self.text = self.text[: end if self._params.include_stop_str_in_output else at]
        self._finished = True
        return stop

    def finish(self) -> None:
        """End without a stop string: a character that never got complete becomes U+FFFD, as in a full decode."""
        if not self._finished and self._detokenizer is not None:
            self.text += self._detokenizer.flush()
        self._finished = True

    def take_new(self) -> str:
        """Return the text that is certain and was not returned before.

        What could still turn out to be the beginning of a stop string is held back.
        """
        new = self.certain_after(self._num_shown)
        self._num_shown += len(new)
        return new

    def certain_after(self, num_shown: int) -> str:
        """Return the text beyond `num_shown` characters that is certain."""
        safe = len(self.text)
        if not self._finished and self._longest_stop:
            safe -= self._longest_stop - 1
        return self.text[num_shown : max(safe, num_shown)]
