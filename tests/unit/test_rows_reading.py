"""Files of rows: every line is accounted for, with its physical line number."""

import gzip
import io
import json
import os
import sys

import pytest

from jobs.inputs import RowSource
from nanovllm import ConfigError


def read(path):
    source = RowSource([str(path)])
    source.check()
    return [(row.line, row.value if row.problem is None else row.problem) for row in source.rows()]


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


AWKWARD = '\ufeff{"a": "x\u2028y"}\r\n\n  \n{"a": "p\x85q"}\r\n{"a": 3}'


@pytest.mark.parametrize("compress", [False, True])
def test_jsonl_splits_at_line_feeds_only(tmp_path, compress):
    data = AWKWARD.encode()
    path = write(tmp_path, "x.jsonl.gz" if compress else "x.jsonl", gzip.compress(data) if compress else data)
    assert read(path) == [(1, {"a": "x\u2028y"}), (4, {"a": "p\x85q"}), (5, {"a": 3})]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": NaN}', "holds NaN under the key 'a', which JSON cannot hold"),
        ('{"a": {"b": [1, -Infinity]}}', "holds -Infinity under the key 'b', which JSON cannot hold"),
        ('{"a": 1e999}', "holds 1e999 under the key 'a', which JSON cannot hold"),
        ('{"a": 1, "b": 2, "a": 1}', "gives the key 'a' twice"),
        ('{"a": {"c": 1, "c": 2}}', "gives the key 'c' twice"),
        ('{"a": 1', "is not JSON: Expecting ',' delimiter (column 8)"),
        ('{"a": 1} x', "goes on behind the end of the JSON value (column 10)"),
        ("[" * 300 + "]" * 300, "is nested deeper than 200 levels"),
        ("[" * 100_000, "is nested deeper than 200 levels"),
    ],
)
def test_a_bad_json_line_is_one_problem(tmp_path, text, problem):
    path = write(tmp_path, "x.jsonl", f'{{"n": 1}}\n\n{text}\n{{"n": 2}}\n')
    assert read(path) == [(1, {"n": 1}), (3, problem), (4, {"n": 2})]


def test_a_number_with_too_many_digits_is_a_problem(tmp_path):
    (row,) = read(write(tmp_path, "x.jsonl", '{"a": ' + "1" * 5000 + "}"))
    assert row[1].startswith("holds a number that cannot be read")


def test_bytes_that_are_no_utf8_are_a_problem_of_their_line(tmp_path):
    path = write(tmp_path, "x.jsonl", b'{"n": 1}\n{"a": "\xff"}\n{"n": 2}\n')
    assert read(path) == [(1, {"n": 1}), (2, "is not valid UTF-8 at byte 8 of the line"), (3, {"n": 2})]


def test_a_gzip_file_that_breaks_off_keeps_its_first_rows(tmp_path):
    lines = "".join(json.dumps({"n": n, "x": str(n) * 50}) + "\n" for n in range(20_000)).encode()
    rows = read(write(tmp_path, "x.jsonl.gz", gzip.compress(lines)[:-20_000]))
    assert rows[0] == (1, {"n": 0, "x": "0" * 50})
    assert "what follows cannot be read" in rows[-1][1]
    assert [line for line, _ in rows] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-be"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": 1}'.encode("utf-32"), "UTF-32"),
    ],
)
def test_other_encodings_are_named(tmp_path, data, encoding):
    with pytest.raises(ConfigError, match=f"x.jsonl is {encoding}: convert it to UTF-8"):
        read(write(tmp_path, "x.jsonl", data))


def test_csv_with_mark_quotes_and_lines_in_values(tmp_path):
    data = '\ufeffid,text\r\n1,"a, ""b"""\r\n\r\n2,"two\r\nlines"\r\n3\r\n4,x'
    assert read(write(tmp_path, "x.csv", data)) == [
        (2, {"id": "1", "text": 'a, "b"'}),
        (4, {"id": "2", "text": "two\r\nlines"}),
        (6, "has 1 values where the header has 2 columns"),
        (7, {"id": "4", "text": "x"}),
    ]


def test_csv_names_the_column_that_is_no_utf8(tmp_path):
    rows = read(write(tmp_path, "x.csv", b"a,b\n1,\xe9\n2,3\n"))
    assert rows == [(2, "is not valid UTF-8 in the column 'b'"), (3, {"a": "2", "b": "3"})]


def test_csv_keeps_huge_values(tmp_path):
    assert read(write(tmp_path, "x.csv", "a\n" + "x" * 200_000 + "\n")) == [(2, {"a": "x" * 200_000})]


@pytest.mark.parametrize(
    ("header", "message"), [("", "must name every column"), ("a,,b", "must name every column"), ("a,b,a", "'a' twice")]
)
def test_a_csv_header_must_be_usable(tmp_path, header, message):
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, "x.csv", header + "\n1,2,3\n"))


def test_text_lines_are_prompts(tmp_path):
    assert read(write(tmp_path, "x.txt", "one\r\n\n two \nthree")) == [
        (1, {"prompt": "one"}),
        (3, {"prompt": " two "}),
        (4, {"prompt": "three"}),
    ]


def test_json_list_with_line_numbers(tmp_path):
    text = '[\n  {"a": 1},\n  {"a":\n   NaN},\n\n  {"a": 2}, 3\n]\n'
    assert read(write(tmp_path, "x.json", text)) == [
        (2, {"a": 1}),
        (3, "holds NaN under the key 'a', which JSON cannot hold"),
        (6, {"a": 2}),
        (6, 3),
    ]


