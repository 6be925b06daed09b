"""`manifest.json`: what was run, on what, and what came of it.

Written when generation begins and again at the end, whatever the end was. Times, speeds and cached tokens stand here
and never in a row: they differ between two processes that do the same work.
"""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import nanovllm
from jobs import json_text
from jobs.files import write_atomically
from jobs.job_file import Job
from jobs.run_directory import MANIFEST_KIND
from jobs.tally import Tally

SCHEMA_VERSION = 1

# What `LLM.facts` tells besides the model.
_FACTS = ("tokenizer", "engine", "kernels", "cpu", "versions")


class Manifest:
    """Collects the facts of one run and writes them.

    Attributes:
        values: what the file will hold.
    """

    def __init__(self, path: Path, job: Job):
        self._path = path
        self.values: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": MANIFEST_KIND,
            "status": "starting",
            "exit_code": None,
            "error": None,
            "job": job.as_json(),
            "model": {"name": job.model},
            "input": [{"path": name, "sha256": None, "bytes": None} for name in job.inputs],
            "sampling": None,
            "seeds": {"engine": job.engine.get("seed", 0), "sampling": job.sampling.get("seed")},
            **dict.fromkeys(_FACTS),
            "versions": {"nanovllm": nanovllm.__version__, "python": platform.python_version()},
            "started": _now(),
            "ended": None,
            "resumes": 0,
            "resumed": None,
            "facts": None,
        }
        self.set_counts(Tally(), load_s=0.0, generate_s=0.0)

    def set_model(self, llm: Any, effective: Any, defaults: Any, job: Job) -> None:
        """Record the loaded model and the sampling parameters with where each comes from.

        Args:
            llm: the loaded `nanovllm.LLM`.
            effective: the job's `SamplingParams` over their defaults.
            defaults: the defaults: the model's, or those of evaluations.
            job: the job.
        """
        facts = llm.facts()
        self.values["model"].update(facts["model"])
        self.values.update({key: facts[key] for key in _FACTS})
        name = "model" if job.eval is None else "evaluation"
        self.values["sampling"] = _with_origins(effective, defaults, job.sampling, name)

    def set_facts(self, facts: dict[str, str] | None) -> None:
        """Record what tells, before a model is loaded, that nothing has changed."""
        self.values["facts"] = facts

    def continue_from(self, earlier: dict[str, Any] | None) -> None:
        """Count this process as a resume of the one that wrote the manifest `earlier`."""
        earlier = earlier or {}
        resumes = earlier.get("resumes")
        self.values["resumes"] = 1 + (resumes if isinstance(resumes, int) else 0)
        self.values["started"] = earlier.get("started") or self.values["started"]

    def set_inputs(self, facts: list[dict]) -> None:
        """Record the input files."""
        self.values["input"] = facts

    def set_counts(self, tally: Tally, load_s: float, generate_s: float) -> None:
        """Record what was done, and how long this process took for its part of it."""
        self.values["counts"] = {
            "rows": tally.rows,
            "ok": tally.ok,
            "errors": tally.errors,
            "skipped": tally.skipped,
            "lines": tally.lines,
        }
        self.values["retryable_errors"] = tally.retryable
        self.values["resumed"] = None if tally.resumed is None else tally.resumed.as_json()
        self.values["errors_by_code"] = dict(sorted(tally.errors_by_code.items()))
        self.values["tokens"] = {
            "prompt": tally.prompt_tokens,
            "completion": tally.completion_tokens,
            "cached": tally.cached_tokens,
        }
        rate = tally.new_completion_tokens / generate_s if generate_s > 0 else 0.0
        self.values["tokens_per_s"] = round(rate, 3)
        self.values["seconds"] = {"load": round(load_s, 3), "generate": round(generate_s, 3)}

    def set_verdicts(self, verdicts: list[Any]) -> None:
        """Record what the gate of an evaluation says of its scores."""
        self.values["gate"] = [{"metric": one.metric, "holds": one.holds, "sentence": one.sentence} for one in verdicts]

    def judge_again(self, earlier: dict[str, Any], verdicts: list[Any] | None, exit_code: int) -> bool:
        """Have the manifest of a finished run say what today's limits and gate make of it, and nothing else new.

        Args:
            earlier: the manifest as it stands.
            verdicts: of an evaluation's gate; None for a generation job.
            exit_code: the command's.

        Returns:
            Whether anything changed.
        """
        job = {**earlier["job"], "limits": self.values["job"]["limits"]}
        judged = {**earlier, "job": job, "exit_code": exit_code}
        if verdicts is not None:
            gate = self.values["job"]["eval"].get("gate")
            if job["eval"].get("gate") != gate:
                job["eval"] = {**job["eval"], "gate": gate}
            self.set_verdicts(verdicts)
            judged["gate"] = self.values["gate"]
        if judged == earlier:
            return False
        self.values = judged
        self._write()
        return True

    def write(self, status: str, exit_code: int | None = None, error: str | None = None) -> None:
        """Write the file, all or nothing.

        Args:
            status: running, finished, interrupted, deadline, too_many_errors or failed.
            exit_code: the command's exit code, None while it runs.
            error: one sentence, for a run that failed.
        """
        self.values.update(status=status, exit_code=exit_code, error=error)
        if exit_code is not None:
            self.values["ended"] = _now()
        self._write()

    def _write(self) -> None:
        text = json_text.dumps(self.values, indent=2) + "\n"
        write_atomically(self._path, [text.encode("utf-8")])


def _with_origins(effective: Any, defaults: Any, job_sampling: dict[str, Any], name: str) -> dict[str, dict]:
    built_in = type(defaults)().to_dict()
    given = defaults.to_dict()
    result = {}
    for key, value in effective.to_dict().items():
        origin = "job" if key in job_sampling else name if given[key] != built_in[key] else "built-in"
        result[key] = {"value": value, "origin": origin}
    return result


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
