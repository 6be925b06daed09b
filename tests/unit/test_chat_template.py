"""Chat templates: the Jinja dialect of checkpoints, choice of template, message shapes, limits."""

import json
from datetime import datetime

import pytest

from nanovllm import chat_template as module
from nanovllm.chat_template import ChatTemplates
from nanovllm.errors import RequestError, TokenizerError

USER = [{"role": "user", "content": "Hi"}]
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def render(template, messages=USER, **options):
    templates = template if isinstance(template, ChatTemplates) else ChatTemplates({"default": template})
    variables = options.pop("variables", {})
    defaults = {
        "tools": None,
        "documents": None,
        "add_generation_prompt": False,
        "continue_final_message": False,
        "chat_template": None,
    }
    return templates.render(messages, **{**defaults, **options}, variables=variables)


def refusal(template, messages=USER, **options):
    with pytest.raises(RequestError) as caught:
        render(template, messages, **options)
    assert caught.value.code == "template_error"
    return caught.value.message


# The dialect.


def test_generation_tag_prints_its_body():
    template = "{% for m in messages %}{% generation %}[{{ m.content }}]{% endgeneration %}{% endfor %}"
    assert render(template) == "[Hi]"


def test_break_and_continue():
    skip_1 = "{% if i == 1 %}{% continue %}{% endif %}"
    stop_at_4 = "{% if i == 4 %}{% break %}{% endif %}"
    assert render("{% for i in range(9) %}" + skip_1 + stop_at_4 + "{{ i }}{% endfor %}") == "023"


def test_strftime_now_gives_today():
    before = datetime.now().strftime("%d %b %Y")
    rendered = render("{{ strftime_now('%d %b %Y') }}")
    assert rendered in (before, datetime.now().strftime("%d %b %Y"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", '{"b": "é<&>\'", "a": 1}'),
        ("(sort_keys=true)", '{"a": 1, "b": "é<&>\'"}'),
        ("(ensure_ascii=true)", '{"b": "\\u00e9<&>\'", "a": 1}'),
        ("(separators=(',', ':'))", '{"b":"é<&>\'","a":1}'),
        ("(indent=2)", '{\n  "b": "é<&>\'",\n  "a": 1\n}'),
    ],
)
def test_tojson_escapes_nothing(arguments, expected):
    value = json.loads('{"b":"é<&>\'","a":1}')
    assert render("{{ value | tojson" + arguments + " }}", variables={"value": value}) == expected


def test_block_tags_on_own_lines_leave_no_trace():
    template = "start\n  {% if true %}\nkept\n    {% endif %}\nend\n"
    assert render(template) == "start\nkept\nend"


def test_undefined_prints_nothing_and_special_tokens_are_variables():
    template = "{{ bos_token }}|{{ missing }}|{{ enable_thinking }}"
    assert render(template, variables={"bos_token": "<s>", "enable_thinking": False}) == "<s>||False"


def test_tools_and_documents_pass_as_they_are():
    template = "{{ tools | tojson }}{{ documents | tojson }}{{ tools is none }}"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    rendered = render(template, tools=[tool], documents=[{"title": "t", "text": "x"}])
    assert rendered == json.dumps([tool]) + '[{"title": "t", "text": "x"}]' + "False"
    assert render("{{ tools is none }}") == "True"


def test_variables_do_not_replace_the_conversation():
    assert render("{{ messages[0].content }}", variables={"messages": [], "tools": 3}) == "Hi"


# When templates are compiled.


def test_a_template_that_is_not_used_is_never_compiled(monkeypatch):
    compiled = []
    environment = module._environment()
    original = environment.from_string
    monkeypatch.setattr(environment, "from_string", lambda text: compiled.append(text) or original(text))
    templates = ChatTemplates({"default": "used {{ 1 }}", "broken": "{% if %}"})
    assert compiled == []
    assert render(templates) == "used 1"
    assert render(templates) == "used 1"
    assert compiled == ["used {{ 1 }}"]


def test_broken_template_of_the_checkpoint_is_the_models_fault():
    templates = ChatTemplates({"default": "fine\n{% if %}"})
    for act in (templates.compile, lambda: render(templates)):
        with pytest.raises(TokenizerError, match="'default' is not valid Jinja: line 2"):
            act()


def test_broken_template_of_a_request_is_the_requests_fault():
    assert "line 1" in refusal("{{ 1 }}", chat_template="{% nonsense %}")