def test_one_json_object_is_one_row(tmp_path):
    assert read(write(tmp_path, "x.json", ' {"a": 1}\n')) == [(1, {"a": 1})]


def test_an_empty_json_list_has_no_rows(tmp_path):
    assert read(write(tmp_path, "x.json", "[ ]\n")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": 2}\n', r"x.json, line 2, column 1: .* must end in .jsonl"),
        ('[{"a": 1}\n {"a": 2}]', "line 2, column 2 is not JSON: a comma or ] is missing"),
        ('[{"a": }]', "line 1, column 8 is not JSON: Expecting value"),
        ("", "x.json, line 1, column 1 is not JSON"),
    ],
)
def test_a_broken_json_file_is_refused_as_a_whole(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, "x.json", text))


def test_yaml_rows_as_list_and_as_documents(tmp_path):
    rows = [(1, {"a": "no", "b": 1}), (3, {"a": "2026-11-25", "b": None})]
    assert read(write(tmp_path, "x.yaml", "- a: no\n  b: 1\n- a: 2026-11-25\n  b:\n")) == rows
    assert read(write(tmp_path, "x.yml", "a: no\n---\na: x\n")) == [(1, {"a": "no"}), (3, {"a": "x"})]


def test_a_bad_yaml_row_is_one_problem(tmp_path):
    rows = read(write(tmp_path, "x.yaml", "- a: 1\n- a: 2\n  a: 3\n- a: .nan\n- !x {a: 1}\n- a: 4\n"))
    assert rows == [
        (1, {"a": 1}),
        (2, "cannot be used (line 3: the key 'a' is given twice, first in line 2: keep one)"),
        (4, "cannot be used (line 4: '.nan' is not a number that can be read)"),
        (5, "cannot be used (line 5: the tag !x is not read here: write plain values)"),
        (6, {"a": 4}),
    ]


def test_yaml_aliases_cannot_blow_up(tmp_path):
    with pytest.raises(ConfigError, match=r"x.yaml, line 2: the alias \*a is not read here"):
        read(write(tmp_path, "x.yaml", "- &a {x: 1}\n- *a\n"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.parquet", b"", "files named '.parquet' are not read: use one of .jsonl .json .yaml .yml .csv .txt"),
        ("x", b"", "x: a file whose name has no ending is not read: use one of .jsonl .json .yaml .yml .csv .txt"),
        ("x.jsonl.gz", b'{"a": 1}', "ends in .gz but is not gzip data"),
        ("x.jsonl", gzip.compress(b'{"a": 1}'), "x.jsonl is gzip data: its name must end in .gz"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path, name, data, message):
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path, name, data))


def test_stdin_is_jsonl_and_comes_once():
    source = RowSource(["-"], io.BytesIO(b'{"a": 1}\n{"a": 2}\n'))
    source.check()
    assert source.count() is None
    assert [(row.place(), row.value) for row in source.rows()] == [("-, line 1", {"a": 1}), ("-, line 2", {"a": 2})]
    assert source.facts() == [
        {"path": "-", "sha256": "5b8f82d3cc66533038f4fdee4b09bc34e9b051ba8de538b8289eb52a425e3a79", "bytes": 18}
    ]


def test_a_closed_stdin_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="the input is -, and standard input is closed: send the rows to it or"):
        RowSource(["-"]).check()


def test_stdin_may_be_gzip():
    source = RowSource(["-"], io.BytesIO(gzip.compress(b'{"a": 1}\n{"a": 2}\n')))
    source.check()
    assert [row.value for row in source.rows()] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_pipe_without_a_name_of_its_own_is_jsonl(compress):
    reading, writing = os.pipe()
    os.write(writing, compress(b'{"a": 1}\n{"a": 2}\n'))
    os.close(writing)
    source = RowSource([f"/dev/fd/{reading}"])
    source.check()
    assert [row.value for row in source.rows()] == [{"a": 1}, {"a": 2}]
    os.close(reading)


class Dripping(io.RawIOBase):
    """A pipe whose writer is slow: each read gives what is there, and a read for more would never return."""

    def __init__(self, pieces):
        self._pieces = list(pieces)

    def read1(self, size):
        return self._pieces.pop(0) if self._pieces else b""

    def read(self, size=-1):
        raise AssertionError("this waits for more than there is")


def test_rows_come_as_soon_as_they_are_there():
    pipe = Dripping([b'{"a": 1}\n', b'{"a": 2}\n{"a"', b": 3}\n"])
    source = RowSource(["-"], pipe)
    source.check()
    rows = source.rows()
    assert next(rows).value == {"a": 1}
    assert pipe._pieces == [b'{"a": 2}\n{"a"', b": 3}\n"]
    assert [row.value for row in rows] == [{"a": 2}, {"a": 3}]


def test_files_follow_each_other_up_to_the_limit(tmp_path):
    first = write(tmp_path, "a.jsonl", '{"n": 1}\n{"n": 2}\n')
    second = write(tmp_path, "b.txt", "x\ny\n")
    source = RowSource([str(first), str(second)])
    source.check()
    assert source.count() == 4
    assert [row.value for row in source.rows(limit=3)] == [{"n": 1}, {"n": 2}, {"prompt": "x"}]
    assert [fact["bytes"] for fact in source.facts()] == [18, 4]
