"""Chat templates: conversations to prompt text.

Owns the Jinja environment (the tags, filters and globals that checkpoints' templates expect), the choice among named
templates, and rendering within bounds. Must not know token ids or files of a checkpoint; a template is text here, and
nothing that a request names is ever read from disk.

A template runs in Jinja's immutable sandbox and cannot reach Python or change the messages. `range` is bounded in one
call (100,000) and over a whole rendering, repetition by `*` and powers are bounded, and so is the rendered length.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

from nanovllm.chat_messages import (
    check_dicts,
    check_messages,
    check_read,
    cut_at_open_end,
    joined_parts,
    joined_text,
    refused,
    with_open_end,
)
from nanovllm.errors import RequestError, TokenizerError

MAX_RENDERED_CHARS = 32 * 1024 * 1024  # several times the longest context any model has
_MAX_RANGE_ITEMS = 1_000_000
_MAX_POWER_BITS = 4096


class ChatTemplates:
    """The named chat templates of one checkpoint.

    Args:
        texts: template text by name.
        default: the name to use when a request names none; None picks "tool_use" for requests with tools, else
            "default", else the only one there is.
    """

    def __init__(self, texts: Mapping[str, str], default: str | None = None):
        self._texts = dict(texts)
        self._default = default

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def names(self) -> list[str]:
        """Names of the templates, sorted."""
        return sorted(self._texts)

    @property
    def sha256(self) -> str | None:
        """Hash of the one template's text, or of all names and texts; None without templates."""
        if not self._texts:
            return None
        if len(self._texts) == 1:
            (text,) = self._texts.values()
        else:
            text = json.dumps([self._default, self._texts], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def text(self, name: str | None = None) -> str:
        """Return a template by its name, or the one of a request that names none and has no tools.

        Raises:
            TokenizerError: there is none.
        """
        name = name or self._default_name(has_tools=False)
        if name not in self._texts:
            raise TokenizerError(f"this model has no chat template {name!r}, it has {', '.join(self.names) or 'none'}")
        return self._texts[name]

    def compile(self) -> None:
        """Compile every template, to find a broken one before any work.

        Raises:
            TokenizerError: a template is not valid Jinja.
        """
        for name in self._texts:
            self._compiled(name)

    def render(
        self,
        messages: Sequence[Mapping],
        *,
        tools: Sequence[Mapping] | None,
        documents: Sequence[Mapping] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        chat_template: str | None,
        variables: Mapping[str, object],
    ) -> str:
        """Return the prompt text of a conversation.

        Args:
            messages: dicts with `role` and `content` (str, None, or a list of `{"type": "text", "text": …}` parts);
                everything else in them is the template's business.
            tools: JSON schemas, passed on as they are to a template that reads them; any other refuses them.
            documents: dicts, in the same way.
            add_generation_prompt: whether to end with the opening of the assistant's turn.
            continue_final_message: whether to leave the final message open, for the model to go on with it.
            chat_template: a template's name, or template text; None for the checkpoint's own.
            variables: what else the template may use.

        Raises:
            RequestError: `empty_messages`, or `template_error` with the template's own message or with `param` "tools"
                or "documents", of which the template makes no use.
            TokenizerError: the checkpoint has no template, or one that is not valid Jinja.
        """
        check_messages(messages)
        check_dicts("tools", tools)
        check_dicts("documents", documents)
        if continue_final_message and add_generation_prompt:
            raise refused(
                "add_generation_prompt and continue_final_message contradict each other: a final message that stays "
                "open cannot be followed by a new turn; set one of them to false"
            )
        if continue_final_message and messages[-1].get("content") in (None, []):
            raise refused("continue_final_message needs text in the final message's content, which has none")
        template = self._choose(chat_template, has_tools=bool(tools))
        check_read("tools", tools, template.variables)
        check_read("documents", documents, template.variables)
        context = {
            **variables,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        return _render_any_shape(template, [dict(message) for message in messages], context, continue_final_message)

    def _choose(self, chat_template: str | None, has_tools: bool) -> _Template:
        if chat_template is not None and chat_template not in self._texts:
            if not looks_like_template(chat_template):
                raise refused(
                    f"chat_template {chat_template!r} is neither one of this model's templates "
                    f"({', '.join(self.names) or 'it has none'}) nor template text"
                )
            try:
                return _compile(chat_template)
            except TemplateSyntaxError as error:
                raise refused(f"the request's chat template is not valid Jinja: {_syntax_fault(error)}") from None
        return self._compiled(chat_template or self._default_name(has_tools))

    def _default_name(self, has_tools: bool) -> str:
        name = self._default
        if name is None:
            wanted = ["tool_use", "default"] if has_tools else ["default"]
            name = next((name for name in wanted if name in self._texts), None)
        if name is None and len(self._texts) == 1:
            (name,) = self._texts
        if name is None and not self._texts:
            raise TokenizerError(
                "this model has no chat template (no chat_template.jinja, no chat_template in tokenizer_config.json); "
                "give one with chat_template, or use raw prompts"
            )
        if name is None:
            raise TokenizerError(
                f"this model has the chat templates {', '.join(self.names)} and none called default; "
                "name one with chat_template"
            )
        return name

    def _compiled(self, name: str) -> _Template:
        try:
            return _compile(self._texts[name])
        except TemplateSyntaxError as error:
            raise TokenizerError(
                f"chat template {name!r} is not valid Jinja: {_syntax_fault(error)}; "
                "repair it or give another with chat_template"
            ) from None


def looks_like_template(text: str) -> bool:
    """Return whether a text is Jinja source rather than a name or a path."""
    return "{{" in text or "{%" in text or "{#" in text or "\n" in text


@dataclass(frozen=True)
class _Template:
    jinja: jinja2.Template
    reads_parts: bool  # whether it loops over a message's content, so that it takes lists of parts
    variables: frozenset[str]  # what it reads of what it is given


@functools.lru_cache(maxsize=64)
def _compile(text: str) -> _Template:
    environment = _environment()
    try:
        jinja, tree = environment.from_string(text), environment.parse(text)
        return _Template(jinja, _reads_parts(tree), frozenset(meta.find_undeclared_variables(tree)))
    except (SyntaxError, RecursionError, ValueError) as error:
        # Jinja writes Python, which has its own limits on nesting.
        raise TemplateSyntaxError(f"it is nested too deeply ({error})", 1) from None


@functools.lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with the two operators bounded that make much out of little."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context, operator, left, right):
        if operator == "*":
            for repeated, count in ((left, right), (right, left)):
                too_long = hasattr(repeated, "__len__") and isinstance(count, int)
                if too_long and len(repeated) * count > MAX_RENDERED_CHARS:
                    raise SecurityError(f"repetition to more than {MAX_RENDERED_CHARS} items")
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_POWER_BITS:
            raise SecurityError(f"a power of more than {_MAX_POWER_BITS} bits")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(jinja2.ext.Extension):
    """Accept `{% generation %}…{% endgeneration %}`, which marks text for training, and print its body."""

    tags = frozenset(["generation"])

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Write JSON as it is, unlike Jinja's own filter, which escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message):
    raise TemplateError(str(message))


def _strftime_now(format):
    return datetime.now().strftime(format)


def _bounded_range():
    """Return a `range` for one rendering that limits what all its calls may count together."""
    num_left = _MAX_RANGE_ITEMS

    def bounded(*args):
        nonlocal num_left
        numbers = safe_range(*args)
        num_left -= len(numbers)
        if num_left < 0:
            raise SecurityError(f"range() counted more than {_MAX_RANGE_ITEMS} numbers in one rendering")
        return numbers

    return bounded


def _reads_parts(tree: nodes.Template) -> bool:
    """Return whether a template loops over the content of messages.

    A loop over `x.content`, `x["content"]`, a variable called `content` (a macro's argument, usually) or one that was
    set from any of these counts.
    """
    aliases = {"content"}

    def is_content(expression: nodes.Node | None) -> bool:
        if isinstance(expression, nodes.Name):
            return expression.name in aliases
        if isinstance(expression, nodes.Getattr):
            return expression.attr == "content"
        if isinstance(expression, nodes.Getitem):
            return isinstance(expression.arg, nodes.Const) and expression.arg.value == "content"
        if isinstance(expression, nodes.Filter | nodes.Test):
            return is_content(expression.node)
        if isinstance(expression, nodes.CondExpr):
            return is_content(expression.expr1) or is_content(expression.expr2)
        return False

    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and is_content(assignment.node):
            aliases.add(assignment.target.name)
    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))


