"""Scorers as a job file names them, for their tests."""

from jobs.evaluation.scorers import make_scorer


def score(name, prediction, target, **options):
    return make_scorer({name: options}, "eval.scorers")(prediction, target)
