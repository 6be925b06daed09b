"""The `eval:` section of a job file: its keys, their defaults, and all of it that can be refused without the model.

Owns which key goes with which task and what metrics a task has. What it gives is plain values; templates, scorers and
pipelines are made here once only to see that they can be made.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.evaluation.columns import ChoicesField, Field, is_template
from jobs.evaluation.extraction import Pipeline
from jobs.evaluation.gate import NO_WORSE_THAN, Gate
from jobs.evaluation.metrics import (
    CHOICE_METRICS,
    PERPLEXITY_METRICS,
    RANK_METRICS,
    TARGET_METRICS,
    metric_names,
)
from jobs.evaluation.scorers import make_scorer
from jobs.names import suggest
from jobs.paths import STDIN, find_inputs
from jobs.prompts import PromptTemplate
from jobs.settings import Section
from nanovllm import THINKING_TAGS, ConfigError

TASKS = ("generate", "multiple_choice", "perplexity", "rank", "score")
_ANY_TASK = ("task", "group", "gate", "format", "allow_code")
_PROMPTED = ("description", "few_shot", "gen_prefix", "target", "target_delimiter")
_KEYS = {
    "generate": (
        *_PROMPTED, "strip_thinking", "extract", "target_extract", "scorers", "vote", "pass_at_k", "maj_at_k",
    ),
    "multiple_choice": (*_PROMPTED, "choices", "metrics"),
    "rank": (*_PROMPTED, "choices"),
    "score": (*_PROMPTED, "choices"),
    "perplexity": ("whole_file",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FewShotSettings:
    """Solved examples before each row's own question.

    Attributes:
        num: how many.
        inputs: the files they come from; empty are the job's own.
        sampler: "random" or "first".
        fixed: whether all rows get the same ones, but for rows that are among them.
        form: "text" or "chat", None to follow the prompt.
        template, target: how an example's question and answer are made; None as a row's own.
        target_delimiter: between question and answer.
    """

    num: int
    inputs: tuple[str, ...] = ()
    sampler: str = "random"
    seed: int = 0
    fixed: bool = True
    form: str | None = None
    template: str | None = None
    target: str | None = None
    delimiter: str = "\n\n"
    target_delimiter: str = " "


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """An evaluation as resolved from its job file.

    Attributes:
        task: one of `TASKS`.
        target: a column's name or a template.
        choices: a column's name, or templates.
        thinking: the marks of what is taken out of an answer before it is judged; None leaves all in.
        extract, target_extract: steps for the answer and for the target; None is `strip` for the answer.
        gate: conditions on the finished scores; no part of what a row is judged by.
        is_lm_eval: whether the harness's files are written too.
    """

    task: str
    target: str | None = None
    choices: str | tuple[str, ...] | None = None
    target_delimiter: str = " "
    description: str = ""
    few_shot: FewShotSettings | None = None
    gen_prefix: str = ""
    thinking: tuple[str, str] | None = None
    extract: list[Any] | None = None
    target_extract: list[Any] | None = None
    scorers: list[Any] = dataclasses.field(default_factory=list)
    metrics: tuple[str, ...] = ()
    vote: str | None = None
    pass_at_k: tuple[int, ...] = ()
    maj_at_k: tuple[int, ...] = ()
    whole_file: bool = False
    group: str | None = None
    gate: dict[str, Any] | None = None
    is_lm_eval: bool = False
    allow_code: bool = False

    @property
    def is_prompted(self) -> bool:
        """Whether rows are questions, and not texts by themselves."""
        return self.task != "perplexity"

    def as_json(self) -> dict[str, Any]:
        """Give the settings as JSON values under the names of a job file."""
        values = dataclasses.asdict(self)
        thinking = values.pop("thinking")
        values["strip_thinking"] = None if thinking is None else list(thinking)
        values["format"] = "lm_eval" if values.pop("is_lm_eval") else None
        if self.few_shot is not None:
            few_shot = values["few_shot"]
            few_shot["as"] = few_shot.pop("form")
            few_shot["input"] = list(few_shot.pop("inputs"))
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def judging(self) -> dict[str, Any]:
        """Give what a row's judgement follows from, besides the answer and the row."""
        values = self.as_json()
        for key in ("gate", "format", "few_shot", "description", "gen_prefix", "target_delimiter"):
            del values[key]
        return values