def test_template_nested_too_deeply_to_compile():
    deep = "{% for x in y %}" * 60 + "{% endfor %}" * 60
    with pytest.raises(TokenizerError, match="not valid Jinja"):
        render(deep)


# Which template.


def test_named_templates():
    templates = ChatTemplates({"default": "D", "tool_use": "T{# {{ tools }} #}{% if tools %}{% endif %}", "rag": "R"})
    assert render(templates) == "D"
    assert render(templates, tools=[{"type": "function"}]) == "T"
    assert render(templates, chat_template="rag") == "R"
    assert render(templates, chat_template="{{ 1 + 1 }}") == "2"
    assert render(ChatTemplates({"only": "O"})) == "O"
    assert render(ChatTemplates({"default": "D", "rag": "R"}, "rag")) == "R"
    assert render(ChatTemplates({"default": "D{{ tools | length }}"}), tools=[{"type": "function"}]) == "D1"


# What the template has no use for.

GIVEN = [{"name": "f"}]


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize(
    "template",
    [
        "x",
        "{# {{ tools }} {{ documents }} #}",
        "{{ messages[0].tools }}{{ messages[0].documents }}tools documents",
        "{% set tools = 1 %}{% set documents = 2 %}{{ tools }}{{ documents }}",
        "{% macro f(tools, documents) %}{{ tools }}{{ documents }}{% endmacro %}{{ f(1, 2) }}",
    ],
)
def test_what_a_template_never_reads_is_refused(name, template):
    with pytest.raises(RequestError) as caught:
        render(template, **{name: GIVEN})
    assert (caught.value.code, caught.value.param) == ("template_error", name)
    assert caught.value.message.startswith(f"{name}: the chat template makes no use of them")
    for nothing in ([], None):
        render(template, **{name: nothing})


@pytest.mark.parametrize(
    "template",
    [
        "{{ tools }}",
        "{% if tools is defined and tools %}{{ tools }}{% endif %}",
        "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools }}",
        "{% set tools = tools or [] %}{{ tools }}",
        "{% macro f() %}{{ tools }}{% endmacro %}{{ f() }}",
        "{% generation %}{{ tools }}{% endgeneration %}",
    ],
)
def test_what_a_template_reads_anywhere_is_taken(template):
    assert render(template, tools=GIVEN) == "[{'name': 'f'}]"
    assert render(template.replace("tools", "documents"), documents=GIVEN) == "[{'name': 'f'}]"


def test_the_template_that_is_used_decides():
    templates = ChatTemplates({"default": "D", "tool_use": "{{ tools }}", "rag": "{{ documents }}"})
    assert render(templates, tools=GIVEN) == render(templates, documents=GIVEN, chat_template="rag")
    assert refusal(templates, documents=GIVEN).startswith("documents: ")
    assert refusal(templates, tools=GIVEN, chat_template="rag").startswith("tools: ")
    assert render(templates, tools=GIVEN, chat_template="{{ tools | length }}") == "1"


def test_no_template_and_no_default():
    with pytest.raises(TokenizerError, match="has no chat template"):
        render(ChatTemplates({}))
    with pytest.raises(TokenizerError, match="a, b and none called default"):
        render(ChatTemplates({"a": "A", "b": "B"}))


def test_a_request_cannot_name_a_file(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("{{ 'secret' }}")
    assert "neither" in refusal("D", chat_template=str(path))


def test_sha256():
    assert ChatTemplates({}).sha256 is None
    # sha256 of "abc", from FIPS 180-2.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert ChatTemplates({"default": "abc"}).sha256 == known
    assert ChatTemplates({"default": "abc", "x": ""}).sha256 != known


# M02: one bad conversation is one error.

ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{{ m.content }};{% endfor %}"
)


def test_rows_that_the_template_refuses():
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    system_first = [{"role": "system", "content": "s"}, *good]
    two_users = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    results = []
    for row in (good, system_first, two_users, [], good):
        try:
            results.append(render(ALTERNATING, row))
        except RequestError as error:
            results.append((error.code, error.message))
    quoted = "the chat template refused the conversation: Conversation roles must alternate user/assistant"
    assert results == [
        "a;b;",
        ("template_error", quoted),
        ("template_error", quoted),
        ("empty_messages", "messages is an empty list: a conversation needs at least one message"),
        "a;b;",
    ]


