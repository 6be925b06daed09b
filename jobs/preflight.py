"""Look at every row of a job as a run would, without generating: what fits, what fails, and what looks odd.

Owns the counting. The rows are parsed, rendered and encoded by the same code as in a run. Knows no display.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.job_file import Job
from jobs.overlong import PROMPT_TOO_LONG, fit_prompt
from jobs.prompts import Prompt
from jobs.readers import RawRow
from jobs.rows import Row, RowParser, sampling_of
from nanovllm import RequestError

_MAX_EXAMPLES = 3


@dataclass(slots=True)
class CheckedRow:
    """One row as a run would send it to the engine.

    Attributes:
        row: the row.
        ids: the prompt's token ids; empty where there are none because of the error.
        error: why the row would be an error row, or None.
        sampling: its sampling parameters; None with an error.
        notes: what looks odd about its prompt.
    """

    row: Row
    ids: list[int] = field(default_factory=list)
    error: RequestError | None = None
    sampling: Any = None
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The counts of a check. `rows = ok + errors + skipped`, always.

    Attributes:
        cut: rows that `on_overlong` would cut; they are ok.
        lengths: number of ok rows for each number of prompt tokens.
        max_completion_tokens: the most that all ok rows together can generate.
        errors_by_code, notes: how often, and the first few places.
    """

    rows: int = 0
    ok: int = 0
    errors: int = 0
    skipped: int = 0
    cut: int = 0
    lengths: Counter = field(default_factory=Counter)
    max_completion_tokens: int = 0
    errors_by_code: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all ok rows."""
        return sum(length * number for length, number in self.lengths.items())

    def quantile(self, share: float) -> int:
        """Give the prompt length that `share` of the ok rows do not exceed."""
        lengths, total = sorted(self.lengths), 0
        for length in lengths:
            total += self.lengths[length]
            if total >= share * self.ok:
                return length
        return 0

    def buckets(self) -> list[tuple[int, int, int]]:
        """Give (shortest, longest, number of rows) for prompt lengths between powers of two."""
        if not self.lengths:
            return []
        edges = [1]
        while edges[-1] <= max(self.lengths):
            edges.append(2 * edges[-1])
        counts = [0] * len(edges)
        for length, number in self.lengths.items():
            counts[bisect.bisect_right(edges, length) - 1] += number
        used = [i for i, number in enumerate(counts) if number]
        return [(edges[i], 2 * edges[i] - 1, counts[i]) for i in range(used[0], used[-1] + 1)]


class Preflight:
    """Checks the rows of one job.

    Args:
        job: the job.
        plan: the model, as `nanovllm.plan_model` gives it.
        sampling: the job's sampling parameters over the model's defaults.
    """

    def __init__(self, job: Job, plan: Any, sampling: Any):
        self.report = Report()
        self._job = job
        self._plan = plan
        self._sampling = sampling
        self._has_checked_frame = False
        self._check_case = _no_check if job.eval is None else _case_check(job)

    def rows(self, raw_rows: Iterator[RawRow], parser: RowParser) -> Iterator[CheckedRow]:
        """Check the rows one after another, and count them."""
        for index, raw in enumerate(raw_rows):
            checked = self._check(parser.parse(index, raw))
            self._count(checked)
            yield checked

    def _check(self, row: Row) -> CheckedRow:
        checked = CheckedRow(row, error=row.error)
        if row.error is not None:
            return checked
        try:
            checked.sampling = sampling_of(row, self._sampling)
            checked.notes = self._notes(row.prompt)
            self._check_case(row)
            checked.ids = self._ids(row, checked.sampling.max_tokens)
            if self._job.eval is None or self._job.eval.is_prompted:  # a text by itself may be of any length
                self._plan.check_request(checked.ids, checked.sampling)
        except RequestError as error:
            checked.error = error
        return checked

    def _ids(self, row: Row, max_tokens: int | None) -> list[int]:
        prompt, policy, tokenizer = row.prompt, self._job.on_overlong, self._plan.tokenizer
        if policy.startswith("truncate"):
            fitted, row.num_cut_tokens = fit_prompt(prompt, policy, tokenizer, self._plan.max_model_len, max_tokens)
            return fitted["prompt_token_ids"]
        return tokenizer.encode(prompt.value) if isinstance(prompt.value, str) else prompt.value["prompt_token_ids"]

    def _notes(self, prompt: Prompt) -> list[str]:
        tokenizer = self._plan.tokenizer
        if isinstance(prompt.value, str):
            if tokenizer.adds_bos and tokenizer.starts_with_bos(prompt.value):
                return ["the prompt already starts with BOS; no second one is added"]
            return []
        notes = []
        bos = tokenizer.bos_token_id
        if bos is not None and prompt.value["prompt_token_ids"][:2] == [bos, bos]:
            notes.append("the prompt starts with BOS twice")
        if prompt.is_chat and prompt.chat.options.get("add_generation_prompt") and not self._has_checked_frame:
            self._has_checked_frame = True
            plain = {**prompt.chat.options, "add_generation_prompt": False}
            if tokenizer.encode_chat(prompt.chat.messages, **plain)[1] == prompt.value["prompt_token_ids"]:
                notes.append("the chat template does not open the assistant's turn")
        return notes

    def _count(self, checked: CheckedRow) -> None:
        report, error = self.report, checked.error
        report.rows += 1
        for note in checked.notes:
            report.notes[note] += 1
            self._example(note, checked.row.place)
        if error is None:
            report.ok += 1
            report.cut += checked.row.num_cut_tokens > 0
            report.lengths[len(checked.ids)] += 1
            room = self._plan.max_model_len - len(checked.ids) if self._job.generates else 0
            wanted = room if checked.sampling.max_tokens is None else min(room, checked.sampling.max_tokens)
            report.max_completion_tokens += checked.sampling.n * wanted
        elif error.code == PROMPT_TOO_LONG and self._job.on_overlong == "skip":
            report.skipped += 1
        else:
            report.errors += 1
            report.errors_by_code[error.code] += 1
            place = "" if error.message.startswith(checked.row.place) else f"{checked.row.place}: "
            self._example(error.code, f"{place}{error.message}")

    def _example(self, name: str, text: str) -> None:
        examples = self.report.examples.setdefault(name, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(text)


def _no_check(row: Row) -> None:
    """Find nothing wrong with a row."""


def _case_check(job: Job) -> Callable[[Row], None]:
    """Make the check of what an evaluation needs of a row besides its prompt."""
    from jobs.evaluation.cases import Case, CaseReader

    reader = CaseReader(job.eval)

    def check(row: Row) -> None:
        reader.read(Case(), row.columns)

    return check
