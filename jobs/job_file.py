"""The job file: what it may say, and what a job is once it is read.

Owns the keys, their defaults and how flags go over them. Resolves paths, but opens nothing except the job file itself.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import yaml_text
from jobs.paths import STDIN, expand_output, expand_variables, find_inputs
from jobs.settings import Document, Section, hint, parse_flag_value
from jobs.sharding import Shard, parse_shard
from nanovllm import ConfigError

if TYPE_CHECKING:
    from jobs.evaluation.settings import EvalSettings

OVERLONG_POLICIES = ("error", "truncate_left", "truncate_right", "truncate_middle", "skip")
INPUT_FORMATS = ("auto", "openai_batch")
PROGRESS_MODES = ("auto", "bar", "plain", "json", "none")

_LARGEST_JOB_FILE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How a row of plain columns becomes a prompt.

    Attributes:
        template: Jinja source, or None to take the row's own `prompt`.
        system: system message of a chat, or None.
        chat: whether prompts go through the checkpoint's chat template.
    """

    template: str | None = None
    system: str | None = None
    chat: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """How many error rows a run may have and still be good (the larger of the two counts), and how long it may take.

    Attributes:
        max_errors, max_error_rate: most error rows, and as a share of all rows.
        deadline: seconds from the start of the command until it ends with what is done; None is no limit.
        stop_early: whether to end as soon as no rest of the rows can keep the run within its limits.
    """

    max_errors: int = 0
    max_error_rate: float = 0.0
    deadline: float | None = None
    stop_early: bool = False

    def allow(self, num_errors: int, num_rows: int) -> bool:
        """Whether a run of `num_rows` rows with `num_errors` error rows is good."""
        return num_errors <= max(self.max_errors, self.max_error_rate * num_rows)


