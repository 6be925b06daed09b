"""Scorers by name: small pure functions of a prediction and a target. They know nothing of rows, files or models."""

from jobs.evaluation.scorers.info import ScorerInfo
from jobs.evaluation.scorers.registry import SCORERS, Scorer, make_scorer

__all__ = ["SCORERS", "Scorer", "ScorerInfo", "make_scorer"]