def read_eval(section: Section, folders: list[Path], is_chat: bool, num_samples: int) -> EvalSettings:
    """Read the section.

    Args:
        section: the `eval:` section.
        folders: where files of examples and earlier runs are looked up, one after another.
        is_chat: whether prompts go through a chat template.
        num_samples: completions of a row, sampling.n.

    Raises:
        ConfigError: names line, key, value and cure.
    """
    if not section.has("task"):
        raise ConfigError(f"{section.place('task')} is missing: it is one of {', '.join(TASKS)}")
    task = section.choice("task", TASKS, "")
    known = {*_ANY_TASK, *_KEYS[task]}
    section.refuse_unknown(known | _others_keys())
    for key in section.mapping():
        if key not in known and section.has(key):
            uses = ", ".join(sorted(name for name in TASKS if key in _KEYS[name]))
            raise ConfigError(f"{section.place(key)} has no meaning for task {task}, only for {uses}: remove it")
    delimiter = section.text("target_delimiter", " ")
    settings = EvalSettings(
        task=task,
        target=_read_field(section, "target"),
        choices=_read_choices(section),
        target_delimiter=delimiter,
        description=section.text("description", ""),
        few_shot=_read_few_shot(section, folders, delimiter) if section.has("few_shot") else None,
        gen_prefix=section.text("gen_prefix", ""),
        thinking=_read_thinking(section),
        extract=_read_steps(section, "extract"),
        target_extract=_read_steps(section, "target_extract"),
        scorers=_listed(section.value("scorers")) if task == "generate" else [],
        metrics=_read_metrics(section, task),
        vote=_read_vote(section, num_samples) if section.has("vote") else None,
        pass_at_k=_read_ks(section, "pass_at_k", num_samples),
        maj_at_k=_read_ks(section, "maj_at_k", num_samples),
        whole_file=section.flag("whole_file", False),
        group=_read_field(section, "group"),
        gate=section.value("gate"),
        is_lm_eval=section.has("format") and section.choice("format", ("lm_eval",), "lm_eval") == "lm_eval",
        allow_code=section.flag("allow_code", False),
    )
    if task == "generate" and not settings.scorers:
        settings = dataclasses.replace(settings, scorers=["exact_match"])
    section.finish()
    _check_together(section, settings, is_chat, folders)
    return settings


def _others_keys() -> set[str]:
    return {key for keys in _KEYS.values() for key in keys}


def _check_together(section: Section, settings: EvalSettings, is_chat: bool, folders: list[Path]) -> None:
    if settings.target is None and settings.task in ("generate", "multiple_choice", "rank"):
        raise ConfigError(f"{section.place('target')} is missing: name the column that holds the right answer")
    if settings.choices is None and settings.task in ("multiple_choice", "rank"):
        raise ConfigError(f"{section.place('choices')} is missing: name the column that holds the list of choices")
    if settings.task == "score" and settings.choices is None and settings.target is None:
        raise ConfigError(f"{section.place('choices')} is missing: name the column of the continuations to score")
    if settings.task == "perplexity" and is_chat:
        raise ConfigError(f"{section.place('task')}: perplexity is that of plain text: set prompt.chat: false")
    if settings.description and is_chat:
        raise ConfigError(f"{section.place('description')} is for raw prompts: in a chat, write it into prompt.system")
    few_shot = settings.few_shot
    if few_shot is not None and few_shot.form == "chat" and not is_chat:
        raise ConfigError(f"{section.place('few_shot', 'as')}: turns of a chat need prompt.chat: true")
    if few_shot is not None and settings.target is None and few_shot.target is None:
        raise ConfigError(f"{section.place('few_shot')}: the examples' answers are missing: set few_shot.target")
    scorers = [make_scorer(spec, section.place("scorers", i), settings.allow_code)
               for i, spec in enumerate(settings.scorers)]  # fmt: skip
    if settings.pass_at_k and (scorers[0].has_corpus_score or not scorers[0].higher_is_better):
        raise ConfigError(
            f"{section.place('pass_at_k')} counts answers to which the first scorer gives 1, and the first is "
            f"{scorers[0].name!r}, which does not say right or wrong: put one first that does, such as exact_match"
        )
    names = metric_names(settings, section.place("scorers"))
    if settings.gate is not None:
        _check_gate(section, settings.gate, names, folders)


