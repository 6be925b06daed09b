"""A folder with a job on a copy of a tiny checkpoint, whose files may be changed before it is run."""

import json
import shutil
from pathlib import Path

from jobs.cli import main

MODELS = Path(__file__).parent / "models"


class JobBench:
    """Runs the command as a user would; what it says on stderr is in `said`."""

    def __init__(self, folder, capsys, model="llama-f32"):
        self.folder = folder
        self.model = folder / "model"
        self.out = folder / "out"
        self.said = ""
        self._capsys = capsys
        self.use(model)

    def use(self, model):
        shutil.rmtree(self.model, ignore_errors=True)
        shutil.copytree(MODELS / model, self.model, ignore=shutil.ignore_patterns("expected.*"))

    def change(self, name, changes, without=()):
        """Change keys of one of the model's JSON files."""
        path = self.model / name
        values = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
        path.write_text(json.dumps({**values, **changes}))

    def run(self, rows=({"prompt": "Hello"},), text="", sampling="temperature: 0", engine="", name="in.jsonl"):
        """Run rows, or a file's bytes, and give the exit code."""
        if not isinstance(rows, bytes):
            rows = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (self.folder / name).write_bytes(rows)
        (self.folder / "job.yaml").write_text(
            f"model: model\ninput: {name}\noutput: out\nprogress: none\nrestart: true\n"
            f"engine: {{dtype: float32{engine}}}\nsampling: {{max_tokens: 6, {sampling}}}\n{text}"
        )
        code = main(["run", str(self.folder / "job.yaml")])
        self.said = self._capsys.readouterr().err
        return code

    def results(self):
        return (self.out / "results.jsonl").read_bytes()

    def lines(self):
        return [json.loads(line, parse_constant=_refuse) for line in self.results().decode("utf-8").splitlines()]

    def errors(self):
        return [line["error"] and line["error"]["code"] for line in self.lines()]

    def manifest(self):
        return json.loads((self.out / "manifest.json").read_text("utf-8"))

    def info(self):
        """What `nanovllm info` says of the model."""
        assert main(["info", str(self.model), "--json"]) == 0
        return json.loads(self._capsys.readouterr().out)


def _refuse(constant):
    raise AssertionError(f"{constant} is no JSON")
