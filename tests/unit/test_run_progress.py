"""What a watcher sees on stderr, and that nobody watching is no failure."""

import io
import json

import pytest

from jobs.progress import Bar, JsonLines, PlainLines, Progress, Silence, Snapshot, make_display

SNAPSHOT = Snapshot(rows=3, total=10, errors=1, running=2, waiting=4, completion_tokens=50, seconds=4.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_line():
    stream = io.StringIO()
    PlainLines(stream).show(SNAPSHOT)
    assert stream.getvalue() == "3/10 rows, 1 errors, 12.5 tok/s, running 2, waiting 4, 4 s\n"


def test_json_line():
    stream = io.StringIO()
    JsonLines(stream).show(SNAPSHOT)
    assert json.loads(stream.getvalue()) == {
        "phase": "running",
        "rows": 3,
        "total": 10,
        "errors": 1,
        "running": 2,
        "waiting": 4,
        "completion_tokens": 50,
        "tokens_per_s": 12.5,
        "seconds": 4.0,
    }


def test_bar_shows_rows_and_tokens():
    stream = Terminal()
    bar = Bar(stream, total=10)
    bar.close(SNAPSHOT)
    last = stream.getvalue().split("\r")[-1]
    assert "3/10" in last
    assert "12.5 tok/s, running 2, waiting 4, errors 1" in last


@pytest.mark.parametrize(
    ("mode", "stream", "kind"),
    [
        ("auto", Terminal(), Bar),
        ("auto", io.StringIO(), PlainLines),
        ("bar", io.StringIO(), Bar),
        ("json", Terminal(), JsonLines),
        ("none", Terminal(), Silence),
    ],
)
def test_auto_is_a_bar_on_a_terminal(mode, stream, kind):
    assert type(make_display(mode, stream, 10)) is kind


class Broken(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("mode", ["bar", "plain", "json"])
@pytest.mark.parametrize("kind", [io.StringIO, Broken])
def test_progress_outlives_its_stream(mode, kind):
    stream = kind()
    if kind is io.StringIO:
        stream.close()
    with Progress(make_display(mode, stream, 10), lambda: SNAPSHOT):
        pass
