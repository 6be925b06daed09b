"""One live process for a run: the living are refused, the dead are succeeded."""

import errno
import io
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_llm import FakeLLM

import jobs.lock
from jobs.job_file import load_job
from jobs.lock import Locked, RunLock, is_alive, own_identity, read_holder
from jobs.run import run_job
from nanovllm import ConfigError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


def test_a_lock_names_its_holder_and_leaves_nothing(path):
    with RunLock(path):
        assert read_holder(path)["pid"] == os.getpid()
    assert not path.exists()


def test_a_second_holder_is_refused_by_name(path):
    with RunLock(path), pytest.raises(Locked, match=f"the live process {os.getpid()} is at work in {path.parent}"):
        RunLock(path).__enter__()
    with RunLock(path):
        pass


def sleeper():
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def identity_of(pid):
    """What the lock of that process would say, read by hand."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"pid": pid, "started": int(stat.rsplit(")", 1)[1].split()[19]), "boot": boot, "host": "h"}


@pytest.fixture
def other():
    """A live process."""
    process = sleeper()
    yield process
    process.communicate(b"\n")


def test_the_names_alone_protect_a_live_process(path, other):
    path.write_text(json.dumps(identity_of(other.pid)))
    with pytest.raises(Locked, match=f"the live process {other.pid}"):
        RunLock(path).__enter__()
    assert read_holder(path)["pid"] == other.pid


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "of-another-day"}, {"pid": 2**22 + 1}, {"pid": None}])
def test_a_reused_pid_or_an_earlier_boot_is_dead(path, other, change):
    path.write_text(json.dumps({**identity_of(other.pid), **change}))
    with RunLock(path):
        assert read_holder(path) == own_identity()


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\x00" * 100])
def test_a_lock_cut_short_is_nobodys(path, content):
    path.write_text(content)
    with RunLock(path):
        assert read_holder(path) == own_identity()


def test_a_dead_process_and_its_zombie_are_dead():
    process = sleeper()
    identity = identity_of(process.pid)
    assert is_alive(identity)
    process.stdin.write(b"\n")
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert not is_alive(identity)
    process.wait()
    assert not is_alive(identity)


@pytest.fixture
def flock_says(monkeypatch):
    """Let flock fail as it does on file systems over a network, and let nobody wait."""
    monkeypatch.setattr(jobs.lock, "_SETTLE_SECONDS", 0)

    def arrange(code):
        def fail(file, operation):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(jobs.lock.fcntl, "flock", fail)

    return arrange


NO_FLOCK = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]


@pytest.mark.parametrize("code", NO_FLOCK)
def test_without_flock_the_content_protects_the_living_and_names_them(path, other, flock_says, code, caplog):
    flock_says(code)
    path.write_text(json.dumps({**identity_of(other.pid), "host": socket.gethostname()}))
    with pytest.raises(Locked, match=f"the live process {other.pid} is at work in {path.parent}"):
        RunLock(path).__enter__()
    assert f"the file system has no flock ({os.strerror(code)})" in caplog.text
    assert read_holder(path)["pid"] == other.pid


@pytest.mark.parametrize("code", NO_FLOCK)
def test_without_flock_the_dead_of_this_machine_are_succeeded(path, other, flock_says, code, caplog):
    caplog.set_level(logging.WARNING)
    flock_says(code)
    path.write_text(json.dumps({**identity_of(other.pid), "host": socket.gethostname(), "started": 1}))
    with RunLock(path):
        assert read_holder(path) == own_identity()
    assert f"taking over the lock of process {other.pid}, which is dead" in caplog.text
    assert not path.exists()


def test_without_flock_a_process_of_another_machine_is_never_robbed(path, flock_says):
    holder = {"pid": 12, "started": 34, "boot": "of node-17", "host": "node-17"}
    path.write_text(json.dumps(holder))
    flock_says(errno.ENOLCK)
    with pytest.raises(Locked) as caught:
        RunLock(path).__enter__()
    assert str(caught.value) == (
        f"process 12 on node-17 may be at work in {path.parent}, and its file system has no flock that could tell: "
        f"wait for it, or remove {path} if it has ended"
    )
    assert read_holder(path) == holder


def test_with_flock_a_process_of_another_machine_that_let_go_is_dead(path):
    path.write_text(json.dumps({"pid": 12, "started": 34, "boot": "of node-17", "host": "node-17"}))
    with RunLock(path):
        assert read_holder(path) == own_identity()


def test_of_two_that_take_it_together_without_flock_the_last_holds_it(path, flock_says, monkeypatch):
    flock_says(errno.ENOLCK)
    rival = {"pid": 12, "started": 34, "boot": "of node-17", "host": "node-17"}
    monkeypatch.setattr(jobs.lock.time, "sleep", lambda seconds: path.write_text(json.dumps(rival)))
    with pytest.raises(Locked, match="the live process 12"):
        RunLock(path).__enter__()
    assert read_holder(path) == rival


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_conflict_of_record_locks_is_a_conflict(path, flock_says, code):
    flock_says(code)
    path.write_text(json.dumps({"pid": 12, "started": 34, "boot": "of node-17", "host": "node-17"}))
    with pytest.raises(Locked, match="the live process 12 is at work"):
        RunLock(path).__enter__()


@pytest.fixture
def job(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello"}\n')
    (tmp_path / "job.yaml").write_text("model: fake\ninput: in.jsonl\noutput: run\nprogress: none\n")
    return load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize("code", NO_FLOCK)
def test_a_run_on_a_file_system_without_flock_ends_well_and_warns(job, flock_says, code):
    flock_says(code)
    assert run_job(job, lambda job: FakeLLM(), io.StringIO()) == 0
    assert (job.output / "results.jsonl").exists()
    assert not (job.output / "lock").exists()
    assert f"lock: the file system has no flock ({os.strerror(code)})" in (job.output / "run.log").read_text()


def test_a_stale_file_handle_at_the_lock_is_a_sentence(job, flock_says):
    flock_says(errno.ESTALE)
    with pytest.raises(ConfigError, match=rf"{job.output} cannot be written: {os.strerror(errno.ESTALE)}"):
        run_job(job, lambda job: FakeLLM(), io.StringIO())
