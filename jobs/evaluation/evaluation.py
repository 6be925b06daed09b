"""Put an evaluation together from its settings: the prompts before the model is loaded, the work after."""

from __future__ import annotations

from typing import Any

from jobs.evaluation.few_shot import FewShot
from jobs.evaluation.prompting import EvaluationPrompts, Solver
from jobs.evaluation.tasks.choices import AskForLikelihoods, JudgeLikelihoods
from jobs.evaluation.tasks.generate import AskForCompletions, JudgeCompletions
from jobs.evaluation.tasks.perplexity import AskForText, JudgeText
from jobs.evaluation.tasks.work import EvaluationWork
from jobs.inputs import RowSource
from jobs.job_file import Job
from jobs.paths import STDIN
from nanovllm import ConfigError

MAX_TOKENS = 256
"""Longest answer where the job file does not say, as in lm-evaluation-harness."""


def evaluation_prompts(job: Job) -> EvaluationPrompts:
    """Make what makes a job's prompts; reads the rows that few-shot examples come from.

    Raises:
        ConfigError: a template is not valid Jinja, or there are too few examples.
    """
    settings = job.eval
    few_shot = None
    if settings.few_shot is not None:
        paths = list(settings.few_shot.inputs or job.inputs)
        if STDIN in paths:
            raise ConfigError("eval.few_shot.input is missing: standard input is read once, so name a file of examples")
        source = RowSource(paths)
        source.check()
        is_own = bool(set(paths) & set(job.inputs))
        few_shot = FewShot(settings.few_shot, source.rows(), Solver(job.prompt, settings), is_own)
    return EvaluationPrompts(job.prompt, settings, few_shot)


def evaluation_work(job: Job, llm: Any, sampling: Any, prompts: EvaluationPrompts) -> EvaluationWork:
    """Make the work of an evaluation job over the loaded model."""
    settings = job.eval
    if settings.task == "generate":
        asking, judging = AskForCompletions(job, llm, sampling), JudgeCompletions(settings)
    elif settings.task == "perplexity":
        asking, judging = AskForText(job, llm), JudgeText()
    else:
        asking, judging = AskForLikelihoods(job, llm, prompts.continuation_delimiter), JudgeLikelihoods(settings)
    return EvaluationWork(job, asking, judging, prompts.has_frame)


def evaluation_sampling(job: Job) -> Any:
    """Give the sampling parameters that a job's own go over.

    Not the model's: a score must not depend on what its authors like in a conversation. Greedy, `MAX_TOKENS` long, and
    with examples as plain text ending where the next example would begin.
    """
    from nanovllm import SamplingParams

    few_shot = job.eval.few_shot
    stop = [few_shot.delimiter] if few_shot is not None and few_shot.delimiter and not job.prompt.chat else []
    return SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, stop=stop)
