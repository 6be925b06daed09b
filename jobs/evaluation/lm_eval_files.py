"""The files of lm-evaluation-harness: `results_TIME.json` and `samples_TASK_TIME.jsonl`, for the tools that read them.

Owns their layout. They are made from the run's own results and scores, and hold what the harness's hold as far as a run
knows it; times stand here and not in `scores.json`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nanovllm
from jobs import json_text
from jobs.evaluation.scores import rows_of
from jobs.evaluation.tasks.choices import UNCONDITIONAL
from jobs.files import write_atomically
from jobs.inputs import row_source
from jobs.job_file import Job
from nanovllm import ConfigError

_OUTPUT_TYPES = {
    "generate": "generate_until",
    "multiple_choice": "multiple_choice",
    "rank": "multiple_choice",
    "score": "loglikelihood",
    "perplexity": "loglikelihood_rolling",
}
_BOOTSTRAP_ITERS = 1000
_FILTER = "none"


class LmEvalFiles:
    """Writes the harness's files of one run.

    Args:
        job: the job.
        folder: where they go.
        manifest: the run's manifest.
        delimiter: what stands between a prompt and a choice.
    """

    def __init__(self, job: Job, folder: Path, manifest: dict[str, Any], delimiter: str):
        self._job = job
        self._task = re.sub(r"\W", "_", job.name)
        self._manifest = manifest
        self._delimiter = delimiter
        time = manifest["started"].removesuffix("+00:00").replace(":", "-")
        self.results = folder / f"results_{time}.json"
        self.samples = folder / f"samples_{self._task}_{time}.jsonl"
        self._hashes = hashlib.sha256()
        self._has_chats = job.prompt.chat

    def write(self, rows: Path, scores: dict[str, Any]) -> None:
        """Write both files from the result lines and the scores."""
        write_atomically(self.samples, self._sample_lines(rows))
        text = json_text.dumps(self._results(scores), indent=2) + "\n"
        write_atomically(self.results, [text.encode("utf-8")])

    def _sample_lines(self, rows: Path) -> Iterator[bytes]:
        for lines in rows_of(rows):
            if any(line["error"] for line in lines):
                continue  # the harness knows no rows without an answer
            self._has_chats = self._has_chats or self._is_chat(lines[0]["row"])
            sample = self._sample(lines)
            hashes = (sample["doc_hash"], sample["prompt_hash"], sample["target_hash"])
            self._hashes.update("".join(hashes).encode())
            yield (json_text.dumps(sample) + "\n").encode("utf-8")

    def _is_chat(self, columns: dict[str, Any]) -> bool:
        """Whether a row brings a conversation, which the chat template frames whatever the job says."""
        body = columns.get("body")
        return self._job.prompt.template is None and "messages" in (body if isinstance(body, dict) else columns)

    def _sample(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        first = lines[0]
        arguments, resps = self._requests(first, lines)
        target = first["target"]
        if target is None:  # the text itself, or the name of its file
            target = first["row"].get("file") if first["prompt"] is None else first["prompt"]
        target = str(target)
        document = json.dumps(first["row"], indent=2, ensure_ascii=False)
        scores = self._metrics_of(lines)
        return {
            "doc_id": first["index"],
            "doc": first["row"],
            "target": target,
            "arguments": {f"gen_args_{i}": {f"arg_{j}": x for j, x in enumerate(a)} for i, a in enumerate(arguments)},
            "resps": resps,
            "filtered_resps": self._filtered(lines, resps),
            "filter": _FILTER,
            "metrics": list(scores),
            "doc_hash": _sha256(document),
            "prompt_hash": _sha256(str(arguments[0][0])),
            "target_hash": _sha256(target),
            **scores,
        }

    def _requests(self, first: dict[str, Any], lines: list[dict[str, Any]]) -> tuple[list[list[Any]], list[Any]]:
        """Give the arguments of each of the row's requests, and the answers to each."""
        prompt = first["prompt"]
        if self._job.eval.task == "generate":
            sampling = self._manifest["sampling"] or {}
            settings = {key: sampling[key]["value"] for key in ("temperature", "max_tokens") if key in sampling}
            settings = {"until": (sampling.get("stop") or {}).get("value") or [], **_harness_names(settings)}
            return [[prompt, settings]], [[line["text"] for line in lines]]
        if self._job.eval.task == "perplexity":
            return [[prompt]], [[str(first["logprob"])]]
        choices = first["choices"]
        arguments = [[prompt, self._delimiter + choice["text"]] for choice in choices]
        resps = [[[str(choice["logprob"]), str(choice["is_greedy"])]] for choice in choices]
        for choice in choices:
            if UNCONDITIONAL in choice:
                arguments.append(["", self._delimiter + choice["text"]])
                resps.append([[str(choice[UNCONDITIONAL]), "False"]])
        return arguments, resps

    def _filtered(self, lines: list[dict[str, Any]], resps: list[Any]) -> list[Any]:
        if self._job.eval.task == "generate":
            return [lines[0].get("voted", lines[0]["extracted"]) or ""]
        return [answers[0] for answers in resps]

    def _metrics_of(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        first = lines[0]
        if self._job.eval.task == "perplexity":
            words, size = ([first["logprob"], first[key]] for key in ("num_words", "num_bytes"))
            return {"word_perplexity": words, "byte_perplexity": size, "bits_per_byte": size}
        return {name: math.fsum(line["scores"][name] for line in lines) / len(lines) for name in first["scores"]}

    def _results(self, scores: dict[str, Any]) -> dict[str, Any]:
        task, settings, manifest = self._task, self._job.eval, self._manifest
        num_shots = 0 if settings.few_shot is None else settings.few_shot.num
        num_rows = scores["rows"]["total"]
        higher = {name: values["higher_is_better"] for name, values in scores["metrics"].items()}
        metrics: dict[str, Any] = {"alias": task, "name": task, "sample_len": num_rows}
        for name, values in scores["metrics"].items():
            metrics[f"{name},{_FILTER}"] = values["value"]
            metrics[f"{name}_stderr,{_FILTER}"] = "N/A" if values["stderr"] is None else values["stderr"]
        model, engine = manifest.get("model") or {}, manifest.get("engine") or {}
        template_sha = (manifest.get("tokenizer") or {}).get("chat_template_sha256")
        return {
            "results": {task: metrics},
            "group_subtasks": {task: []},
            "configs": {task: self._config(num_shots)},
            "versions": {task: None},
            "n-shot": {task: num_shots},
            "higher_is_better": {task: higher},
            "n-samples": {task: {"original": self._num_input_rows(num_rows), "effective": num_rows}},
            "config": {
                "model": "nanovllm",
                "model_args": {"pretrained": self._job.model, **self._job.engine},
                "model_num_parameters": model.get("parameters"),
                "model_dtype": engine.get("dtype"),
                "model_sha": model.get("identity"),
                "batch_size": None,
                "limit": self._job.limit,
                "bootstrap_iters": _BOOTSTRAP_ITERS,
                "gen_kwargs": self._job.sampling or None,
                "fewshot_seed": None if settings.few_shot is None else settings.few_shot.seed,
            },
            "git_hash": None,
            "date": datetime.datetime.fromisoformat(manifest["started"]).timestamp(),
            "lm_eval_version": None,
            "nanovllm_version": nanovllm.__version__,
            "max_length": engine.get("max_model_len"),
            "task_hashes": {task: self._hashes.hexdigest()},
            "model_source": "nanovllm",
            "model_name": self._job.model,
            "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", self._job.model),
            "system_instruction": self._job.prompt.system,
            "system_instruction_sha": None if self._job.prompt.system is None else _sha256(self._job.prompt.system),
            "fewshot_as_multiturn": settings.few_shot is not None and self._job.prompt.chat,
            "chat_template": None,
            "chat_template_sha": template_sha if self._has_chats else None,
            "total_evaluation_time_seconds": str((manifest.get("seconds") or {}).get("generate")),
        }

    def _num_input_rows(self, num_rows: int) -> int:
        """Count the rows of the whole input where that is cheap; else give the number of those that were done."""
        if self._job.limit is None and self._job.shard is None:
            return num_rows
        try:
            num = row_source(self._job).count()
        except (ConfigError, OSError):  # an input that is not there any more
            return num_rows
        return num_rows if num is None else num

    def _config(self, num_shots: int) -> dict[str, Any]:
        settings = self._job.eval
        return {
            "task": self._task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": list(self._job.inputs)},
            "output_type": _OUTPUT_TYPES[settings.task],
            "doc_to_text": self._job.prompt.template or "prompt",
            "doc_to_target": settings.target or "",
            "doc_to_choice": list(settings.choices) if isinstance(settings.choices, tuple) else settings.choices,
            "description": settings.description,
            "target_delimiter": settings.target_delimiter,
            "fewshot_delimiter": "\n\n" if settings.few_shot is None else settings.few_shot.delimiter,
            "gen_prefix": settings.gen_prefix or None,
            "num_fewshot": num_shots,
            "repeats": self._job.sampling.get("n", 1),
        }


def _harness_names(settings: dict[str, Any]) -> dict[str, Any]:
    temperature = settings.get("temperature")
    return {"max_gen_toks": settings.get("max_tokens"), "do_sample": bool(temperature), "temperature": temperature}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
