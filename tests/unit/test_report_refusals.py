"""What is no finished run, or no place for a page, is refused, and nothing is lost."""

import pytest
from report_runs import (
    generation_run,
)

from jobs.cli import main


@pytest.mark.parametrize(
    "change, message",
    [
        ("folder", "run is no directory: give the output directory of a run"),
        ("manifest.json", "run is not the directory of a run: it has no manifest.json of one"),
        ("results.jsonl", "run is not finished (results.jsonl is missing): run its command again first"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, capsys, change, message):
    run = tmp_path / "run"
    if change != "folder":
        generation_run(run)
        (run / change).unlink()
    assert main(["report", str(run)]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_a_run_that_has_not_ended_is_refused(tmp_path, capsys):
    run = generation_run(tmp_path / "run", status="interrupted")
    assert main(["report", str(run)]) == 2
    assert "run is not finished (interrupted, 7 rows done): run its command again first" in capsys.readouterr().err


def test_a_damaged_line_is_named_and_an_older_report_stays(tmp_path, capsys):
    run = generation_run(tmp_path / "run")
    with (run / "results.jsonl").open("a") as file:
        file.write('{"id": "torn')
    (run / "report.html").write_text("older")
    assert main(["report", str(run)]) == 2
    assert "results.jsonl, line 8 is no JSON object: the file is damaged" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "older"
    assert not list(run.glob("*.tmp"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("results.jsonl", "is a file of the run"),
        ("manifest.json", "is a file of the run"),
        (".", "is a folder: name a file by -o"),
        ("none/page.html", "cannot be written: No such file or directory; choose another file by -o"),
    ],
)
def test_an_output_that_cannot_be_is_refused(tmp_path, capsys, name, message):
    run = generation_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main(["report", str(run), "-o", str(run / name)]) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