@dataclass(frozen=True, slots=True)
class Override:
    """One command-line setting: `value` goes under the dotted key `path`."""

    path: tuple[str, ...]
    value: Any
    flag: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job as resolved from its file and the command line.

    Attributes:
        path: the job file.
        model: directory or hub id, as written, and the folder where a relative one is looked up first.
        inputs: files in order; `-` is standard input.
        sampling: keys of `SamplingParams` that the job sets.
        engine: keyword arguments of `LLM`.
        input_format: "openai_batch", or "auto" to see by each file's first row.
        served_model_name: names that calls of an OpenAI batch may use for the model; empty allows every name.
        return_token_ids: whether result lines give the token ids of prompt and completion.
        limit: read only so many rows; None is all.
        shard: do only this part of the rows; None is all.
        eval: what makes it an evaluation; None in a generation job.
    """

    name: str
    path: Path
    model: str
    model_folder: Path
    inputs: tuple[str, ...]
    output: Path
    prompt: PromptSettings = PromptSettings()
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    engine: dict[str, Any] = dataclasses.field(default_factory=dict)
    on_overlong: str = "error"
    limits: Limits = Limits()
    input_format: str = "auto"
    served_model_name: tuple[str, ...] = ()
    return_token_ids: bool = False
    limit: int | None = None
    shard: Shard | None = None
    restart: bool = False
    progress: str = "auto"
    eval: EvalSettings | None = None

    @property
    def generates(self) -> bool:
        """Whether the model writes completions, and does not only say how likely texts are."""
        return self.eval is None or self.eval.task == "generate"

    def as_json(self) -> dict[str, Any]:
        """Give the job as JSON values under the names of a job file, for the manifest."""
        values = dataclasses.asdict(self)
        for key in ("path", "model_folder", "output"):
            values[key] = str(values[key])
        values["shard"] = None if self.shard is None else str(self.shard)
        values["input"] = list(values.pop("inputs"))
        values["eval"] = None if self.eval is None else self.eval.as_json()
        return values


def load_job(path: Path, overrides: list[Override] | None = None, today: datetime.date | None = None) -> Job:
    """Read a job file and put the command line over it.

    Raises:
        ConfigError: names file, line, key, value and cure.
    """
    document = _parse(path)
    for override in overrides or ():
        document.override(override.path, override.value, override.flag)
    return _read_job(document, path, today or datetime.date.today())


def job_from_flags(path: Path, overrides: list[Override]) -> Job:
    """Make a job that is written on the command line alone; `path` stands for its file, which need not exist.

    Raises:
        ConfigError: names flag, value and cure.
    """
    document = Document(str(path), {}, {})
    for override in overrides:
        document.override(override.path, override.value, override.flag)
    return _read_job(document, path, datetime.date.today())


def parse_set(text: str) -> Override:
    """Read the argument of `--set`, such as `sampling.temperature=0.5`."""
    key, separator, value = text.partition("=")
    path = tuple(key.split("."))
    if not separator or not all(path):
        raise ConfigError(f"--set {text}: write a key, = and a value, as in --set sampling.temperature=0.5")
    flag = f"--set {text}"
    return Override(path, parse_flag_value(value, flag), flag)


def _parse(path: Path) -> Document:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_JOB_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the job file {path} cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST_JOB_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {_LARGEST_JOB_FILE_BYTES} bytes: this is no job file")
    try:
        tree, lines = yaml_text.parse(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid UTF-8 at byte {error.start + 1}: save it as UTF-8") from None
    except yaml_text.YamlProblem as problem:
        place = path if problem.line is None else f"{path}, line {problem.line}"
        raise ConfigError(f"{place}: {problem.reason}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is not a job file: it must hold keys such as model, input and output")
    return Document(str(path), tree, lines)


def _read_job(document: Document, path: Path, today: datetime.date) -> Job:
    root = Section(document)
    folder = path.resolve().parent
    name = root.text("name", path.stem)
    prompt = _read_prompt(root.section("prompt"), root.has("prompt"))
    shard = _read_shard(root)
    model_folder = Path.cwd() if root.is_from_flag("model") else folder
    sampling = _read_sampling(root.section("sampling"), folder)
    on_overlong = root.choice("on_overlong", OVERLONG_POLICIES, "error")
    job = Job(
        name=name,
        path=path,
        model=expand_variables(_required(root, "model"), root.place("model")),
        model_folder=model_folder,
        inputs=tuple(_read_inputs(root, folder)),
        output=_read_output(root, folder, name, today, shard),
        prompt=prompt,
        sampling=sampling,
        engine=_read_engine(root.section("engine")),
        on_overlong=on_overlong,
        limits=_read_limits(root.section("limits")),
        input_format=root.choice("input_format", INPUT_FORMATS, "auto"),
        served_model_name=tuple(root.texts("served_model_name")),
        return_token_ids=root.flag("return_token_ids", False),
        limit=root.count("limit", low=1),
        shard=shard,
        restart=root.flag("restart", False),
        progress=root.choice("progress", PROGRESS_MODES, "auto"),
        eval=_read_evaluation(root, folder, prompt, sampling, on_overlong),
    )
    root.finish()
    return job


def _required(section: Section, key: str) -> str:
    value = section.text(key)
    if not value:
        raise ConfigError(f"{section.place(key)} is missing: write it into the job file or give --{key}")
    return value


def _read_prompt(section: Section, is_given: bool) -> PromptSettings:
    chat = section.flag("chat", is_given)
    settings = PromptSettings(section.text("template"), section.text("system"), chat)
    section.finish()
    if settings.system is not None and not chat:
        raise ConfigError(f"{section.place('system')}: a system message needs prompt.chat: true")
    return settings


def _read_inputs(root: Section, folder: Path) -> list[str]:
    patterns = root.texts("input")
    place = root.place("input")
    if not patterns:
        raise ConfigError(f"{place} is missing: write it into the job file or give --input")
    folders = [Path.cwd()] if root.is_from_flag("input") else list(dict.fromkeys([folder, Path.cwd()]))
    files: list[str] = []
    for pattern in patterns:
        found = [STDIN] if pattern == STDIN else [str(path) for path in find_inputs(pattern, folders, place)]
        files += [file for file in found if file not in files]
    return files


def _read_output(root: Section, folder: Path, name: str, today: datetime.date, shard: Shard | None) -> Path:
    text = root.text("output", "runs/{name}")
    is_from_flag = root.is_from_flag("output")
    start = Path.cwd() if is_from_flag else folder
    path = start / Path(expand_output(text, name, today, root.place("output"))).expanduser()
    path = Path(os.path.normpath(path))  # ".." as text, so that a link is not followed and messages are short
    if shard is None or is_from_flag:
        return path
    # the parts of one job file share its text and must not share a directory
    return path.with_name(f"{path.name}-{shard.index}-of-{shard.count}")


def _read_shard(root: Section) -> Shard | None:
    text = root.text("shard")
    shard = None if text is None else parse_shard(text)
    if text is not None and shard is None:
        raise root.refusal("shard", text, "I/N, such as 0/4: part I of N")
    return shard


def _read_sampling(section: Section, folder: Path) -> dict[str, Any]:
    from nanovllm import SamplingParams

    values = section.mapping()
    names = (field.name for field in dataclasses.fields(SamplingParams))
    section.refuse_unknown(names, SamplingParams.instead_of)
    if "structured_outputs" in values:
        from jobs.structured_files import read_structured_outputs

        values["structured_outputs"] = read_structured_outputs(section, folder)
    for key, value in values.items():
        _check_sampling(section, key, {key: value})
    _check_sampling(section, None, values)
    return values


def _check_sampling(section: Section, key: str | None, values: dict[str, Any]) -> None:
    """Check one setting by itself, so that an error has a line, or all of them together."""
    from nanovllm import SamplingParams

    # Alone, a setting must not be judged against the default of another that the job may set as well.
    base = SamplingParams(max_tokens=None) if key is not None else SamplingParams()
    try:
        SamplingParams.from_dict(values, base=base)
    except ConfigError as error:
        place = section.place() if key is None else section.place(key)
        reason = str(error).removeprefix("sampling: ")
        raise ConfigError(f"{place}: {reason}{hint(values.get(key))}") from None


def _read_engine(section: Section) -> dict[str, Any]:
    from nanovllm import EngineConfig

    section.refuse_unknown(field.name for field in dataclasses.fields(EngineConfig))
    values = section.mapping()
    for key, value in values.items():
        try:
            EngineConfig(**{key: value})
        except ConfigError as error:
            raise ConfigError(f"{section.place(key)}: {error}{hint(value)}") from None
    return values


def _read_evaluation(
    root: Section, folder: Path, prompt: PromptSettings, sampling: dict[str, Any], on_overlong: str
) -> EvalSettings | None:
    if not root.has("eval"):
        root.value("eval")
        return None
    from jobs.evaluation.settings import read_eval

    if sampling.get("n", 1) > 1 and not sampling.get("temperature"):
        raise ConfigError(
            f"{root.place('sampling', 'n')}: an evaluation is greedy unless told otherwise, and {sampling['n']} greedy "
            "samples are all the same: set sampling.temperature"
        )
    folders = list(dict.fromkeys([folder, Path.cwd()]))
    settings = read_eval(root.section("eval"), folders, prompt.chat, sampling.get("n", 1))
    if settings.task != "generate" and root.value("return_token_ids"):
        raise ConfigError(
            f"{root.place('return_token_ids')}: the task {settings.task} generates nothing: remove it, or use the task "
            "generate"
        )
    if settings.task != "generate" and on_overlong in ("truncate_right", "truncate_middle"):
        raise ConfigError(
            f"{root.place('on_overlong')}: {on_overlong} would cut what the task {settings.task} scores: use error, "
            "skip or truncate_left"
        )
    return settings


def _read_limits(section: Section) -> Limits:
    limits = Limits(
        section.count("max_errors", 0),
        section.rate("max_error_rate", 0.0),
        section.duration("deadline"),
        section.flag("stop_early", False),
    )
    section.finish()
    return limits
