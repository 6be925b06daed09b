"""A row becomes a request, or an error row that says why."""

import hashlib
import json
import tracemalloc

import pytest
from fake_llm import FakeTokenizer

from jobs import json_text, row_ids
from jobs.job_file import PromptSettings
from jobs.overlong import cut_prompt, fit_prompt
from jobs.prompts import PromptBuilder
from jobs.readers import RawRow
from jobs.row_ids import RowIds
from jobs.rows import RowParser, row_sampling
from nanovllm import ConfigError, RequestError, SamplingParams


def parse_all(values, settings=PromptSettings()):  # noqa: B008
    builder = PromptBuilder(settings)
    builder.use_tokenizer(FakeTokenizer())
    parser = RowParser(builder)
    return [parser.parse(index, RawRow("f", 10 + index, value)) for index, value in enumerate(values)]


def parse(value, settings=PromptSettings()):  # noqa: B008
    return parse_all([value], settings)[0]


def text_of(row):
    ids = row.prompt.value["prompt_token_ids"]
    assert ids[0] == 1
    return "".join(map(chr, ids[1:]))


def test_a_prompt_is_raw_without_a_prompt_section():
    row = parse({"prompt": "hi", "id": "a", "topic": 3, "sampling": {"max_tokens": 2}})
    assert (row.id, row.index, row.error) == ("a", 0, None)
    assert (row.prompt.value, row.prompt.is_chat, row.sampling) == ("hi", False, {"max_tokens": 2})
    assert row.columns == {"prompt": "hi", "id": "a", "topic": 3, "sampling": {"max_tokens": 2}}


def test_blanks_and_nothing_are_prompts_for_the_engine_to_judge():
    assert parse({"prompt": "  "}).prompt.value == "  "
    assert parse({"prompt": ""}).prompt.value == ""


def test_token_ids_pass():
    assert parse({"prompt_token_ids": [5, 6], "prompt": None}).prompt.value == {"prompt_token_ids": [5, 6]}


def test_messages_go_through_the_chat_template():
    row = parse({"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function"}]})
    assert text_of(row) == "<tools 1><user>hi"
    assert row.prompt.is_chat


def test_a_chat_job_frames_prompts():
    row = parse({"prompt": "hi"}, PromptSettings(None, "Be brief.", True))
    assert text_of(row) == "<system>Be brief.<user>hi"


def test_a_template_fills_columns():
    settings = PromptSettings(
        "{{ q | upper }}: {{ n + 1 }}{% if hint is defined %} ({{ hint }}){% endif %}\n", None, False
    )
    assert parse({"q": "why", "n": 1}, settings).prompt.value == "WHY: 2\n"
    assert parse({"q": "why", "n": 1, "hint": "x"}, settings).prompt.value == "WHY: 2 (x)\n"


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ({}, "no_prompt", "has no column 'prompt', 'prompt_token_ids' or 'messages'"),
        ({"text": "x"}, "no_prompt", "(its columns: text)"),
        ({"prompt": None}, "no_prompt", "the column 'prompt' is null"),
        ({"prompt_token_ids": None}, "no_prompt", "the column 'prompt_token_ids' is null"),
        ({"prompt_token_ids": []}, "empty_prompt", "the column 'prompt_token_ids' is empty"),
        ({"prompt_token_ids": [1, True]}, "invalid_prompt", "'prompt_token_ids' must be a list of integers"),
        ({"prompt_token_ids": "12"}, "invalid_prompt", "'prompt_token_ids' must be a list of integers"),
        ({"prompt": 7}, "invalid_prompt", "the column 'prompt' must be text, found a number"),
        ({"prompt": ["x"]}, "invalid_prompt", "the column 'prompt' must be text, found a list"),
        ({"messages": "hi"}, "invalid_prompt", "the column 'messages' must be a list, found text"),
        ({"messages": [{"role": "forbidden"}]}, "template_error", "roles must alternate"),
        ({"prompt": "x", "messages": []}, "ambiguous_prompt", "has both 'prompt' and 'messages'"),
        ({"prompt": "caf\ud83d end"}, "invalid_text", "'prompt' holds the lone surrogate \\ud83d at position 3"),
        (
            {"messages": [{"role": "user", "content": "\udc00"}]},
            "invalid_text",
            "'messages[0].content' holds the lone surrogate \\udc00 at position 0",
        ),
        ({"prompt": "x", "sampling": {"stop": ["a\ud83d"]}}, "invalid_text", "'sampling.stop[0]' holds the lone"),
        ({"prompt": "x", "sampling": [1]}, "invalid_sampling", "the column 'sampling' must be an object"),
        ({"prompt": "x", "id": 1.5}, "invalid_id", "the column 'id' must be text or an integer"),
        ({"prompt": "x", "id": True}, "invalid_id", "the column 'id' must be text or an integer"),
        ("text", "invalid_row", "f, line 10 is not an object with columns"),
        (None, "invalid_row", "f, line 10 is not an object with columns"),
    ],
)
def test_a_wrong_row_says_why(value, code, message):
    row = parse(value)
    assert row.error.code == code
    assert message in row.error.message
    assert row.error.message.startswith("f, line 10")
    assert row.id == "0"


