"""One live process for a run: the living are refused, the dead are succeeded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.lock import Locked, RunLock, is_alive, own_identity, read_holder


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
