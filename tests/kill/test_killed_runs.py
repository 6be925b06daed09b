"""Whatever ends a run and however often: its results are those of the unbroken run, byte for byte.

NANOVLLM_KILLS says how many kills at random instants (default 10); with 100 or more, every kind of fault is tried at
every boundary, and not only SIGKILL and a full disk.
"""

import os
import random
import signal
import time

import pytest
from kill_shop import KillShop

pytestmark = pytest.mark.kill

NUM_KILLS = int(os.environ.get("NANOVLLM_KILLS", "10"))
SAMPLED = "{max_tokens: 24, temperature: 0.8, ignore_eos: true}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory, zygote):
    """300 rows, done once without a break in `whole`."""
    shop = KillShop(tmp_path_factory.mktemp("kills"), zygote, 300, SAMPLED)
    began = time.monotonic()
    assert zygote.run(**shop.command("whole")) == 0
    shop.seconds = time.monotonic() - began
    return shop


@pytest.fixture(scope="module")
def small(tmp_path_factory, zygote):
    """8 rows, done once without a break in `whole`; `num_boundaries` calls that a fault can be put at."""
    shop = KillShop(tmp_path_factory.mktemp("faults"), zygote, 8, "{max_tokens: 3, temperature: 0.8}")
    counter = shop.folder / "count"
    assert zygote.run(**shop.command("whole", count_to=str(counter))) == 0
    shop.num_boundaries = int(counter.read_text())
    return shop


def test_random_kills_lose_double_and_repeat_nothing(shop):
    random.seed(5)
    expected = shop.results("whole")
    num_kills = num_jobs = 0
    while num_kills < NUM_KILLS:
        output = f"killed-{num_jobs}"
        num_jobs += 1
        code = None
        while code != 0:
            was_finished = shop.is_finished(output)
            before = shop.journal_keys(output)
            assert len(before) == len(set(before)), "a finished row was computed again"
            pid = shop.zygote.start(**shop.command(output))
            signum = random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            time.sleep(random.uniform(0.02, 0.7 * shop.seconds))
            try:
                os.kill(pid, signum)
                num_kills += 1
            except ProcessLookupError:
                pass  # it was faster; its status is still to be read
            code = shop.zygote.wait()
            assert code in (0, -9, -15, -2, 130, 143), shop.stderr()
            # no file of this name is ever anything but whole
            if (shop.folder / output / "results.jsonl").exists():
                assert shop.results(output) == expected
        assert shop.results(output) == expected
        manifest = shop.manifest(output)
        assert manifest["counts"] == {"rows": 300, "ok": 299, "errors": 1, "skipped": 0, "lines": 300}
        if not was_finished:  # else the last start had nothing to do but to remove the journal
            kept = len([key for key in before if key.startswith("r:")])
            assert (manifest["resumed"] or {"kept": 0})["kept"] == kept
        assert not (shop.folder / output / "journal.jsonl").exists()
        assert not (shop.folder / output / "lock").exists()


@pytest.mark.parametrize("do", ["kill", "torn", "term", "int"])
def test_a_fault_at_every_boundary(small, do):
    assert 20 < small.num_boundaries < 200
    expected = small.results("whole")
    step = 1 if do == "kill" or NUM_KILLS >= 100 else 3
    for at in range(1, small.num_boundaries + 1, step):
        output = f"{do}-{at}"
        code = small.zygote.run(**small.command(output, fault={"at": at, "do": do, "after": at % 2}))
        allowed = {"kill": (-9,), "torn": (-9,), "term": (143, 0), "int": (130, 0)}[do]
        assert code in allowed, (at, small.stderr())
        kept = [key for key in small.journal_keys(output) if key.startswith("r:")]
        if do != "kill":
            # killed again at another boundary of the second try, so that a repair is broken off as well
            small.zygote.run(**small.command(output, fault={"at": 1 + 5 * at % 23, "do": "kill"}))
        assert set(kept) <= set(small.journal_keys(output)) or (small.folder / output / "results.jsonl").exists()
        assert small.zygote.run(**small.command(output)) == 0, (at, small.stderr())
        assert small.results(output) == expected, at


def test_a_full_disk_at_every_boundary_is_a_sentence_and_a_code(small):
    expected = small.results("whole")
    for at in range(1, small.num_boundaries + 1):
        output = f"full-{at}"
        (small.folder / "stderr.txt").unlink()
        code = small.zygote.run(**small.command(output, fault={"at": at, "do": "full"}))
        said = small.stderr()
        assert code in (0, 2), (at, said)
        assert "Traceback" not in said
        if code == 2:
            assert "No space left on device" in said, at
        assert small.zygote.run(**small.command(output)) == 0
        assert small.results(output) == expected, at