def test_any_failure_inside_a_template_is_the_requests():
    assert "TypeError" in refusal("{{ 'a' + 1 }}")
    assert "'missing' is undefined" in refusal("{{ missing.x }}")
    assert "ZeroDivisionError" in refusal("{{ 1 / 0 }}")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hi", "messages must be a list"),
        ({"role": "user"}, "messages must be a list"),
        (["hi"], r"messages[0] must be a dict"),
        ([*USER, {"content": "x"}], "messages[1].role must be a string"),
        ([{"role": "user", "content": 5}], "messages[0].content must be"),
        ([{"role": "user", "content": [5]}], "messages[0].content holds 5"),
        ([{"role": "user", "content": ["a", None]}], "messages[0].content holds None"),
    ],
)
def test_malformed_messages(messages, words):
    assert words in refusal(CHATML, messages)


def test_tools_must_be_dicts():
    assert refusal(CHATML, tools=["f"]) == "tools must be a list of dicts"


# Shapes of content.

PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
LOOPS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}({{ p.text }}){% endfor %}{% endif %}{% endfor %}"
)
SET_LOOPS = (
    "{% for m in messages %}{% set body = m['content'] %}{% for p in body %}({{ p['text'] }}){% endfor %}{% endfor %}"
)
MACRO_LOOPS = (
    "{% macro show(content) %}{% for p in content %}({{ p.text }}){% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(m.content) }}{% endfor %}"
)


@pytest.mark.parametrize("template", [LOOPS, SET_LOOPS, MACRO_LOOPS])
def test_a_template_that_loops_over_parts_gets_parts(template):
    assert render(template, PARTS) == "(a)(b)"


def test_a_template_for_strings_gets_the_parts_joined():
    assert render(CHATML, PARTS) == "<|user|>a\nb<|end|>\n"


def test_a_template_for_strings_takes_text_parts_only():
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert "part of type 'image_url'" in refusal(CHATML, image)


def test_plain_strings_are_tried_when_parts_fail():
    inner = "{% for p in m.content if p is mapping %}{{ p.txt.x }}{% endfor %}{{ m.content }}"
    assert render("{% for m in messages %}" + inner + "{% endfor %}", PARTS) == "a\nb"


def test_null_content_is_given_as_it_is_and_as_empty_text_when_that_fails():
    messages = [{"role": "assistant", "content": None, "tool_calls": []}]
    assert render("{{ messages[0].content is none }}", messages) == "True"
    assert render("{{ '<' + messages[0].content + '>' }}", messages) == "<>"


def test_messages_are_not_changed():
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    render(CHATML, messages, continue_final_message=True)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert "append" in refusal("{{ messages.append(1) }}")


# A final message that stays open.

OPEN = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "one, two "}]


def test_final_message_stays_open_with_its_spaces():
    assert render(CHATML, OPEN, continue_final_message=True) == "<|user|>Count<|end|>\n<|assistant|>one, two "


def test_final_message_of_a_trimming_template_stays_open_trimmed():
    trimming = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"
    assert render(trimming, OPEN, continue_final_message=True) == "<Count><one, two"


def test_final_message_that_repeats_an_earlier_one():
    messages = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "Go"}]
    assert render(CHATML, messages, continue_final_message=True) == "<|user|>Go<|end|>\n<|assistant|>Go"


def test_final_message_in_parts_stays_open():
    assert render(LOOPS, PARTS, continue_final_message=True) == "(a)(b"


def test_final_message_cannot_be_continued():
    assert "contradict" in refusal(CHATML, OPEN, continue_final_message=True, add_generation_prompt=True)
    assert "leaves out the final message" in refusal("{{ messages[0].role }}", continue_final_message=True)
    empty = [{"role": "assistant", "content": None}]
    assert "needs text" in refusal(CHATML, empty, continue_final_message=True)


# Templates that run away.


def test_sandbox_keeps_python_out():
    assert "unsafe" in refusal("{{ ''.__class__.__mro__ }}{{ messages.__class__.__base__.__subclasses__() }}")


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(100001) %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{{ [0] * 100000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_runaway_templates_are_stopped(template):
    refusal(template)


def test_rendered_length_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_RENDERED_CHARS", 1000)
    assert "grew past 1000 characters" in refusal("{% for i in range(2000) %}x{% endfor %}")
    assert render("{% for i in range(1000) %}x{% endfor %}") == "x" * 1000


def test_ordinary_arithmetic_still_works():
    assert render("{{ '-' * 3 }}{{ 2 ** 10 }}{{ 3 * 4 }}{{ 2 ** 0.5 > 1 }}") == "---102412True"
