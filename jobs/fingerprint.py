"""Say whether a result may be kept: what went into it, as short hashes with a name for each.

Two levels. A row's fingerprint holds all that its completion is a function of; a row whose fingerprint is the same is
never done again. A run's facts hold the same before any model is loaded, coarser: when they are all the same, there is
nothing to look at.

What cannot change a completion is left out: threads, batch and cache sizes, paths, limits, names.
"""

from __future__ import annotations

import array
import hashlib
import json
from pathlib import Path
from typing import Any

from jobs.inputs import RowSource
from jobs.job_file import Job
from jobs.paths import STDIN
from jobs.rows import Row
from nanovllm import UsageError

PARTS = ("model", "tokenizer", "numerics", "prompt", "sampling")

_WITHOUT_EFFECT = (
    "threads",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory",
    "reorder",
)
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
_CHUNK_BYTES = 1 << 20


class Fingerprints:
    """Makes the fingerprints of one run's rows.

    Args:
        llm: the loaded model.
        job: the job.
    """

    def __init__(self, llm: Any, job: Job):
        facts = llm.facts()
        model = {key: facts["model"].get(key) for key in ("identity", "rope", "eos_token_ids")}
        model["config"] = _config(Path(facts["model"]["path"]))
        engine = facts["engine"]
        dtypes = [engine.get("dtype"), engine.get("kv_cache_dtype")]
        numerics = [*dtypes, job.engine.get("gemm", "native"), facts["kernels"]]
        self._common = ":".join([_hash(model), _hash(facts["tokenizer"]["sha256"]), _hash(numerics)])
        self._template = facts["tokenizer"]["chat_template_sha256"]
        self._engine_seed = job.engine.get("seed", 0)
        self._max_model_len = llm.max_model_len
        self._last_sampling: Any = None
        self._last_name = ""

    def of(self, row: Row, ids: list[int], sampling: Any) -> str:
        """Give the fingerprint of a row that is about to be generated from `ids`."""
        room = self._max_model_len - len(ids)
        num_tokens = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        derived = [self._engine_seed, row.id] if sampling.seed is None and not sampling.is_greedy else None
        prompt = hashlib.blake2b(_packed(ids), digest_size=8)
        # an OpenAI-Batch line is answered in the terms of its body
        body = None if row.call is None else row.columns
        prompt.update(_hash([row.num_cut_tokens, self._template if row.prompt.is_chat else None, body]).encode())
        asked = [self._named(sampling), num_tokens, derived, *(["return_token_ids"] if row.returns_token_ids else [])]
        return f"{self._common}:{prompt.hexdigest()}:{_hash(asked)}"

    def of_scored(self, prompt: Any, continuations: list[str] | None, is_chat: bool, depends_on_length: bool) -> str:
        """Give the fingerprint of a prompt whose continuations are scored, or of a text that is scored by itself.

        Args:
            prompt: text or ids.
            continuations: texts, None for a text by itself.
            is_chat: whether the chat template made the prompt.
            depends_on_length: whether the result is another where `max_model_len` is another.
        """
        room = self._max_model_len if depends_on_length else None
        parts = [prompt, continuations, self._template if is_chat else None]
        return f"{self._common}:{_hash(parts)}:{_hash(['scored', room])}"

    def _named(self, sampling: Any) -> str:
        """Name the parameters of a row; most rows share one object."""
        if sampling is not self._last_sampling:
            values = sampling.to_dict()
            del values["max_tokens"]  # counts as what it comes to in the row
            self._last_sampling, self._last_name = sampling, _hash(values)
        return self._last_name


def changed_parts(old: str, new: str) -> list[str]:
    """Name the parts in which two fingerprints differ."""
    pairs = zip(PARTS, old.split(":"), new.split(":"), strict=False)
    return [name for name, before, now in pairs if before != now]


def row_digest(row: Row, *more: Any) -> str:
    """Name what a result line repeats of its row, and what else it follows from."""
    return _hash([row.index, row.id, row.columns, row.num_cached_tokens, *more])


def run_facts(job: Job, source: RowSource, model_dir: Path | None) -> dict[str, str] | None:
    """Name everything that the results of a job are a function of, without loading its model.

    Returns:
        A hash for each part; None when it cannot be told beforehand, as with input from a pipe.
    """
    from nanovllm import machine_info, model_identity

    if model_dir is None or not model_dir.is_dir():
        return None
    try:
        identity = model_identity(model_dir)
        inputs = [_file_hash(Path(path)) for path in source.paths] if _is_repeatable(source) else None
        few_shot = [_file_hash(Path(path)) for path in _few_shot_files(job)]
    except (UsageError, OSError):
        return None
    if inputs is None:
        return None
    files = sorted(path for pattern in ("*.json", "*.jinja", "*/*.jinja") for path in model_dir.glob(pattern))
    template = Path(job.engine.get("chat_template") or "")
    values = job.as_json()
    engine = {key: value for key, value in job.engine.items() if key not in _WITHOUT_EFFECT}
    facts = {
        "model": _hash([identity, [[path.name, _file_hash(path)] for path in files]]),
        "chat template": _file_hash(template) if template.is_file() else "",
        "input": _hash(inputs),
        "prompt": _hash([values["prompt"], job.on_overlong, job.input_format, job.served_model_name]),
        "sampling": _hash([job.sampling, "return_token_ids"] if job.return_token_ids else job.sampling),
        "engine": _hash([engine, machine_info()["kernels"]]),
        "rows": _hash([job.limit, values.get("shard")]),
    }
    if job.eval is not None:
        facts["evaluation"] = _hash([{**values["eval"], "gate": None}, few_shot])
    return facts


def _few_shot_files(job: Job) -> tuple[str, ...]:
    return job.eval.few_shot.inputs if job.eval is not None and job.eval.few_shot is not None else ()


def _is_repeatable(source: RowSource) -> bool:
    return all(path != STDIN and Path(path).is_file() for path in source.paths)


def _config(model_dir: Path) -> Any:
    """Read what a checkpoint says about itself, without what changes no number."""
    try:
        config = json.loads((model_dir / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    if isinstance(config, dict):
        return {key: value for key, value in config.items() if key not in _NOT_THE_MODEL}
    return config


def _packed(ids: list[int]) -> bytes:
    try:
        return array.array("q", ids).tobytes()
    except OverflowError:  # no id of any model; the engine refuses the row
        return repr(ids).encode()


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
