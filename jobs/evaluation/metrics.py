"""The metrics of each task by name, and the scorers of the task generate, which are metrics of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.evaluation.scorers import Scorer, make_scorer
from nanovllm import ConfigError

if TYPE_CHECKING:
    from jobs.evaluation.settings import EvalSettings

CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_tokens", "acc_mutual_info")
RANK_METRICS = ("reciprocal_rank", "hit_at_1")
TARGET_METRICS = ("acc", "perplexity")
"""Of the task score where the target is the one continuation."""
PERPLEXITY_METRICS = ("token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
LOWER_IS_BETTER = frozenset({"perplexity", *PERPLEXITY_METRICS})


def metric_names(settings: EvalSettings, place: str = "eval.scorers") -> dict[str, bool]:
    """Give the metrics that an evaluation will have, each with whether higher is better.

    Raises:
        ConfigError: two scorers have one name, or one cannot be made.
    """
    if settings.task != "generate":
        return {name: name not in LOWER_IS_BETTER for name in settings.metrics}
    names: dict[str, bool] = {}
    scorers = scorers_of(settings, place)
    for scorer in scorers:
        if scorer.name in names:
            raise ConfigError(f"{place}: two scorers are called {scorer.name!r}: give one the option name")
        names[scorer.name] = scorer.higher_is_better
    names.update(dict.fromkeys((f"pass@{k}" for k in settings.pass_at_k), True))
    names.update(dict.fromkeys((f"maj@{k}" for k in settings.maj_at_k), scorers[0].higher_is_better))
    return names


def scorers_of(settings: EvalSettings, place: str = "eval.scorers") -> list[Scorer]:
    """Make the scorers. Raises ConfigError."""
    return [make_scorer(spec, f"{place}[{i}]", settings.allow_code) for i, spec in enumerate(settings.scorers)]
