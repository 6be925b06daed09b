"""The examples of docs/scorers.md hold, and it names every scorer and option."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from jobs.evaluation.scorers import SCORERS, make_scorer

PAGE = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text("utf-8")


# the documentation


def table(header):
    """The rows of the table of docs/scorers.md that has this header, as lists of cells."""
    lines = PAGE.split(f"{header}\n", 1)[1].splitlines()[1:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def code_of(cell):
    return re.fullmatch(r"`(.*)`", cell)[1]


@pytest.mark.parametrize(("spec", "text", "target", "expected"), table("| scorer | text | target | score |"))
def test_examples_of_the_documentation(spec, text, target, expected):
    scorer = make_scorer(yaml.safe_load(code_of(spec)), "docs")
    assert scorer(json.loads(code_of(text)), json.loads(code_of(target))) == pytest.approx(float(expected), abs=5e-5)


def test_the_documentation_names_every_scorer_and_option():
    rows = {code_of(row[0]): row[2] if len(row) > 2 else "" for row in table("| scorer | says | options |")}
    assert set(rows) == {*SCORERS, "python"}
    for name, info in SCORERS.items():
        shown = set(re.findall(r"(?:^|[,(] ?)`([a-z_]{3,})`", re.sub(r"\([^)]*\)", "", rows[name])))
        assert shown == info.options, name
