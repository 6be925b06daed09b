"""What a watcher reads of a run, and the verdict of `nanovllm status`."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.lock import own_identity
from jobs.progress import Snapshot
from jobs.status import StatusFile, describe

SNAPSHOT = Snapshot(rows=6, total=10, errors=1, running=2, waiting=4, completion_tokens=50, seconds=4.0, kept=2)


def read(folder):
    return json.loads((folder / "status.json").read_text())


def test_the_file_tells_phase_numbers_and_process(tmp_path):
    with StatusFile(tmp_path / "status.json") as status:
        assert read(tmp_path)["phase"] == "starting"
        status.enter("generating", lambda: SNAPSHOT)
        values = read(tmp_path)
        assert (values["phase"], values["done"], values["total"], values["errors"]) == ("generating", 6, 10, 1)
        # four rows of this process in four seconds, four to go
        assert (values["tokens_per_s"], values["eta_s"]) == (12.5, 4.0)
        assert {key: values[key] for key in own_identity()} == own_identity()
        assert values["exit_code"] is None
        status.end("finished", 0)
    assert (read(tmp_path)["phase"], read(tmp_path)["exit_code"], read(tmp_path)["eta_s"]) == ("finished", 0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_an_unwritable_file_does_not_end_the_run(tmp_path):
    with StatusFile(tmp_path / "gone" / "status.json") as status:
        status.enter("loading")


@pytest.mark.parametrize("takes_names", [True, False])
def test_the_end_is_said_on_a_disk_that_takes_no_more(tmp_path, monkeypatch, takes_names):
    with StatusFile(tmp_path / "status.json") as status:
        status.enter("generating", lambda: SNAPSHOT)
        size = (tmp_path / "status.json").stat().st_size

        def fill(path, *arguments):
            if takes_names:
                path.touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_text", fill)
        status.end("failed", 2)
    values = read(tmp_path)
    assert (values["phase"], values["exit_code"], values["done"]) == ("failed", 2, 6)
    assert (tmp_path / "status.json").stat().st_size == size
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 5, 130, 143])
def test_the_exit_code_of_an_ended_run_is_its_own(tmp_path, capsys, code):
    with StatusFile(tmp_path / "status.json") as status:
        status.end("ended", code)
    assert main(["status", str(tmp_path)]) == code
    assert f"ended, 0 rows, 0.0 tok/s, exit code {code}" in capsys.readouterr().out


def test_a_run_at_work_is_6_and_a_killed_one_1(tmp_path, capsys):
    with StatusFile(tmp_path / "status.json") as status:
        status.enter("generating", lambda: SNAPSHOT)
        assert main(["status", str(tmp_path)]) == 6
        assert "generating, 6/10 rows, 1 errors, 12.5 tok/s, 4 s left, process " in capsys.readouterr().out
        values = read(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps({**values, "started": 1}))
    assert main(["status", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["phase"] == "killed"


@pytest.mark.parametrize(("age", "code"), [(0, 6), (30, 6), (-30, 6), (3600, 1), (None, 1)])
def test_a_run_on_another_machine_lives_as_long_as_its_heart_beats(tmp_path, capsys, age, code):
    with StatusFile(tmp_path / "status.json"):
        values = read(tmp_path)
    heartbeat = None if age is None else time.time() - age
    values.update(host="node-17", boot="of node-17", phase="generating", exit_code=None, heartbeat=heartbeat)
    (tmp_path / "status.json").write_text(json.dumps(values))
    assert main(["status", str(tmp_path), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["phase"] == ("generating" if code == 6 else "killed")


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_no_run_is_2(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert main(["status", str(tmp_path)]) == 2
    assert "holds no status.json: give the output directory of a run" in capsys.readouterr().err


def test_joined_shards_have_the_code_of_their_manifest(tmp_path, capsys):
    counts = {"rows": 5, "ok": 4, "errors": 1, "skipped": 0, "lines": 5}
    manifest = {"kind": "nanovllm-run", "status": "finished", "exit_code": 3, "counts": counts, "tokens_per_s": 7.5}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert main(["status", str(tmp_path)]) == 3
    assert capsys.readouterr().out == f"{tmp_path}: finished, 5/5 rows, 1 errors, 7.5 tok/s, exit code 3\n"
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "exit_code": None}))
    assert main(["status", str(tmp_path)]) == 2


def test_a_heartbeat_from_the_future_is_no_negative_age(tmp_path):
    assert "last heard of 0 s ago" in describe(tmp_path, {"phase": "x", "heartbeat": 100.0, "pid": 1}, now=50.0)
