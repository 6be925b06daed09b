"""The end of an evaluation: scores out of the results, the harness's files, and the verdict of the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import json_text
from jobs.evaluation.gate import Gate, Verdict
from jobs.evaluation.lm_eval_files import LmEvalFiles
from jobs.evaluation.scores import make_scores
from jobs.files import write_atomically
from jobs.job_file import Job
from jobs.run_directory import RunDirectory, read_json


class Ending:
    """The end of one evaluation.

    The earlier runs that its gate compares with are read here and now, so that a run which ends later finds them.

    Attributes:
        scores: the content of `scores.json`; None before the end.
        verdicts: the gate's conditions with whether each holds; empty without a gate.

    Raises:
        ConfigError: an earlier run is not there any more.
    """

    def __init__(self, job: Job, directory: RunDirectory):
        self.scores: dict[str, Any] | None = None
        self.verdicts: list[Verdict] = []
        self._job = job
        self._directory = directory
        folders = [job.path.resolve().parent, Path.cwd()]
        self._gate = None if job.eval.gate is None else Gate.from_settings(job.eval.gate, "eval.gate", folders)

    @property
    def failures(self) -> list[str]:
        """A sentence for each condition that does not hold."""
        return [verdict.sentence for verdict in self.verdicts if not verdict.holds]

    def write(self, inputs: list[dict[str, Any]], manifest: dict[str, Any], delimiter: str) -> None:
        """Write the scores of finished results, and judge them.

        Args:
            inputs: the input files with their sha256.
            manifest: what the manifest will say.
            delimiter: what stands between a prompt and a choice.
        """
        scores = make_scores(self._job, self._directory.results, inputs)
        text = json_text.dumps(scores, indent=2) + "\n"
        write_atomically(self._directory.scores, [text.encode("utf-8")])
        if self._job.eval.is_lm_eval:
            files = LmEvalFiles(self._job, self._directory.path, manifest, delimiter)
            files.write(self._directory.results, scores)
        self._judge(scores)

    def read(self) -> None:
        """Judge the scores of a finished run again."""
        scores = read_json(self._directory.scores)
        if scores is not None and isinstance(scores.get("metrics"), dict):
            self._judge(scores)

    def _judge(self, scores: dict[str, Any]) -> None:
        self.scores = scores
        self.verdicts = [] if self._gate is None else self._gate.check(scores, self._directory.path)
