"""What the report is made of: the record of a run over time, histograms, scales, and numbers for people."""

import pytest

from jobs.progress import MAX_POINTS, Series, Snapshot
from jobs.report import charts, formats
from jobs.report.histogram import Bin, Histogram


def test_a_series_has_a_bounded_number_of_points_and_ends_with_the_last():
    series = Series()
    for second in range(1, 10_001):
        series.add(Snapshot(second, None, 0, 1, 0, 5 * second, 2.0 * second, kept=0))
    series.add(Snapshot(10_000, None, 0, 0, 0, 50_005, 20_000.5), is_last=True)
    columns = series.as_json()
    assert MAX_POINTS / 3 < len(columns["seconds"]) <= MAX_POINTS
    assert (columns["seconds"][-1], columns["rows"][-1], columns["completion_tokens"][-1]) == (20_000.5, 10_000, 50_005)
    assert columns["seconds"] == sorted(set(columns["seconds"]))
    steps = [b - a for a, b in zip(columns["seconds"], columns["seconds"][1:-1], strict=False)]
    assert max(steps) <= 2.01 * min(steps)


def test_a_point_right_before_the_last_one_gives_way_to_it():
    series = Series()
    for seconds in (2.0, 4.0):
        series.add(Snapshot(1, None, 0, 1, 0, 1, seconds))
    series.add(Snapshot(1, None, 0, 1, 0, 1, 4.5), is_last=True)
    assert series.as_json()["seconds"] == [2.0, 4.5]
    series.add(Snapshot(1, None, 0, 1, 0, 1, 9.0), is_last=True)
    assert series.as_json()["seconds"] == [2.0, 4.5, 9.0]


def test_rows_that_an_earlier_process_left_are_no_throughput():
    series = Series()
    assert series.as_json() == {"seconds": [], "rows": [], "completion_tokens": []}
    series.add(Snapshot(12, 20, 0, 1, 0, 30, 2.0, kept=10))
    assert series.as_json() == {"seconds": [2.0], "rows": [2], "completion_tokens": [30]}


def test_a_histogram_counts_exactly_while_it_can():
    histogram = Histogram()
    for value in (3, 3, 4, 9, 0):
        histogram.add(value)
    assert (histogram.num, histogram.mean, histogram.smallest, histogram.largest) == (5, 3.8, 0, 9)
    assert [histogram.quantile(share) for share in (0.2, 0.5, 0.95)] == [0, 3, 9]
    assert histogram.bins() == [Bin(i, i, {0: 1, 3: 2, 4: 1, 9: 1}.get(i, 0)) for i in range(10)]


def test_a_histogram_of_many_values_is_bounded_and_nearly_exact():
    histogram = Histogram()
    for value in range(0, 1_000_000, 7):
        histogram.add(value)
    assert len(histogram._counts) <= 4096
    assert histogram.num == 142_858
    assert sum(one.count for one in histogram.bins()) == 142_858
    assert len(histogram.bins()) <= 24
    assert abs(histogram.quantile(0.5) - 500_000) < 500
    assert (histogram.bins()[0].low, histogram.bins()[0].high) == (0, 49_999)
    assert abs(histogram.bins()[0].count - 7143) < 50


def test_bins_have_a_round_width_wherever_the_values_lie():
    histogram = Histogram()
    for value in (1003, 1017, 1049):
        histogram.add(value)
    bins = histogram.bins()
    assert [(one.low, one.high) for one in bins][:2] == [(1000, 1004), (1005, 1009)]
    assert [one.count for one in bins] == [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert Histogram().bins() == []
    assert Histogram().quantile(0.5) is None


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 1, [0, 0.5, 1]),
        (0, 7, [0, 2, 4, 6, 8]),
        (0, 0, [0, 0.5, 1]),
        (-0.03, 0.05, [-0.04, -0.02, 0, 0.02, 0.04, 0.06]),
    ],
)
def test_scales_end_in_round_numbers(low, high, ticks):
    assert charts.Scale(low, high).ticks == pytest.approx(ticks)


@pytest.mark.parametrize(
    "written, expected",
    [
        (formats.whole(1234567), "1,234,567"), (formats.real(0.123456), "0.1235"), (formats.real(12345.6), "12,345.6"),
        (formats.real(None), "–"), (formats.real(3.0), "3"), (formats.score(0.5), "0.5000"), (formats.score(None), "–"),
        (formats.duration(0.4217), "0.422 s"), (formats.duration(185), "3 min 5 s"),
        (formats.duration(7620), "2 h 7 min"), (charts.short(1500), "1.5k"), (charts.short(0), "0"),
        (formats.visible("a\tb\nc\x85\ufffe\u2067"), "a\tb\nc⟦U+0085⟧⟦U+FFFE⟧⟦U+2067⟧"),
    ],
)  # fmt: skip
def test_numbers_and_signs_are_written_for_people(written, expected):
    assert written == expected


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("Q: a\nA: b\n\nQ: c\nA:", "…Q: c\nA:"),
        ("Q: c\nA:", "Q: c\nA:"),
        ("x\n<user>\nQ<end>\n<assistant>\n", "…<user>\nQ<end>\n<assistant>"),
        ("a" * 400, "…" + "a" * 300),
        ("", ""),
    ],
)
def test_the_own_question_of_a_prompt_with_examples(prompt, shown):
    assert formats.ending(prompt) == shown
