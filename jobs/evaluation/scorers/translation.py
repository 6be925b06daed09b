"""The scorers of translations, bleu and chrf, by the package sacrebleu, on its scale from 0 to 100.

A row's score is the sentence's. The number that papers give is the corpus score, which is not the mean of those: it
adds up counts over all rows first. A list as target holds references that are used together. Both scores of a name take
the same options.
"""

from __future__ import annotations

from typing import Any

from jobs.evaluation.scorers.targets import accepted_texts


def bleu(prediction: str, target: Any, **options: Any) -> float:
    """Give the sentence's BLEU: exponential smoothing, and only the n-gram orders that the text has."""
    return _bleu(**options, effective_order=True).sentence_score(prediction, accepted_texts(target, "bleu")).score


def corpus_bleu(predictions: list[str], targets: list[Any], **options: Any) -> float:
    """Give the BLEU of all rows together, as lm-evaluation-harness and papers do."""
    # force: text that looks tokenized is scored all the same, without a warning
    return _bleu(**options, force=True).corpus_score(predictions, _reference_streams(targets, "bleu")).score


def chrf(prediction: str, target: Any, **options: Any) -> float:
    """Give the sentence's chrF; `word_order: 2` makes it chrF++."""
    return _chrf(**options).sentence_score(prediction, accepted_texts(target, "chrf")).score


def corpus_chrf(predictions: list[str], targets: list[Any], **options: Any) -> float:
    """Give the chrF of all rows together."""
    return _chrf(**options).corpus_score(predictions, _reference_streams(targets, "chrf")).score


def _bleu(tokenize: str = "13a", lowercase: bool = False, **how: bool) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenize, lowercase=lowercase, **how)


def _chrf(char_order: int = 6, word_order: int = 0, beta: int = 2, lowercase: bool = False) -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)


def _reference_streams(targets: list[Any], scorer: str) -> list[list[str | None]]:
    """Turn a list of references for each row into lists over all rows; a row that has fewer is filled up with None."""
    rows = [accepted_texts(target, scorer) for target in targets]
    num_streams = max((len(row) for row in rows), default=1)
    return [[row[stream] if stream < len(row) else None for row in rows] for stream in range(num_streams)]
