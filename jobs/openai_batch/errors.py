"""Why a call is refused, with the field that is to blame."""

from __future__ import annotations

from typing import Any

from jobs import json_text
from nanovllm import RequestError

_MAX_SHOWN_CHARS = 60


class CallRefused(RequestError):
    """A line of a batch cannot be served.

    Attributes:
        param: field of the body that is wrong, or None.
    """

    def __init__(self, code: str, message: str, param: str | None = None, retryable: bool = False):
        super().__init__(code, message, retryable, param)

    def __reduce__(self):
        return type(self), (self.code, self.message, self.param, self.retryable)


def shown(value: Any) -> str:
    """Show a value of a line in a message, as JSON and in few characters."""
    text = json_text.dumps(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."
