"""The shape of chat messages, before and after a template.

Owns what a valid conversation looks like, the joining of text parts for templates that only take strings, and the mark
that keeps a final message open. Must not know Jinja.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from nanovllm.errors import RequestError

# Appended to a final message that stays open, found again in the rendered text. Some published templates look for
# this very word, which transformers uses, so it is not ours to choose.
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "


def check_messages(messages: object) -> None:
    """Check that messages are a list of dicts with a role and a content.

    Raises:
        RequestError: `empty_messages`, or `template_error` naming the message and what is wrong.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise refused(f"messages must be a list of dicts with role and content, found {type(messages).__name__}")
    if not messages:
        raise RequestError("empty_messages", "messages is an empty list: a conversation needs at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise refused(f"messages[{index}] must be a dict with role and content, found {type(message).__name__}")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise refused(f"messages[{index}].role must be a string such as 'user', found {role!r}")
        if isinstance(content, list):
            bad = [part for part in content if not isinstance(part, str | Mapping)]
            if bad:
                raise refused(f"messages[{index}].content holds {bad[0]!r}; each part must be a dict with a type")
        elif content is not None and not isinstance(content, str):
            raise refused(
                f"messages[{index}].content must be a string, null or a list of parts, found {type(content).__name__}"
            )


def check_dicts(name: str, values: object) -> None:
    """Check that an optional argument is a list of dicts."""
    if values is None:
        return
    if not isinstance(values, list | tuple) or not all(isinstance(value, Mapping) for value in values):
        raise refused(f"{name} must be a list of dicts")


def check_read(name: str, values: Sequence[Mapping] | None, variables: Set[str]) -> None:
    """Refuse what is given for a variable that the template never reads: the model would not see it."""
    if values and name not in variables:
        raise refused(
            f"{name}: the chat template makes no use of them, so the model would not see them; leave them out, or give "
            f"a chat_template that reads the variable {name!r}",
            param=name,
        )


def joined_parts(index: int, message: dict) -> dict:
    """Return the message with a list of text parts made one string."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    for part in content:
        if isinstance(part, Mapping) and not (part.get("type", "text") == "text" and isinstance(part.get("text"), str)):
            raise refused(
                f"messages[{index}].content holds a part of type {part.get('type')!r}; this model's chat template "
                'takes text only: {"type": "text", "text": "…"}'
            )
    return {**message, "content": joined_text(message)}


def joined_text(message: dict) -> str:
    """Return a message's text parts joined by newlines; no content is an empty text."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part if isinstance(part, str) else part["text"] for part in content)


def with_open_end(message: dict) -> dict:
    """Return the message with the mark behind its text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _OPEN_END}
    parts = list(content or ())
    for index in reversed(range(len(parts))):
        part = parts[index]
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            parts[index] = {**part, "text": part["text"] + _OPEN_END}
            return {**message, "content": parts}
    raise refused("continue_final_message needs text in the final message's content, which has none")


def cut_at_open_end(text: str) -> str:
    """Return a rendered conversation up to the mark."""
    end = text.rfind(_OPEN_END.strip())
    if end < 0:
        raise refused("the chat template leaves out the final message, so it cannot be continued")
    if text.startswith(_OPEN_END, end):
        return text[:end]
    # The template trims contents, so it would have trimmed the end of this one too.
    return text[:end].rstrip()


def refused(reason: str, param: str | None = None) -> RequestError:
    """Return the error of one request whose conversation cannot be rendered."""
    return RequestError("template_error", reason, param=param)