def test_a_line_that_cannot_be_trusted_keeps_its_id_but_not_its_columns():
    builder = PromptBuilder(PromptSettings())
    raw = RawRow("f", 3, {"id": "a", "x": object()}, "gives the key 'x' twice")
    row = RowParser(builder).parse(0, raw)
    assert (row.id, row.columns, row.error.code) == ("a", None, "invalid_row")
    assert row.error.message == "f, line 3 gives the key 'x' twice"


@pytest.mark.parametrize(
    ("template", "columns", "code", "message"),
    [
        ("{{ text }}", {"body": "x"}, "missing_column", "needs the column 'text'; the row's columns are: body"),
        ("{{ a.b }}", {"a": {}}, "template_error", "has no attribute 'b'"),
        ("{{ a }}", {"a": None}, "template_error", "a value is null"),
        ("{{ 1 / n }}", {"n": 0}, "template_error", "ZeroDivisionError"),
        ("{{ a.__class__.__mro__ }}", {"a": 1}, "template_error", "unsafe"),
        ("{{ a.append(1) }}", {"a": []}, "template_error", "SecurityError"),
        ("x{{ a }}", {"a": "\ud800"}, "invalid_text", "'a' holds the lone surrogate \\ud800 at position 0"),
    ],
)
def test_a_template_that_fails_is_an_error_of_its_row(template, columns, code, message):
    error = parse(columns, PromptSettings(template)).error
    assert error.code == code
    assert message in error.message


def test_a_template_that_is_no_jinja_is_refused_before_any_row():
    with pytest.raises(ConfigError, match=r"prompt.template, line 2 of the template: unexpected"):
        PromptBuilder(PromptSettings("a\n{{ }"))


def test_a_chat_job_needs_a_chat_template():
    with pytest.raises(ConfigError, match=r"the model has no chat template: set prompt.chat: false"):
        PromptBuilder(PromptSettings(chat=True)).use_tokenizer(FakeTokenizer(has_chat_template=False))


def ids_and_errors(values):
    return [
        (row.id, row.error and row.error.message) for row in parse_all([{"prompt": "x", **value} for value in values])
    ]


def test_a_repeated_id_names_the_first_line():
    assert ids_and_errors([{"id": "a"}, {"id": "b"}, {"id": "a"}]) == [
        ("a", None),
        ("b", None),
        ("a", "f, line 12: the id 'a' was used before, at f, line 10"),
    ]


def test_a_number_and_its_text_are_one_id():
    assert ids_and_errors([{"id": 7}, {"id": "7"}, {"id": "07"}]) == [
        ("7", None),
        ("7", "f, line 11: the id '7' was used before, at f, line 10"),
        ("07", None),
    ]


def test_no_id_is_the_index():
    assert ids_and_errors([{}, {"id": ""}, {"id": None}]) == [("0", None), ("1", None), ("2", None)]


def test_given_ids_and_indices_share_one_space():
    assert ids_and_errors([{"id": "1"}, {}, {}, {"id": 2}]) == [
        ("1", None),
        ("1", "f, line 11: the id '1' was used before, at f, line 10"),
        ("2", None),
        ("2", "f, line 13: the id '2' was used before, at row 2, which has its index as its id"),
    ]


def test_many_ids_are_all_remembered():
    ids = RowIds()
    for number in range(5000):
        assert ids.claim(f"k{number}", f"file{number // 1000}", number) is None
    assert [ids.claim(f"k{number}", "x", 1) for number in (0, 999, 1000, 4999)] == [
        "file0, line 0",
        "file0, line 999",
        "file1, line 1000",
        "file4, line 4999",
    ]


def test_ids_are_remembered_wherever_in_the_table_they_fall():
    ids, names = RowIds(), [hashlib.sha256(str(number).encode()).hexdigest()[:9] for number in range(30_000)]
    for number, name in enumerate(names):
        assert ids.claim(name, "f", number) is None
    for number, name in enumerate(names):
        assert ids.claim(name, "g", 1) == f"f, line {number}"
        assert ids.claim(name + "0", "g", 2 + number) is None


