"""Two evaluations row by row: the pairing, the warnings, what cannot be compared, the command."""

import json
import math

import pytest
from finished_evals import row, text_row, write_evaluation, write_files

from jobs.cli import main
from jobs.evaluation.comparison import compare_runs
from jobs.evaluation.paired import paired_difference
from jobs.evaluation.statistics import estimate_perplexity
from nanovllm import ConfigError

REAL = [0.31, 0.74, 0.52, 0.11, 0.93, 0.47, 0.66, 0.28, 0.85, 0.05, 0.59, 0.38]
OTHER = [0.42, 0.71, 0.66, 0.25, 0.9, 0.58, 0.61, 0.49, 0.97, 0.02, 0.77, 0.33]
GROUPS = list("aaabbbbccdde")


@pytest.fixture
def runs(tmp_path):
    """Six questions: A is right about 0 1 2, B about 1 2 3 4."""
    return write_evaluation(tmp_path / "a", [1, 1, 1, 0, 0, 0]), write_evaluation(tmp_path / "b", [0, 1, 1, 1, 1, 0])


def test_rows_are_paired_and_flips_named(runs):
    found = compare_runs(*runs)
    (one,) = found.metrics
    assert (one.metric.name, one.a, one.b) == ("exact_match", 0.5, pytest.approx(4 / 6))
    assert (one.wins, one.losses, one.ties) == (2, 1, 3)
    assert [(flip.id, flip.a, flip.b, flip.is_win) for flip in one.flips] == [
        ("q0", 1, 0, False),
        ("q3", 0, 1, True),
        ("q4", 0, 1, True),
    ]
    assert one.difference.p_value == 1.0  # two against one
    assert (found.num_both, found.num_only_a, found.num_only_b, found.warnings) == (6, 0, 0, [])


def test_rows_are_found_by_id_wherever_they_stand(runs, tmp_path):
    lines = [row(9 - i, value, id=f"q{i}", target=str(i)) for i, value in enumerate([0, 1, 1, 1, 1, 0])][::-1]
    shuffled = write_files(tmp_path / "c", lines, {"exact_match": {"value": 0.5, "higher_is_better": True}})
    assert compare_runs(runs[0], shuffled).metrics[0].difference == compare_runs(*runs).metrics[0].difference


def test_an_error_row_is_a_wrong_answer(runs, tmp_path):
    broken = write_evaluation(tmp_path / "c", [1, None, 1, 0, 0, 0])
    found = compare_runs(runs[0], broken)
    assert (found.metrics[0].losses, found.metrics[0].b, found.warnings) == (1, pytest.approx(2 / 6), [])


def test_where_less_is_better(tmp_path):
    a = write_evaluation(tmp_path / "a", [3.0, 2.0, 5.0, 1.0], "distance", higher_is_better=False)
    b = write_evaluation(tmp_path / "b", [1.0, 2.0, 6.0, None], "distance", higher_is_better=False)
    found = compare_runs(a, b)
    (one,) = found.metrics
    assert (one.wins, one.losses, one.ties, one.difference.n) == (1, 1, 1, 3)
    assert (one.difference.value, one.gain) == (pytest.approx(-1 / 3), pytest.approx(1 / 3))
    assert one.least_gain == -one.difference.high
    assert [flip.id for flip in one.flips] == ["q0", "q2"]
    assert found.warnings == ["distance: 1 rows have no score in one of the runs and are left out"]


def test_a_row_has_the_mean_score_of_its_samples(tmp_path):
    a = write_evaluation(tmp_path / "a", [[1, 0], [1, 1], [0, 0]])
    b = write_evaluation(tmp_path / "b", [1, 1, 0])
    (one,) = compare_runs(a, b).metrics
    assert (one.a, one.b, one.difference.n, one.wins) == (0.5, pytest.approx(2 / 3), 3, 1)
    assert [(flip.id, flip.a, flip.b) for flip in one.flips] == [("q0", 0.5, 1.0)]


