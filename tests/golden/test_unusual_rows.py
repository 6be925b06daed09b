"""Rows as people send them, through `nanovllm run` on a tiny checkpoint: each is answered or refused by itself.

Oracle: literal expectations; and the bytes of the same good rows without the bad ones.
"""

import gzip

import pytest
from job_bench import JobBench

GOOD = {"prompt": "Hello"}


@pytest.fixture
def bench(tmp_path, capsys):
    return JobBench(tmp_path, capsys)


# ---- files


ODD_LINES = (
    b'\xef\xbb\xbf{"prompt": "one"}\r\n\r\n   \n{"prompt": "two\xe2\x80\xa8lines", "note": "\xc2\x85"}\n'
    b"{broken\n" + b'{"prompt": "last"}'
)


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_lines_are_split_at_line_feeds_and_counted_as_an_editor_does(bench, name):
    data = gzip.compress(ODD_LINES) if name.endswith(".gz") else ODD_LINES
    assert bench.run(data, name=name) == 3
    lines = bench.lines()
    assert [line["row"] and line["row"]["prompt"] for line in lines] == ["one", "two\u2028lines", None, "last"]
    assert lines[1]["row"]["note"] == "\x85"
    assert "line 5" in lines[2]["error"]["message"]
    assert b"\xe2\x80\xa8" not in bench.results()
    assert len(bench.results().splitlines()) == 4


def test_a_csv_file_with_a_mark_has_its_first_column(bench):
    assert bench.run("\ufeffprompt,n\r\nHello,1\r\n".encode(), name="in.csv") == 0
    assert bench.lines()[0]["row"] == {"prompt": "Hello", "n": "1"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_another_encoding_is_refused_by_name(bench, encoding):
    assert bench.run('{"prompt": "Hello"}\n'.encode(encoding)) == 2
    assert "UTF-16" in bench.said


# ---- prompts


def test_half_a_character_is_refused_where_it_is_read_and_passed_on_where_it_is_not(bench):
    torn = r'"caf\ud83d end"'
    rows = (
        f'{{"prompt": {torn}}}\n{{"messages": [{{"role": "user", "content": {torn}}}]}}\n'
        f'{{"prompt": "a", "sampling": {{"stop": [{torn}]}}}}\n{{"prompt": "Hello", "note": {torn}}}\n'
    )
    assert bench.run(rows.encode()) == 3
    lines = bench.lines()
    for line, column in zip(lines, ("prompt", "messages[0].content", "sampling.stop[0]"), strict=False):
        assert f"'{column}' holds the lone surrogate \\ud83d at position 3" in line["error"]["message"]
    assert lines[3]["finish_reason"] in ("length", "stop")
    assert lines[3]["row"]["note"] == "caf\ud83d end"
    assert torn.encode() in bench.results()


EMPTIES = [{"prompt": ""}, {"prompt": "  "}, {"prompt_token_ids": []}, {"prompt": None}, {"note": 1}, GOOD]


@pytest.mark.parametrize("has_bos", [True, False])
def test_nothing_is_a_prompt_only_where_a_model_has_a_beginning(bench, has_bos):
    bench.change("tokenizer_config.json", {"add_bos_token": has_bos})
    assert bench.run([GOOD], sampling="temperature: 0, ignore_eos: true") == 0
    alone = bench.lines()[0]["text"]
    assert bench.run(EMPTIES, sampling="temperature: 0, ignore_eos: true") == 3
    first = None if has_bos else "empty_prompt"
    assert bench.errors() == [first, None, "empty_prompt", "no_prompt", "no_prompt", None]
    lines = bench.lines()
    assert lines[5]["text"] == alone
    for line, column in zip(lines[2:5], ("prompt_token_ids", "prompt", "prompt"), strict=True):
        assert column in line["error"]["message"]


def test_every_prompt_has_one_bos_whoever_writes_it(bench):
    template = "<|endoftext|>{% for m in messages %}{{ m.content }}{% endfor %}"
    bench.change("tokenizer_config.json", {"add_bos_token": True, "chat_template": template})
    rows = [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"prompt": "hi"},
        {"prompt": "<|endoftext|>hi"},
    ]
    assert bench.run(rows) == 0
    assert len({line["usage"]["prompt_tokens"] for line in bench.lines()}) == 1
    assert len({line["text"] for line in bench.lines()}) == 1