def _check_gate(section: Section, gate: Any, names: dict[str, bool], folders: list[Path]) -> None:
    if not isinstance(gate, dict) or not gate:
        raise section.refusal("gate", gate, 'metrics with conditions, as in exact_match: ">= 0.30"')
    metrics = [key for key in gate if key != NO_WORSE_THAN]
    for other in _listed(gate.get(NO_WORSE_THAN)):
        if isinstance(other, dict) and isinstance(other.get("metric"), str):
            metrics.append(other["metric"])
    for metric in metrics:
        if metric not in names:
            cure = suggest(str(metric), names) if names else f"task {section.value('task')} has none"
            raise ConfigError(f"{section.place('gate')}: there will be no metric {metric!r}: {cure}")
    Gate.from_settings(gate, section.place("gate"), folders)


def _read_field(section: Section, key: str) -> str | None:
    source = section.text(key)
    if source is not None:
        if not source:
            raise section.refusal(key, source, "a column's name or a template")
        _check_template(section, key, lambda: Field(source, section.place(key)))
    return source


def _check_template(section: Section, key: str, make: Any) -> None:
    try:
        make()
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if section.place(key) in message else f"{section.place(key)}: {message}") from None


def _read_choices(section: Section) -> str | tuple[str, ...] | None:
    value = section.value("choices")
    if value is None:
        return None
    if isinstance(value, list) and value:
        value = tuple(json.dumps(item) if isinstance(item, bool | int | float) else item for item in value)
        is_good = all(isinstance(item, str) and item for item in value)
    else:
        is_good = isinstance(value, str) and value != "" and not is_template(value)
    if not is_good:
        raise section.refusal("choices", section.value("choices"), "a column's name, or a list of texts or templates")
    _check_template(section, "choices", lambda: ChoicesField(value))
    return value


def _read_few_shot(outer: Section, folders: list[Path], delimiter: str) -> FewShotSettings:
    section = outer.section("few_shot")
    num = section.count("num")
    if num is None:
        raise ConfigError(f"{section.place('num')} is missing: say how many examples")
    files: list[str] = []
    for pattern in section.texts("input"):
        if pattern == STDIN:
            raise section.refusal("input", pattern, "a file: the examples must be there before the first row")
        files += [str(path) for path in find_inputs(pattern, folders, section.place("input"))]
    template = section.text("template")
    if template is not None:
        _check_template(section, "template", lambda: PromptTemplate(template, section.place("template")))
    settings = FewShotSettings(
        num=num,
        inputs=tuple(files),
        sampler=section.choice("sampler", ("random", "first"), "random"),
        seed=section.count("seed", 0),
        fixed=section.flag("fixed", True),
        form=section.choice("as", ("text", "chat"), "text") if section.has("as") else None,
        template=template,
        target=_read_field(section, "target"),
        delimiter=section.text("delimiter", "\n\n"),
        target_delimiter=section.text("target_delimiter", delimiter),
    )
    section.value("as")
    section.finish()
    return settings if num else None


def _read_thinking(section: Section) -> tuple[str, str] | None:
    value = section.value("strip_thinking", False)
    if isinstance(value, bool):
        return THINKING_TAGS if value else None
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(mark, str) and mark for mark in value)
    if not is_pair:
        raise section.refusal("strip_thinking", value, "true, false, or the two marks as in ['<think>', '</think>']")
    return tuple(value)


def _read_steps(section: Section, key: str) -> list[Any] | None:
    value = section.value(key)
    if value is None:
        return None
    steps = _listed(value)
    Pipeline.from_settings(steps, section.place(key))
    return steps


def _read_metrics(section: Section, task: str) -> tuple[str, ...]:
    if task == "rank":
        return RANK_METRICS
    if task == "perplexity":
        return PERPLEXITY_METRICS
    if task == "score":
        return () if section.has("choices") else TARGET_METRICS
    metrics = tuple(section.texts("metrics"))
    for metric in metrics:
        if metric not in CHOICE_METRICS:
            raise ConfigError(f"{section.place('metrics')}: no metric {metric!r}: {suggest(metric, CHOICE_METRICS)}")
    return metrics or (CHOICE_METRICS[:2] if task == "multiple_choice" else ())


def _read_vote(section: Section, num_samples: int) -> str:
    vote = section.choice("vote", ("majority",), "majority")
    if num_samples < 2:
        raise ConfigError(f"{section.place('vote')}: one sample is no vote: set sampling.n above 1, or remove it")
    return vote


def _read_ks(section: Section, key: str, num_samples: int) -> tuple[int, ...]:
    ks = _listed(section.value(key))
    for k in ks:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise section.refusal(key, k, "a list of numbers of samples, such as [1, 5]")
        if k > num_samples:
            raise ConfigError(f"{section.place(key)}: {k} samples are asked for, and sampling.n is {num_samples}")
    return tuple(dict.fromkeys(ks))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