def test_groups_make_the_error_clustered(tmp_path):
    a = write_evaluation(tmp_path / "a", REAL, "f1", groups=GROUPS)
    b = write_evaluation(tmp_path / "b", OTHER, "f1", groups=GROUPS)
    assert compare_runs(a, b).metrics[0].difference == paired_difference(REAL, OTHER, GROUPS)


def test_a_row_without_a_group_is_a_group_of_its_own(tmp_path):
    groups = [*GROUPS[:11], None]
    a = write_evaluation(tmp_path / "a", REAL, "f1", groups=groups)
    b = write_evaluation(tmp_path / "b", OTHER, "f1", groups=groups)
    assert compare_runs(a, b).metrics[0].difference == paired_difference(REAL, OTHER, GROUPS)


def test_perplexities_are_compared_text_by_text(tmp_path):
    metrics = {
        name: {"value": 1.0, "higher_is_better": False}
        for name in ("token_perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
    }
    texts = [(-20.0, 10, 5, 40), (-60.0, 20, 12, 90), (-25.0, 12, 7, 50)]
    worse = [(logprob - 2.0, *counts) for logprob, *counts in texts]
    folders = [
        write_files(tmp_path / name, [text_row(i, *text) for i, text in enumerate(rows)], metrics, "perplexity")
        for name, rows in (("a", texts), ("b", worse))
    ]
    found = {one.metric.name: one for one in compare_runs(*folders).metrics}
    assert found["token_perplexity"].a == pytest.approx(math.exp(105 / 42))
    assert found["word_perplexity"].b == pytest.approx(math.exp(111 / 24))
    assert found["byte_perplexity"].a == pytest.approx(math.exp(105 / 180))
    assert found["bits_per_byte"].b == pytest.approx(111 / 180 / math.log(2))
    one = found["token_perplexity"]
    assert (one.wins, one.losses, one.ties) == (0, 3, 0)
    assert [flip.id for flip in one.flips] == ["q0", "q2", "q1"]  # 0.2, 1/6 and 0.1 nats a token
    assert one.flips[0].a == pytest.approx(math.exp(2.0))


def test_the_error_of_a_perplexity_is_that_of_the_delta_method(tmp_path):
    """Against a run that is sure of everything the difference has the error of the other run's perplexity."""
    logprobs, counts = [-41.2, -12.9, -77.3, -30.1], [17, 6, 30, 9]
    metrics = {"token_perplexity": {"value": 1.0, "higher_is_better": False}}
    a = write_files(tmp_path / "a", [text_row(i, 0.0, n) for i, n in enumerate(counts)], metrics, "perplexity")
    lines = [text_row(i, *pair) for i, pair in enumerate(zip(logprobs, counts, strict=True))]
    b = write_files(tmp_path / "b", lines, metrics, "perplexity")
    expected = estimate_perplexity(logprobs, counts)
    found = compare_runs(a, b).metrics[0].difference
    assert (found.value, found.stderr) == pytest.approx((expected.value - 1, expected.stderr), rel=1e-12)


def test_likelihoods_of_one_continuation(tmp_path):
    def choice(i, logprob):
        return row(i, 1, "acc", choices=[{"text": "x", "logprob": logprob, "num_tokens": 2, "is_greedy": True}])

    metrics = {"perplexity": {"value": 1.0, "higher_is_better": False}}
    a = write_files(tmp_path / "a", [choice(0, -1.0), choice(1, -2.0)], metrics, "score")
    b = write_files(tmp_path / "b", [choice(0, -2.0), choice(1, -3.0)], metrics, "score")
    (one,) = compare_runs(a, b).metrics
    assert (one.a, one.b, one.losses) == (pytest.approx(math.exp(1.5)), pytest.approx(math.exp(2.5)), 2)


def test_texts_without_tokens_are_ties(tmp_path):
    metrics = {"token_perplexity": {"value": 1.0, "higher_is_better": False}}
    lines = [text_row(0, 0.0, 0), text_row(1, -4.0, 4), text_row(2, -9.0, 4)]
    a = write_files(tmp_path / "a", lines, metrics, "perplexity")
    (one,) = compare_runs(a, a).metrics
    assert (one.ties, one.flips) == (3, [])


def test_what_makes_a_comparison_less_than_fair(tmp_path):
    metrics = {"exact_match": {"value": 0.5, "higher_is_better": True}}
    other = {**metrics, "f1": {"value": 0.5, "higher_is_better": True}}
    a = [row(0, 1), row(1, 0), row(2, 1), row(3, 0)]
    b = [row(0, 1), row(1, 0, prompt_hash="x", target="other"), row(2, 1, prompt_hash="y"), row(7, 0), row(8, 0)]
    for line in b:
        line["scores"]["f1"] = 0.5
    write_files(tmp_path / "a", a, metrics, extract=None)
    write_files(tmp_path / "b", b, other, extract=["number"], data="e" * 64, gate={"f1": "> 0"})
    assert compare_runs(tmp_path / "a", tmp_path / "b").warnings == [
        "the prompts differ in 2 of 3 rows",
        "the targets differ in 1 of 3 rows",
        "the input data of the two runs differ (by hash)",
        "the settings of eval differ: extract",
        "only one of the runs has the metrics f1; they are left out",
        f"rows are missing: 1 are only in {tmp_path / 'a'}, 2 only in {tmp_path / 'b'}; the rows of both are compared",
    ]


def test_a_score_of_all_rows_together_is_compared_by_its_rows(tmp_path):
    a = write_evaluation(tmp_path / "a", [10.0, 20.0], "bleu", method="bootstrap")
    assert compare_runs(a, a).warnings == [
        "bleu: the means of the rows' scores are compared, not the score of all rows together"
    ]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "scores.json").unlink(), "is a run without scores.json: only a job with an eval: section"),
        (lambda run: (run / "results.jsonl").unlink(), "has no results.jsonl any more"),
        (lambda run: (run / "scores.json").write_text("{}"), "does not have the shape of our scores"),
        (lambda run: (run / "results.jsonl").write_text('{"index": 0}\n'), "line 1: the row lacks 'id'"),
        (lambda run: (run / "results.jsonl").write_text("oops\n"), "results.jsonl, line 1 is no JSON object"),
        (lambda run: (run / "results.jsonl").write_text(json.dumps(row(0, "1")) + "\n"), "holds values of other types"),
        (lambda run: (run / "results.jsonl").write_text(json.dumps(row(0, 1, "f1")) + "\n"), "lacks 'exact_match'"),
        (lambda run: (run / "results.jsonl").write_text(json.dumps(row(99, 1)) + "\n"), "have no row id in common"),
        (
            lambda run: (run / "results.jsonl").write_text(
                json.dumps(row(0, 1)) + "\n" + json.dumps(row(1, 1, id="q0"))
            ),
            "has two rows with the id 'q0'",
        ),
    ],
)
def test_what_cannot_be_compared(runs, break_it, message):
    break_it(runs[1])
    with pytest.raises(ConfigError, match=message):
        compare_runs(*runs)


