"""Scorers that users write in Python, named as `module:function`. They run only where the user allowed code."""

from __future__ import annotations

import importlib
import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from jobs.evaluation.scorers.info import ScorerInfo
from jobs.evaluation.scorers.options import FLAG, TEXT, Kind, read_options
from jobs.evaluation.scorers.wording import show
from nanovllm import ConfigError, RequestError

_KINDS = {
    "function": TEXT,
    "higher_is_better": FLAG,
    "options": Kind("a mapping of keyword arguments", lambda value: isinstance(value, dict)),
}


def own_scorer(spec: Any, place: str, allow_code: bool) -> tuple[str, ScorerInfo, dict[str, Any]]:
    """Load a scorer of the user's.

    Args:
        spec: `module:function`, or a mapping with `function`, `higher_is_better` and `options`.
        place: where it stands, for messages.
        allow_code: whether the user allowed code to run.

    Returns:
        The function's name, what is known of the scorer, and the options to call it with.

    Raises:
        ConfigError: code is not allowed, or there is no such function.
    """
    settings = read_options({"function": spec} if isinstance(spec, str) else spec, _KINDS, "python", place)
    address = settings.get("function", "")
    if not allow_code:
        code = address or "a module"
        raise ConfigError(f"{place}: python would run the code of {code}: set eval.allow_code to true if you trust it")
    function = _load(address, place)
    name = address.rpartition(":")[2]
    info = ScorerInfo(name, partial(_call, function, address), higher_is_better=settings.get("higher_is_better", True))
    return name, info, settings.get("options", {})


def _load(address: str, place: str) -> Callable[..., Any]:
    module_name, _, function_name = address.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"{place}: python is {show(address)}, expected module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:  # whatever the user's module does while it is imported
        cause = f"{type(problem).__name__}: {problem}"
        raise ConfigError(
            f"{place}: python cannot import {module_name!r} ({cause}): put its folder on PYTHONPATH"
        ) from problem
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{place}: module {module_name!r} has no function {function_name!r}")
    return function


def _call(function: Callable[..., Any], address: str, prediction: str, target: Any, **options: Any) -> float:
    try:
        score = function(prediction, target, **options)
    except Exception as problem:  # one row's mishap in foreign code ends that row alone
        raise RequestError("scorer_failed", f"scorer {address} raised {type(problem).__name__}: {problem}") from problem
    # NumPy's bool is no number to Python
    if not isinstance(score, numbers.Real | np.bool_) or not math.isfinite(score):
        raise RequestError("scorer_failed", f"scorer {address} gave {show(score)}, expected a finite number")
    return float(score)
