"""What runs and kills: a zygote that starts commands, and a folder with a job on a tiny checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "golden" / "models" / "llama-f32"


class Zygote:
    """Starts commands in children of one process that has everything imported."""

    def __init__(self):
        script = Path(__file__).parent / "zygote.py"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, **command):
        """Start a command; gives its process id."""
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self):
        """Give the exit status of the command that was started; negative for a signal."""
        return int(self._process.stdout.readline())

    def run(self, **command):
        self.start(**command)
        return self.wait()

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class KillShop:
    """A folder with a job; runs go to folders below it."""

    def __init__(self, folder, zygote, num_rows, sampling, engine=""):
        self.folder = folder
        self.zygote = zygote
        rows = [{"id": f"r{n}", "prompt": f"row {n}: " + "word " * (n % 9), "n": n} for n in range(num_rows)]
        rows[1] = {"id": "r0", "prompt": "the same id twice"}
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        (folder / "job.yaml").write_text(
            f"model: {MODEL}\ninput: in.jsonl\nprogress: none\nlimits: {{max_errors: 1}}\n"
            f"engine: {{dtype: float32, threads: 1, max_num_seqs: 4{engine}}}\nsampling: {sampling}\n",
            "utf-8",
        )
        self.num_rows = num_rows

    def command(self, output, **extra):
        argv = ["run", str(self.folder / "job.yaml"), "--output", str(self.folder / output)]
        return {"argv": argv, "stderr": str(self.folder / "stderr.txt"), **extra}

    def stderr(self):
        return (self.folder / "stderr.txt").read_text("utf-8")

    def results(self, output):
        return (self.folder / output / "results.jsonl").read_bytes()

    def manifest(self, output):
        return json.loads((self.folder / output / "manifest.json").read_text("utf-8"))

    def is_finished(self, output):
        path = self.folder / output / "manifest.json"
        return path.exists() and self.manifest(output)["status"] == "finished"

    def journal_keys(self, output):
        """Keys of the whole entries in a journal, in order; also those that were written more than once."""
        path = self.folder / output / "journal.jsonl"
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[1:-1]
        keys = []
        while len(lines) >= 2 and lines[0].startswith(b'{"index"'):
            head = json.loads(lines[0])
            keys += [head["key"]] if len(lines) > head["lines"] else []
            lines = lines[1 + head["lines"] :]
        return keys