def test_a_run_that_is_not_finished(runs):
    for name in ("scores.json", "results.jsonl"):
        (runs[0] / name).unlink()
    (runs[0] / "manifest.json").write_text('{"kind": "nanovllm-run", "status": "interrupted"}')
    with pytest.raises(ConfigError, match=r"a is not finished \(interrupted\): run its command again first"):
        compare_runs(*runs)


def test_a_directory_of_something_else(runs, tmp_path):
    with pytest.raises(ConfigError, match="is not the directory of an evaluation"):
        compare_runs(tmp_path, runs[0])
    with pytest.raises(ConfigError, match="nowhere is no directory"):
        compare_runs(tmp_path / "nowhere", runs[0])


def test_metrics_that_differ(runs, tmp_path):
    other = write_evaluation(tmp_path / "c", [1.0], "f1")
    with pytest.raises(ConfigError, match=r"the metrics differ: .*a has exact_match; .*c has f1"):
        compare_runs(runs[0], other)
    with pytest.raises(ConfigError, match="c has no metric 'exact_match': known are f1"):
        compare_runs(runs[0], other, "exact_match")
    with pytest.raises(ConfigError, match="a has no metric 'exact_mtach': did you mean 'exact_match'"):
        compare_runs(*runs, "exact_mtach")
    write_evaluation(tmp_path / "d", [1.0], higher_is_better=False)
    with pytest.raises(ConfigError, match="better when higher in one run and when lower in the other"):
        compare_runs(runs[0], tmp_path / "d")
    write_evaluation(tmp_path / "e", [1.0], task="rank")
    with pytest.raises(ConfigError, match=r"the tasks differ: .*a is generate, .*e is rank"):
        compare_runs(runs[0], tmp_path / "e")