def test_a_prompt_too_long_between_two_short_ones_has_a_line_in_its_place(bench):
    rows = [GOOD, {"prompt": "word " * 300}, GOOD]
    limit = ", max_model_len: 64"
    assert bench.run(rows, engine=limit) == 3
    assert bench.errors() == [None, "prompt_too_long", None]
    assert "64" in bench.lines()[1]["error"]["message"]
    assert bench.run(rows, "on_overlong: skip\n", engine=limit) == 0
    assert [line["finish_reason"] for line in bench.lines()][1] == "skipped"
    for policy in ("truncate_left", "truncate_right", "truncate_middle"):
        assert bench.run(rows, f"on_overlong: {policy}\n", engine=limit) == 0
        lines = bench.lines()
        assert [line["index"] for line in lines] == [0, 1, 2]
        assert lines[1]["num_cut_tokens"] > 200
        assert "num_cut_tokens" not in lines[0]


# ---- ids and values


def test_ids_that_come_twice_lose_no_row(bench):
    ids = ["a", "b", "a", 7, "7", "", None]
    rows = [{"id": each, "prompt": f"Hello {number}"} for number, each in enumerate(ids)]
    rows.append({"prompt": "Hello 7"})
    assert bench.run(rows) == 3
    lines = bench.lines()
    assert [line["row"]["prompt"] for line in lines] == [f"Hello {number}" for number in range(8)]
    repeated = [line["index"] for line in lines if line["error"]]
    assert {2, 4} <= set(repeated)
    assert "line 1" in lines[2]["error"]["message"]
    assert "line 4" in lines[4]["error"]["message"]
    assert lines[3]["finish_reason"] != "error"


@pytest.mark.parametrize(
    ("value", "word"),
    [("NaN", "NaN"), ("-Infinity", "Infinity"), ("1e999", "1e999"), ('1, "x": 2', "x")],
)
def test_numbers_that_are_none_and_keys_given_twice_are_refused_with_their_line(bench, value, word):
    assert bench.run(f'{{"prompt": "Hello"}}\n{{"prompt": "Hello", "x": {value}}}\n'.encode()) == 3
    assert [bool(error) for error in bench.errors()] == [False, True]
    message = bench.lines()[1]["error"]["message"]
    assert "line 2" in message
    assert word in message
    for path in bench.out.iterdir():
        assert b": NaN" not in path.read_bytes()
        assert b"Infinity," not in path.read_bytes()


BIASES = [{"999999": -100}, {"-1": 5}, {"abc": 5}, {"5": "x"}, {"5": 1e9}, {"5": -100}]


def test_a_wrong_bias_is_an_error_of_its_row_and_touches_no_other(bench):
    good = [{"id": "first", **GOOD}, {"id": "last", "prompt": "The rain"}]
    assert bench.run(good) == 0
    alone = {line["id"]: line["text"] for line in bench.lines()}
    biased = [{"id": f"b{n}", **GOOD, "sampling": {"logit_bias": bias}} for n, bias in enumerate(BIASES)]
    assert bench.run([good[0], *biased, good[1]]) == 3
    lines = {line["id"]: line for line in bench.lines()}
    assert {each: lines[each]["text"] for each in alone} == alone
    for number, word in enumerate(("999999", "-1", "abc", "5")):
        error = lines[f"b{number}"]["error"]
        assert error, number
        assert "logit_bias" in error["message"]
        assert word in error["message"]
    assert lines["b5"]["error"] is None


# ---- seeds


def test_samples_differ_repeat_and_do_not_depend_on_how_many_there_are(bench):
    def row(number, count):
        return {"id": f"n{number}", **GOOD, "sampling": {"n": count, "seed": 7, "temperature": 1.0, "ignore_eos": True}}

    rows = [row(3, 3), row(5, 5), *({"id": f"e{n}", "prompt": "Once"} for n in range(20))]
    assert bench.run(rows, sampling="temperature: 1, ignore_eos: true") == 0
    first = bench.results()
    samples = {}
    for line in bench.lines():
        samples.setdefault(line["id"], []).append(line["text"])
    assert len(set(samples["n5"])) == 5
    assert samples["n3"] == samples["n5"][:3]
    assert len({samples[f"e{n}"][0] for n in range(20)}) > 10
    assert bench.run(rows, sampling="temperature: 1, ignore_eos: true") == 0
    assert bench.results() == first
    seeds = {line["id"]: line.get("seed") for line in bench.lines()}
    assert len({seeds[f"e{n}"] for n in range(20)}) == 20