def _render_any_shape(template: _Template, messages: list[dict], context: dict, stays_open: bool) -> str:
    """Render messages in the shape that the template can read.

    A template that loops over content gets lists of parts as they are. Any other gets their texts joined by newlines,
    as vLLM gives them. Should the first kind fail nevertheless, or a template fail over a null content, the plain
    strings are tried before giving up, and the first failure is the one reported.
    """
    if not template.reads_parts:
        messages = [joined_parts(index, message) for index, message in enumerate(messages)]
    if all(isinstance(message.get("content"), str) for message in messages):
        return _render(template, messages, context, stays_open)
    try:
        return _render(template, messages, context, stays_open)
    except RequestError as first_error:
        try:
            plain = [joined_parts(i, message) | {"content": joined_text(message)} for i, message in enumerate(messages)]
            return _render(template, plain, context, stays_open)
        except RequestError:
            raise first_error from None


def _render(template: _Template, messages: list[dict], context: dict, stays_open: bool) -> str:
    if stays_open:
        messages = [*messages[:-1], with_open_end(messages[-1])]
    pieces = []
    num_chars = 0
    try:
        for piece in template.jinja.generate({**context, "range": _bounded_range(), "messages": messages}):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > MAX_RENDERED_CHARS:
                raise SecurityError(f"the prompt grew past {MAX_RENDERED_CHARS} characters")
    except Exception as error:  # a template can fail like any program; all of it belongs to this request
        raise refused(f"the chat template refused the conversation: {_reason(error)}") from error
    text = "".join(pieces)
    return cut_at_open_end(text) if stays_open else text


def _syntax_fault(error: TemplateSyntaxError) -> str:
    return f"line {error.lineno}: {error.message}"


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, TemplateError):
        return text
    return f"{type(error).__name__}: {text}"