def test_the_command_prints_a_screen(runs, capsys):
    a, b = runs
    assert main(["compare", str(a), str(b)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"A: {a} (a, model m)",
        f"B: {b} (b, model m)",
        "6 rows in both",
        "",
        "metric            A       B    B - A       95 % interval       p     test  wins  losses  ties",
        "exact_match  0.5000  0.6667  +0.1667  [-0.6233, +0.9567]  1.0000  McNemar     2       1     3",
        "",
        "exact_match: no difference beyond chance is shown",
        "  standard error of the difference 0.3073; McNemar p = 1.0000, paired t p = 0.6109, bootstrap p = 0.7541",
        "3 rows came out differently",
        "  won:  q3, q4",
        "  lost: q0",
    ]


def test_the_command_says_which_is_better(tmp_path, capsys):
    a = write_evaluation(tmp_path / "a", [0] * 20)
    b = write_evaluation(tmp_path / "b", [1] * 20)
    assert main(["compare", str(a), str(b), "--flips", "2"]) == 0
    out = capsys.readouterr().out
    assert "exact_match: B is better than A, and chance alone would hardly do that" in out
    assert "20 rows came out differently, the 2 that differ most (--flips N shows more)\n  won:  q0, q1\n" in out
    main(["compare", str(b), str(a), "--flips", "0"])
    assert capsys.readouterr().out.endswith("B is worse than A, and chance alone would hardly do that\n"
                                            "  standard error of the difference 0.0000; McNemar p = 1.9e-06\n"
                                            "20 rows came out differently\n")  # fmt: skip


def test_an_id_cannot_steer_the_terminal(tmp_path, capsys):
    metrics = {"exact_match": {"value": 0.5, "higher_is_better": True}}
    for name, score in (("a", 0), ("b", 1)):
        write_files(tmp_path / name, [row(0, score, id="\x1b[31m" + "x" * 50)], metrics)
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "  won:  ?[31m" + "x" * 24 + "…\n" in capsys.readouterr().out


def test_the_command_prints_json(runs, capsys):
    assert main(["compare", *map(str, runs), "--json", "--metric", "exact_match"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"] == {"both": 6, "only_a": 0, "only_b": 0}
    one = printed["metrics"]["exact_match"]
    assert (one["wins"], one["losses"], one["ties"], one["n"], one["method"]) == (2, 1, 3, 6, "McNemar")
    assert one["difference"] == pytest.approx(1 / 6)
    assert one["flips"][0] == {"id": "q0", "a": 1.0, "b": 0.0, "outcome": "loss"}
    assert len(one["flips"]) == 3


def test_json_has_null_where_nothing_is_known(tmp_path, capsys):
    a = write_evaluation(tmp_path / "a", [0.5], "f1")
    assert main(["compare", str(a), str(a), "--json"]) == 0
    one = json.loads(capsys.readouterr().out)["metrics"]["f1"]
    assert (one["stderr"], one["p_value"], one["difference"], one["method"]) == (None, None, 0.0, "none")
    assert main(["compare", str(a), str(a)]) == 0
    assert "nothing can be said about chance from so few rows\nno row came out differently\n" in capsys.readouterr().out


def test_the_command_refuses_in_one_sentence(runs, tmp_path, capsys):
    assert main(["compare", str(runs[0]), str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("nanovllm compare: ")
    assert main(["compare", *map(str, runs), "--flips", "-1"]) == 2
