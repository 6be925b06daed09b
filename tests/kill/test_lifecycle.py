"""Two processes, closed pipes, full disks and vanished folders: a sentence, a code, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from kill_shop import ROOT, KillShop

from jobs.cli import main

pytestmark = pytest.mark.kill


@pytest.fixture(scope="module")
def shop(tmp_path_factory, zygote):
    """1000 rows, done once without a break in `whole`: long enough to be met at work."""
    shop = KillShop(
        tmp_path_factory.mktemp("lifecycle"), zygote, 1000, "{max_tokens: 32, temperature: 0.8, ignore_eos: true}"
    )
    assert zygote.run(**shop.command("whole")) == 0
    return shop


@pytest.fixture
def stderr(shop):
    """A fresh file for what commands say."""
    (shop.folder / "stderr.txt").unlink(missing_ok=True)
    return shop.stderr


def wait_for_rows(shop, output):
    """Wait until a run has written its first rows."""
    path = shop.folder / output / "journal.jsonl"
    for _ in range(3000):
        if path.exists() and path.stat().st_size > 2000:
            return
        time.sleep(0.01)
    raise AssertionError("the run wrote no rows")


def start_real(shop, output, **pipes):
    command = [sys.executable, "-m", "jobs", *shop.command(output)["argv"]]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def test_of_two_processes_one_runs_and_the_other_ends_with_6(shop, stderr):
    pid = shop.zygote.start(**shop.command("two"))
    wait_for_rows(shop, "two")
    assert main(["status", str(shop.folder / "two")]) == 6
    second = start_real(shop, "two", stderr=subprocess.PIPE, text=True)
    said = second.communicate()[1]
    assert second.returncode == 6
    assert f"the live process {pid} is at work in" in said
    assert shop.zygote.wait() == 0
    assert shop.results("two") == shop.results("whole")
    assert main(["status", str(shop.folder / "two")]) == 0


def test_a_killed_run_shows_in_its_status_and_its_lock_is_taken_over(shop, stderr):
    pid = shop.zygote.start(**shop.command("dead"))
    wait_for_rows(shop, "dead")
    os.kill(pid, signal.SIGKILL)
    assert shop.zygote.wait() == -9
    assert (shop.folder / "dead" / "lock").exists()
    assert main(["status", str(shop.folder / "dead")]) == 1
    assert shop.zygote.run(**shop.command("dead")) == 0
    assert f"taking over the lock of process {pid}, which is dead" in (shop.folder / "dead" / "run.log").read_text()
    assert shop.results("dead") == shop.results("whole")


def test_a_second_signal_ends_at_once_and_the_journal_stays_valid(shop, stderr):
    pid = shop.zygote.start(**shop.command("twice"))
    wait_for_rows(shop, "twice")
    for _ in range(2):
        os.kill(pid, signal.SIGINT)
    assert shop.zygote.wait() in (130, -2)
    assert shop.zygote.run(**shop.command("twice")) == 0
    assert shop.results("twice") == shop.results("whole")


def test_a_deleted_output_directory_is_a_sentence_and_a_code(shop, stderr):
    shop.zygote.start(**shop.command("gone"))
    wait_for_rows(shop, "gone")
    shutil.rmtree(shop.folder / "gone")
    assert shop.zygote.wait() == 2
    assert "cannot be written any more" in stderr()
    assert "Traceback" not in stderr()


def test_a_run_outlives_closed_streams(shop):
    process = start_real(shop, "closed", stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 0
    assert shop.results("closed") == shop.results("whole")


def test_a_run_on_a_full_disk_stops_and_completes_when_there_is_space(shop, stderr):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system takes root")
    disk = shop.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        (disk / "filler").write_bytes(bytes(1_900_000))
        assert shop.zygote.run(**shop.command("disk/run")) == 2
        assert "No space left on device" in stderr()
        assert "Traceback" not in stderr()
        kept = len([key for key in shop.journal_keys("disk/run") if key.startswith("r:")])
        assert kept > 0
        (disk / "filler").unlink()
        assert shop.zygote.run(**shop.command("disk/run")) == 0
        assert shop.results("disk/run") == shop.results("whole")
        manifest = json.loads((disk / "run" / "manifest.json").read_text())
        assert manifest["resumed"]["kept"] == kept
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_finished_run_is_left_alone(shop, stderr):
    before = {
        path.name: path.stat().st_mtime_ns for path in (shop.folder / "whole").iterdir() if path.name != "run.log"
    }
    assert shop.zygote.run(**shop.command("whole")) == 0
    assert "already finished, nothing changed: 1000 rows, 1 errors" in stderr()
    after = {path.name: path.stat().st_mtime_ns for path in (shop.folder / "whole").iterdir() if path.name != "run.log"}
    assert after == before
