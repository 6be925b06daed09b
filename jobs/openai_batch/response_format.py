"""`response_format` of a call, as the `structured_outputs` that mean the same."""

from __future__ import annotations

from typing import Any

from jobs.openai_batch.errors import CallRefused, shown

FIELD = "response_format"


def read_response_format(body: dict[str, Any]) -> dict[str, Any] | None:
    """Give the `structured_outputs` of a body that has a `response_format`; None where it asks for plain text.

    Raises:
        CallRefused: the format is not served, or has no schema.
    """
    given = body.get(FIELD)
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        message = f"body.{FIELD} is {shown(given)}, expected the type text, json_object or json_schema"
        raise CallRefused("unsupported_field", message, FIELD)
    if body.get("structured_outputs") is not None:
        message = f"body.{FIELD} and body.structured_outputs say the same thing: give one of them"
        raise CallRefused("invalid_sampling", message, FIELD)
    if kind == "json_object":
        return {"json_object": True}
    wrapper = given.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        message = f"body.{FIELD}.json_schema.schema is {shown(schema)}, expected a JSON schema: an object"
        raise CallRefused("invalid_sampling", message, FIELD)
    return {"json": schema}
