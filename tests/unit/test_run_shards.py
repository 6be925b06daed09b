"""Shards of a job cover its rows exactly once, and merge into what one run gives."""

import io
import json

import pytest
from fake_llm import FakeLLM

from jobs.cli import main
from jobs.job_file import load_job
from jobs.run import run_job
from jobs.sharding import Shard, is_in_shard, parse_shard

NUM_ROWS = 40


class Parts:
    """Runs of one job, whole and in three shards; the fourth row is an error, the seventh has two completions."""

    def __init__(self, folder):
        self.folder = folder
        rows = [{"id": f"i{n}", "prompt": f"row-{n:02d}"} for n in range(NUM_ROWS)]
        rows[3]["prompt"] = 5
        rows[6]["sampling"] = {"n": 2}
        self.write(rows)

    def write(self, rows):
        (self.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def run(self, output, text="", llm=None):
        (self.folder / "job.yaml").write_text(
            f"model: fake\ninput: in.jsonl\noutput: {output}\nprogress: none\nlimits: {{max_errors: 1}}\n"
            f"sampling: {{temperature: 0.5}}\n{text}"
        )
        code = run_job(load_job(self.folder / "job.yaml"), lambda job: llm or FakeLLM(), io.StringIO())
        assert code == 0

    def shards(self):
        for index in range(3):
            self.run("part", f"shard: {index}/3\n")
        return [str(self.folder / f"part-{index}-of-3") for index in range(3)]

    def merge(self, *parts):
        return main(["merge", str(self.folder / "merged"), *parts])


@pytest.fixture
def parts(tmp_path):
    return Parts(tmp_path)


def test_merged_shards_are_the_whole_run(parts, capsys):
    parts.run("whole")
    shards = parts.shards()
    sizes = [len((parts.folder / shard / "results.jsonl").read_bytes().splitlines()) for shard in shards]
    assert min(sizes) > 5
    assert sum(sizes) == NUM_ROWS + 1
    assert parts.merge("--check", *shards) == 0
    assert not (parts.folder / "merged").exists()
    assert parts.merge(*reversed(shards)) == 0
    merged, whole = parts.folder / "merged", parts.folder / "whole"
    assert (merged / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (merged, whole)]
    for key in ("counts", "tokens", "errors_by_code", "sampling", "exit_code"):
        assert manifests[0][key] == manifests[1][key]
    assert "40 rows of 3 shards: 39 ok, 1 errors, 0 skipped" in capsys.readouterr().err
    assert parts.merge(*shards) == 2
    assert "exists: choose another directory, nothing is overwritten" in capsys.readouterr().err


def test_missing_and_overlapping_shards_are_refused(parts, capsys):
    shards = parts.shards()
    assert parts.merge(*shards[:2]) == 2
    assert "shards are missing: 2/3" in capsys.readouterr().err
    assert parts.merge(*shards, shards[1]) == 2
    assert "overlap: both are shard 1/3" in capsys.readouterr().err
    parts.run("whole")
    assert parts.merge(*shards[:2], str(parts.folder / "whole")) == 2
    assert "is no shard: only runs made with --shard I/N are joined" in capsys.readouterr().err
    assert parts.merge(str(parts.folder)) == 2
    assert "is not the directory of a run" in capsys.readouterr().err
    assert not (parts.folder / "merged").exists()


def test_shards_of_different_runs_are_refused(parts, capsys):
    shards = parts.shards()

    class Other(FakeLLM):
        def facts(self):
            return {**super().facts(), "kernels": "other"}

    parts.run("part", "shard: 2/3\nrestart: true\n", Other())
    assert parts.merge(*shards) == 2
    assert "differ in kernels: do the shards again" in capsys.readouterr().err
    parts.write([{"prompt": "x"}])
    parts.run("part", "shard: 2/3\nrestart: true\n")
    assert parts.merge(*shards) == 2
    assert "differ in input" in capsys.readouterr().err


def test_an_unfinished_shard_is_refused(parts, capsys):
    shards = parts.shards()
    path = parts.folder / "part-1-of-3" / "manifest.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "interrupted"'))
    assert parts.merge(*shards) == 2
    assert "part-1-of-3 is not finished (interrupted): run its command again first" in capsys.readouterr().err


def test_a_directory_keeps_to_its_shard(parts, capsys):
    parts.run("part", "shard: 0/2\n")
    (parts.folder / "job.yaml").write_text("model: fake\ninput: in.jsonl\n")
    output = str(parts.folder / "part-0-of-2")
    for flags, now in (([], "none"), (["--shard", "1/2"], "1/2")):
        assert main(["run", str(parts.folder / "job.yaml"), "--output", output, *flags]) == 2
        assert f"holds shard 0/2 of a run and this is {now}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shard"),
    [("0/4", Shard(0, 4)), ("3/4", Shard(3, 4)), ("4/4", Shard(0, 4)), ("1/1", Shard(0, 1)), (" 1/2 ", Shard(1, 2))],
)
def test_shards_count_from_0_or_from_1(text, shard):
    assert parse_shard(text) == shard


@pytest.mark.parametrize("text", ["", "1", "5/4", "0/0", "-1/4", "1/-4", "1/4/2", "a/b", "1.0/2", "\u0661/2"])
def test_what_is_no_shard(text):
    assert parse_shard(text) is None


def test_the_part_of_an_id_never_changes():
    # `b2sum -l 64` gives 40f89e395b66422f for "a" and cb1abf8beff3192f for "é"; little-endian, modulo 7
    assert [n for n in range(7) if is_in_shard("a", Shard(n, 7))] == [4]
    assert [n for n in range(7) if is_in_shard("é", Shard(n, 7))] == [5]
