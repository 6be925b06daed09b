"""Bring a finished journal into the form that stays: results in input order, and a head for each row beside them.

`results.jsonl` takes its name by rename, so that a file of that name is always whole. `rows.jsonl` keeps the heads of
the journal's entries, in the same order: with both, the journal can be made again, and so a finished run can be
continued after a change without doing again what did not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.files import write_atomically
from jobs.journal import Journal, rebuild


def write_results(journal: Journal, results: Path, heads: Path) -> int:
    """Write the results and the heads of all rows in input order. Gives the number of result lines."""
    order = journal.order()
    num_lines = 0

    def lines() -> Iterator[bytes]:
        nonlocal num_lines
        for _, row in journal.ordered(order):
            num_lines += len(row)
            yield from row

    write_atomically(results, lines())
    write_atomically(heads, (head for head, _ in journal.ordered(order)))
    return num_lines


def reopen(journal: Path, results: Path, heads: Path) -> None:
    """Make a finished run's journal again."""
    with results.open("rb") as lines, heads.open("rb") as rows:
        write_atomically(journal, rebuild(rows, lines))
