"""Read a line of an OpenAI batch: which call it makes, of which model, with which prompt and sampling.

Owns the envelope (`custom_id`, `method`, `url`, `body`) and the prompts of both endpoints. The table of fields is
`fields`; rendering a chat is the prompt builder's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.openai_batch.errors import CallRefused, shown
from jobs.openai_batch.fields import CHAT, ENDPOINTS, RESPONSE_FORMAT, check_fields, read_sampling
from jobs.prompts import Prompt, PromptBuilder, refuse_lone_surrogates
from nanovllm import RequestError

# What a template gets by other ways than `chat_template_kwargs`.
_NO_VARIABLES = (
    "self", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message",
)  # fmt: skip
_ENVELOPE = ("custom_id", "method", "url", "body")


@dataclass(slots=True)
class Call:
    """One line of a batch, as far as its response needs it.

    Attributes:
        custom_id: as given; None when the line has none that can be used.
        endpoint: one of `ENDPOINTS`, None until the line is known to be a call of one.
        model: name that the response gives back.
        num_top_logprobs: how many of the most likely tokens the response names at each position.
        logprob_token_ids: ids that it names besides.
        returns_token_ids: whether it gives the ids of prompt and completion.
        num_cut_tokens: prompt tokens that the call itself asked to cut.
        structured_field: field that says what the text must conform to, or None.
    """

    custom_id: str | None = None
    endpoint: str | None = None
    model: str = ""
    num_top_logprobs: int = 0
    logprob_token_ids: tuple[int, ...] = ()
    returns_token_ids: bool = False
    num_cut_tokens: int = 0
    structured_field: str | None = None


def is_batch_line(value: Any) -> bool:
    """Whether a row is meant as a line of a batch: it has a `custom_id`, and a `url` or a `body`."""
    return isinstance(value, dict) and "custom_id" in value and ("url" in value or "body" in value)


class CallReader:
    """Reads the calls of one job.

    Args:
        model: the job's model; calls that name none are answered in its name.
        sampling: the job's own sampling settings.
        served_model_names: names that calls may use; empty allows every name.
        returns_token_ids: whether calls that do not say it get the ids of prompt and completion.
    """

    def __init__(
        self,
        model: str = "",
        sampling: Mapping[str, Any] | None = None,
        served_model_names: Iterable[str] = (),
        returns_token_ids: bool = False,
    ):
        self._returns_token_ids = returns_token_ids
        self._model = model
        self._length_is_set = "max_tokens" in (sampling or {})
        self._names = tuple(served_model_names)

    def begin(self, columns: dict[str, Any]) -> Call:
        """Take what the response needs, right or wrong."""
        custom_id = columns.get("custom_id")
        return Call(custom_id if isinstance(custom_id, str) else None, model=self._default_name())

    def read(self, call: Call, columns: dict[str, Any], prompts: PromptBuilder) -> tuple[Prompt, dict[str, Any]]:
        """Give the prompt and the sampling settings of a call.

        Raises:
            RequestError: the call cannot be served; a CallRefused names the field.
        """
        body = _read_envelope(columns)
        call.endpoint = columns["url"]
        call.model = self._read_model(body)
        refuse_lone_surrogates({k: v for k, v in body.items() if k not in ("user", "metadata")}, "body")
        check_fields(call.endpoint, body)
        sampling = read_sampling(call.endpoint, body, self._length_is_set)
        call.num_top_logprobs = sampling.get("logprobs", 0)
        call.logprob_token_ids = tuple(sampling.get("logprob_token_ids", ()))
        call.returns_token_ids = _flag(body, "return_token_ids", self._returns_token_ids)
        if "structured_outputs" in sampling:
            call.structured_field = "structured_outputs" if body.get("structured_outputs") else RESPONSE_FORMAT
        prompt = _read_chat(body, prompts) if call.endpoint == CHAT else _read_prompt(body.get("prompt"))
        return _truncated(prompt, body, prompts, call), sampling

    def _default_name(self) -> str:
        return self._names[0] if self._names else self._model

    def _read_model(self, body: dict[str, Any]) -> str:
        name = body.get("model")
        if name is None:
            return self._default_name()
        if not isinstance(name, str):
            raise CallRefused("invalid_model", "body.model must be text", "model")
        if self._names and name not in self._names:
            served = ", ".join(self._names)
            raise CallRefused("model_not_found", f"body.model is {name!r}, and this batch serves {served}", "model")
        return name


def _read_envelope(columns: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name in _ENVELOPE if columns.get(name) is None]
    if missing:
        raise CallRefused("invalid_batch_line", f"{missing[0]!r} is missing: a line has {', '.join(_ENVELOPE)}")
    if columns["method"] != "POST":
        raise CallRefused("invalid_batch_line", f"'method' is {shown(columns['method'])}, expected 'POST'")
    if columns["url"] not in ENDPOINTS:
        expected = " or ".join(ENDPOINTS)
        raise CallRefused("unsupported_url", f"'url' is {shown(columns['url'])}, expected {expected}")
    if not isinstance(columns["body"], dict):
        raise CallRefused("invalid_batch_line", f"'body' must be an object, found {shown(columns['body'])}")
    return columns["body"]


def _read_chat(body: dict[str, Any], prompts: PromptBuilder) -> Prompt:
    messages = body.get("messages")
    if messages is None:
        raise CallRefused("no_prompt", "body.messages is missing", "messages")
    if not isinstance(messages, list):
        raise CallRefused("invalid_prompt", "body.messages must be a list of messages", "messages")
    stays_open = _flag(body, "continue_final_message", False)
    options = {
        **_template_variables(body),
        "tools": _read_tools(body),
        "add_generation_prompt": _flag(body, "add_generation_prompt", not stays_open),
    }
    if stays_open:
        options["continue_final_message"] = True
    for name in ("documents", "chat_template"):
        if body.get(name) is not None:
            options[name] = body[name]
    if not isinstance(options.get("chat_template", ""), str):
        raise CallRefused("invalid_prompt", "body.chat_template must be text", "chat_template")
    try:
        return prompts.chat(messages, options)
    except RequestError as error:
        raise CallRefused(error.code, error.message, error.param or "messages") from None


def _template_variables(body: dict[str, Any]) -> dict[str, Any]:
    variables = body.get("chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise CallRefused("invalid_prompt", "body.chat_template_kwargs must be an object", "chat_template_kwargs")
    for name in variables:
        if name in _NO_VARIABLES:
            message = f"body.chat_template_kwargs holds {name!r}, which it cannot set"
            raise CallRefused("invalid_prompt", message, "chat_template_kwargs")
    return variables


def _read_tools(body: dict[str, Any]) -> Any:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        message = f"body.tool_choice is {shown(choice)}, expected 'auto' or 'none': no call can be forced"
        raise CallRefused("unsupported_field", message, "tool_choice")
    return None if choice == "none" else tools or None


def _read_prompt(prompt: Any) -> Prompt:
    if prompt is None:
        raise CallRefused("no_prompt", "body.prompt is missing", "prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            message = f"body.prompt holds {len(prompt)} prompts: write one on each line"
            raise CallRefused("unsupported_field", message, "prompt")
        (prompt,) = prompt
    if isinstance(prompt, str):
        return Prompt(prompt)
    if not isinstance(prompt, list) or not all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        raise CallRefused("invalid_prompt", "body.prompt must be text or a list of token ids", "prompt")
    if not prompt:
        raise CallRefused("empty_prompt", "body.prompt is an empty list: it needs at least one id", "prompt")
    return Prompt({"prompt_token_ids": prompt})


def _truncated(prompt: Prompt, body: dict[str, Any], prompts: PromptBuilder, call: Call) -> Prompt:
    """Keep so many tokens of a prompt as the call says, by default the last ones."""
    count, side = body.get("truncate_prompt_tokens"), body.get("truncation_side")
    if side not in (None, "left", "right"):
        message = f"body.truncation_side is {shown(side)}, expected 'left' or 'right'"
        raise CallRefused("invalid_prompt", message, "truncation_side")
    if count is None:
        return prompt
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        cure = "an integer of at least 1; the job's on_overlong cuts what is longer than the model takes"
        message = f"body.truncate_prompt_tokens is {shown(count)}, expected {cure}"
        raise CallRefused("invalid_prompt", message, "truncate_prompt_tokens")
    ids = prompts.ids(prompt)
    call.num_cut_tokens = max(0, len(ids) - count)
    if not call.num_cut_tokens:
        return prompt
    return Prompt({"prompt_token_ids": ids[:count] if side == "right" else ids[-count:]})


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CallRefused("invalid_prompt", f"body.{name} is {shown(value)}, expected true or false", name)
    return value
