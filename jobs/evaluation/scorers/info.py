"""What is known of a scorer before it is used. Knows no scorer by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.evaluation.scorers.options import Kind


@dataclass(frozen=True)
class ScorerInfo:
    """A scorer and what its users must know.

    Attributes:
        name: its name in job files.
        function: `(prediction, target, **options)`, pure, gives the score of one row.
        kinds: the options that it takes, each with the kind of its value.
        higher_is_better: how scores compare.
        needs: the package that must be there besides the run-time ones, if any; it is in the extra `metrics`.
        corpus: `(predictions, targets, **options)` for a score of all rows together where that is not the mean of the
            rows' scores; it is an aggregate, with no standard error but by bootstrap over rows.
    """

    name: str
    function: Callable[..., float]
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    higher_is_better: bool = True
    needs: str | None = None
    corpus: Callable[..., float] | None = None

    @property
    def options(self) -> frozenset[str]:
        """The names of the options that it takes."""
        return frozenset(self.kinds)


@dataclass(frozen=True)
class Scorer:
    """A scorer with its options, as a job file asks for it.

    Attributes:
        name: the name of its metric: the scorer's, unless the job file gives another.
        info: the scorer.
        options: the options as given.
    """

    name: str
    info: ScorerInfo
    options: Mapping[str, Any]

    @property
    def higher_is_better(self) -> bool:
        """How its scores compare."""
        return self.info.higher_is_better

    @property
    def has_corpus_score(self) -> bool:
        """Whether the score of all rows together is not the mean of the rows' scores."""
        return self.info.corpus is not None

    def __call__(self, prediction: str | None, target: Any) -> float:
        """Score one row.

        Where nothing was extracted (None) the score is 0, or that of an empty text if lower is better.

        Raises:
            RequestError: the target is nothing that this scorer can compare with, or a pattern took too long.
        """
        if prediction is None and self.higher_is_better:
            return 0.0
        return self.info.function(prediction or "", target, **self.options)

    def corpus(self, predictions: list[str | None], targets: list[Any]) -> float:
        """Score all rows together. Only where `has_corpus_score`."""
        texts = ["" if prediction is None else prediction for prediction in predictions]
        return self.info.corpus(texts, targets, **self.options)