def test_ids_whose_digests_agree_in_the_sorted_part_are_told_apart(monkeypatch):
    # three texts share each of these: only the 16 bits beside them differ
    monkeypatch.setattr(row_ids, "_digest", lambda row_id: (int(row_id[1:]) % 5000 << 16) + int(row_id[1:]) // 5000)
    ids = RowIds()
    for number in range(15_000):
        assert ids.claim(f"k{number}", "f", number) is None
    for number in range(15_000):
        assert ids.claim(f"k{number}", "g", 1) == f"f, line {number}"
    assert ids.claim("k15000", "g", 1) is None


def test_a_file_behind_another_has_lines_of_its_own():
    ids = RowIds()
    assert [ids.claim(*one) for one in (("a", "one", 900), ("b", "two", 1), ("c", "one", 3))] == [None] * 3
    assert ids.claim("a", "x", 1) == "one, line 900"
    assert ids.claim("b", "x", 1) == "two, line 1"
    assert ids.claim("c", "x", 1) == "one, line 3"


def test_many_ids_take_fourteen_bytes_each():
    ids = RowIds()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(200_000):
        ids.claim(f"row-{number}", "f", number)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # besides 14 for each, some megabytes at most for the newest and for moving the table
    assert held - before < 14 * 200_000 + 1_500_000
    assert peak - before < 14 * 200_000 + 6_000_000


def test_row_sampling_goes_over_the_job():
    base = SamplingParams(max_tokens=5, temperature=0.5)
    merged = row_sampling(base, {"temperature": 0})
    assert (merged.max_tokens, merged.temperature, base.temperature) == (5, 0.0, 0.5)
    assert row_sampling(base, None) is base


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"temprature": 1}, "did you mean temperature"), ({"max_tokens": "8"}, "max_tokens is '8', expected an integer")],
)
def test_wrong_row_sampling_is_an_error_of_its_row(overrides, message):
    with pytest.raises(RequestError) as caught:
        row_sampling(SamplingParams(), overrides)
    assert caught.value.code == "invalid_sampling"
    assert caught.value.message.startswith("the column 'sampling': ")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("truncate_left", [1, *range(14, 20)]),
        ("truncate_right", [1, *range(2, 8)]),
        ("truncate_middle", [1, 2, 3, 4, 17, 18, 19]),
    ],
)
def test_cutting_keeps_bos_and_leaves_room(policy, kept):
    prompt = {"prompt_token_ids": list(range(1, 20))}
    assert cut_prompt(prompt, policy, FakeTokenizer(), 10, 3) == ({"prompt_token_ids": kept}, 12)


def test_cutting_keeps_at_least_half():
    prompt = {"prompt_token_ids": list(range(5, 25))}
    cut, num_cut = cut_prompt(prompt, "truncate_left", FakeTokenizer(), 10, 500)
    assert (cut["prompt_token_ids"], num_cut) == ([20, 21, 22, 23, 24], 15)


def test_a_prompt_that_fits_is_not_cut():
    assert cut_prompt("abc", "truncate_left", FakeTokenizer(), 5, 3) == ({"prompt_token_ids": [1, 97, 98, 99]}, 0)


def test_written_json_is_safe_for_every_reader():
    text = json_text.dumps({"a": "x\x85\u2028\u2029\ud83d é🙂", "b": [1.5, None]})
    assert text == '{"a": "x\\u0085\\u2028\\u2029\\ud83d é🙂", "b": [1.5, null]}'
    assert json.loads(text) == {"a": "x\x85\u2028\u2029\ud83d é🙂", "b": [1.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text.dumps(float("nan"))


def cut_chat(policy, messages, max_model_len, max_tokens):
    builder = PromptBuilder(PromptSettings())
    builder.use_tokenizer(FakeTokenizer())
    prompt = builder.chat(messages, {})
    fitted, num_cut = fit_prompt(prompt, policy, FakeTokenizer(), max_model_len, max_tokens)
    return "".join(map(chr, fitted["prompt_token_ids"][1:])), num_cut


@pytest.mark.parametrize(
    ("policy", "kept"), [("truncate_left", "6789"), ("truncate_right", "0123"), ("truncate_middle", "0189")]
)
def test_cutting_a_chat_keeps_its_frame(policy, kept):
    messages = [
        {"role": "system", "content": "S" * 12},
        {"role": "user", "content": "0123456789"},
        {"role": "assistant", "content": "A" * 12},
        {"role": "user", "content": "?"},
    ]
    # BOS, 20 of the system message, 6 + 10 of the user's, 23 of the assistant's, 7 of the last: 67 ids; 61 may stay
    text, num_cut = cut_chat(policy, messages, 64, 3)
    assert text == f"<system>{'S' * 12}<user>{kept}<assistant>{'A' * 12}<user>?"
    assert num_cut == 6


def test_a_chat_is_cut_in_the_longest_part_of_its_longest_user_message():
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "0123456789"}]
    messages = [{"role": "user", "content": parts}]

    class JoiningTokenizer(FakeTokenizer):
        def encode_chat(self, messages, **options):
            joined = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in messages]
            return super().encode_chat(joined)

    builder = PromptBuilder(PromptSettings())
    builder.use_tokenizer(JoiningTokenizer())
    fitted, num_cut = fit_prompt(builder.chat(messages, {}), "truncate_right", JoiningTokenizer(), 15, 2)
    assert "".join(map(chr, fitted["prompt_token_ids"][1:])) == "<user>ab0123"
    assert num_cut == 6
    assert parts[1]["text"] == "0123456789"


@pytest.mark.parametrize("messages", [[{"role": "system", "content": "S" * 40}], [{"role": "user", "content": "ab"}]])
def test_a_chat_that_cannot_be_cut_enough_stays_whole_for_the_engine_to_refuse(messages):
    text, num_cut = cut_chat("truncate_left", messages, 7, 1)
    assert text == f"<{messages[0]['role']}>{messages[0]['content']}"
    assert num_cut == 0
