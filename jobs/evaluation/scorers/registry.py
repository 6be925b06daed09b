"""All scorers by name, and the making of one from a job file's words. The only place that knows them all."""

from __future__ import annotations

import importlib.util
from typing import Any

from jobs.evaluation.scorers import options as kind
from jobs.evaluation.scorers.code_text import code_match
from jobs.evaluation.scorers.distance import levenshtein
from jobs.evaluation.scorers.info import Scorer, ScorerInfo
from jobs.evaluation.scorers.json_fields import json_match
from jobs.evaluation.scorers.letters import choice_letter
from jobs.evaluation.scorers.matching import exact_match, includes, regex
from jobs.evaluation.scorers.numeric import numeric
from jobs.evaluation.scorers.overlap import f1, rouge_l
from jobs.evaluation.scorers.own import own_scorer
from jobs.evaluation.scorers.translation import bleu, chrf, corpus_bleu, corpus_chrf
from jobs.evaluation.scorers.wording import show
from jobs.names import suggest
from nanovllm import ConfigError

_EXACT_MATCH = {
    "ignore_case": kind.FLAG,
    "ignore_punctuation": kind.FLAG,
    "ignore_articles": kind.FLAG,
    "ignore_numbers": kind.FLAG,
    "ignore_numbers_formatting": kind.FLAG,
    "ignore_whitespace": kind.FLAG,
    "regexes_to_ignore": kind.PATTERNS,
}
_NUMERIC = {
    "tolerance": kind.AMOUNT,
    "relative_tolerance": kind.AMOUNT,
    "which": kind.one_of("first", "last", "only"),
    "percent": kind.one_of("either", "fraction", "unit"),
    "decimal_comma": kind.FLAG,
}
_BLEU = {"tokenize": kind.one_of("13a", "intl", "char", "zh", "none"), "lowercase": kind.FLAG}
_CHRF = {
    "char_order": kind.count(1, 20),
    "word_order": kind.count(0, 20),
    "beta": kind.count(1, 20),
    "lowercase": kind.FLAG,
}

SCORERS: dict[str, ScorerInfo] = {
    info.name: info
    for info in (
        ScorerInfo("exact_match", exact_match, _EXACT_MATCH),
        ScorerInfo("includes", includes, {"ignore_case": kind.FLAG, "whole_words": kind.FLAG}),
        ScorerInfo("regex", regex, {"ignore_case": kind.FLAG, "dot_all": kind.FLAG, "full": kind.FLAG}),
        ScorerInfo("numeric", numeric, _NUMERIC),
        ScorerInfo("choice_letter", choice_letter, {"letters": kind.LETTERS}),
        ScorerInfo("f1", f1),
        ScorerInfo("rouge_l", rouge_l),
        ScorerInfo("bleu", bleu, _BLEU, needs="sacrebleu", corpus=corpus_bleu),
        ScorerInfo("chrf", chrf, _CHRF, needs="sacrebleu", corpus=corpus_chrf),
        ScorerInfo(
            "json_match",
            json_match,
            {"fields": kind.TEXTS, "score": kind.one_of("fraction", "all"), "ignore_case": kind.FLAG},
        ),
        ScorerInfo("levenshtein", levenshtein, {"ignore_case": kind.FLAG, "ignore_whitespace": kind.FLAG}),
        ScorerInfo("code_match", code_match, {"line_comment": kind.TEXT, "ignore_case": kind.FLAG}),
    )
}


def make_scorer(spec: str | dict[str, Any], place: str, allow_code: bool = False) -> Scorer:
    """Make the scorer that a job file asks for.

    Args:
        spec: a name, or a mapping of one name to its options; `name` among these renames the metric.
        place: where it stands, for messages.
        allow_code: whether `python: "module:function"` may run code of the user's.

    Raises:
        ConfigError: there is no such scorer or option, a value is wrong, or a package is missing.
    """
    scorer, values = _split(spec, place)
    metric = None
    if isinstance(values, dict) and "name" in values:
        values = dict(values)
        metric = values.pop("name")
        kind.check_value(metric, kind.TEXT, f"{scorer}.name", place)
    if scorer == "python":
        name, info, options = own_scorer(values, place, allow_code)
        return Scorer(metric or name, info, options)
    info = SCORERS.get(scorer)
    if info is None:
        raise ConfigError(f"{place}: there is no scorer {show(scorer)}: {suggest(scorer, [*SCORERS, 'python'])}")
    options = kind.read_options(values, info.kinds, scorer, place)
    if info.needs and importlib.util.find_spec(info.needs) is None:
        raise ConfigError(f"{place}: {scorer} needs the {info.needs} package; run: pip install 'nanovllm[metrics]'")
    return Scorer(metric or scorer, info, options)


def _split(spec: Any, place: str) -> tuple[str, Any]:
    if isinstance(spec, str):
        return spec, None
    if isinstance(spec, dict) and len(spec) == 1:
        ((name, values),) = spec.items()
        if isinstance(name, str):
            return name, values
    raise ConfigError(
        f"{place} is {show(spec)}, expected a scorer's name, or one name with its options as in "
        "{numeric: {tolerance: 0.01}}"
    )
