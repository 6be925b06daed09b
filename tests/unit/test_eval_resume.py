"""An evaluation that is broken off, continued, judged in another way, or started again when it is finished."""

import json

import pytest
from eval_shop import EvalLLM, EvalShop

GENERATE = 'prompt: {template: "{{ q }}", chat: false}\neval: {task: generate, target: a, group: kind%s}\n'
ROWS = [{"q": f"row {n}", "a": str(n % 3), "kind": "even" if n % 2 == 0 else "odd"} for n in range(12)]
ANSWERS = {f"row {n}": f" it is {n % 2}" for n in reversed(range(12))}
CHOICES = (
    'prompt: {template: "{{ q }}", chat: false}\n'
    "eval: {task: multiple_choice, choices: [zero, one, two], target: '{{ a }}', metrics: [acc%s]}\n"
)
FILES = ("results.jsonl", "rows.jsonl", "scores.json")


@pytest.fixture
def shop(tmp_path):
    return EvalShop(tmp_path)


def llm(**options):
    return EvalLLM(ANSWERS, {"one": -1.5}, **options)


def work_of(model):
    return len(model.seen) + len(model.scored)


@pytest.mark.parametrize("text", [GENERATE % "", CHOICES % "", CHOICES % ", acc_mutual_info"])
@pytest.mark.parametrize("after", [3, 5])
def test_a_killed_evaluation_continues_to_the_same_bytes(shop, text, after):
    assert shop.run(text, ROWS, llm(), output="whole") == 0
    shop.interrupted(text, ROWS, after, answers=ANSWERS, likelihoods={"one": -1.5})
    assert not (shop.out / "scores.json").exists()
    model = llm()
    assert shop.run(text, ROWS, model, again=True) == 0
    assert 0 < work_of(model) < 24
    for name in FILES:
        assert shop.bytes(name) == shop.bytes(name, "whole")


def test_rows_in_another_order_of_ending_give_the_same_bytes(shop):
    for output, window in (("whole", 1), ("run", 7)):
        assert shop.run(CHOICES % ", acc_mutual_info", ROWS, llm(window=window), output) == 0
    for name in FILES:
        assert shop.bytes(name) == shop.bytes(name, "whole")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ", extract: [{regex: '[0-9]'}]"),
        ("", ", scorers: [includes, exact_match]"),
        (", strip_thinking: true", ", target_extract: [strip]"),
    ],
)
def test_answers_are_judged_anew_without_generating(shop, before, after):
    assert shop.run(GENERATE % before, ROWS, llm()) == 0
    old = shop.values()
    model = llm()
    assert shop.run(GENERATE % after, ROWS, model, again=True) == 0
    assert work_of(model) == 0
    assert "resumed: 12 rows kept, 0 new" in shop.said
    assert shop.run(GENERATE % after, ROWS, llm(), output="whole") == 0
    for name in FILES:
        assert shop.bytes(name) == shop.bytes(name, "whole")
    assert old != shop.values() or "target_extract" in after


def test_a_corrected_target_is_judged_anew_without_generating(shop):
    assert shop.run(GENERATE % ", scorers: [includes]", ROWS, llm()) == 0
    rows = [{**row, "a": str(n % 2)} for n, row in enumerate(ROWS)]
    model = llm()
    assert shop.run(GENERATE % ", scorers: [includes]", rows, model, again=True) == 0
    assert work_of(model) == 0
    assert shop.values() == {"includes": 1.0}


def test_only_mutual_information_needs_more_of_the_model(shop):
    assert shop.run(CHOICES % ", acc_mutual_info", ROWS, llm()) == 0
    model = llm()
    assert shop.run(CHOICES % ", acc_norm", ROWS, model, again=True) == 0
    assert work_of(model) == 0
    model = llm()
    assert shop.run(CHOICES % ", acc_mutual_info", ROWS, model, again=True) == 0
    assert work_of(model) == 24


def test_a_changed_prompt_is_asked_again(shop):
    assert shop.run(GENERATE % "", ROWS, llm()) == 0
    model = llm()
    text = (GENERATE % "").replace("{{ q }}", "{{ q }}?")
    assert shop.run(text, ROWS, model, again=True) == 0
    assert len(model.seen) == 12


def test_an_answer_whose_target_was_unusable_is_kept(shop):
    rows = [{**ROWS[0], "a": {"x": 1}}, *ROWS[1:]]
    assert shop.run(GENERATE % "", rows, llm()) == 3
    model = llm()
    assert shop.run(GENERATE % "", ROWS, model, again=True) == 0
    assert work_of(model) == 0
    assert shop.scores()["rows"] == {"total": 12, "scored": 12, "errors": 0, "skipped": 0}


GATED = GENERATE % ", extract: [{regex: '[0-9]'}], gate: {exact_match: '>= %s'}"


def test_a_gate_that_fails_gives_exit_code_4_each_time(shop):
    # a row is right where n % 2 == n % 3: n = 0, 1, 6, 7
    assert shop.run(GATED % 0.4, ROWS, llm()) == 4
    assert "(exit code 4)" in shop.said
    assert "exact_match" in shop.said.rsplit("gate: ", 1)[1]
    model = llm()
    assert shop.run(GATED % 0.4, ROWS, model, again=True) == 4
    # another gate on the same scores is another verdict
    assert shop.run(GATED % 0.3, ROWS, model, again=True) == 0
    assert work_of(model) == 0


def test_another_gate_on_a_finished_run_is_in_its_manifest_and_status(shop, models_dir, monkeypatch):
    monkeypatch.setattr("jobs.run.find_model", lambda job: models_dir / "llama-f32")  # so that it is left alone
    assert shop.run(GATED % 0.4, ROWS, llm()) == 4
    before = json.loads(shop.bytes("manifest.json"))
    assert shop.run(GATED % 0.3, ROWS, llm(), again=True) == 0
    assert "gate: exact_match is 0.3333: >= 0.3 holds\n" in shop.said
    after, status = json.loads(shop.bytes("manifest.json")), json.loads(shop.bytes("status.json"))
    assert (after["exit_code"], status["exit_code"]) == (0, 0)
    assert [verdict["holds"] for verdict in after["gate"]] == [True]
    assert after["job"]["eval"]["gate"] == {"exact_match": ">= 0.3"}
    same = [key for key in before if before[key] == after[key]]
    assert sorted(set(before) - set(same)) == ["exit_code", "gate", "job"]
    stamp = (shop.out / "manifest.json").stat().st_mtime_ns
    assert shop.run(GATED % 0.3, ROWS, llm(), again=True) == 0
    assert (shop.out / "manifest.json").stat().st_mtime_ns == stamp


def test_more_error_rows_than_allowed_win_over_the_gate(shop):
    rows = [*ROWS, {"a": "1", "kind": "odd"}]
    assert shop.run(GATED % 0.9, rows, llm()) == 3
    assert "more error rows than allowed" in shop.said
    assert "gate: " in shop.said
    assert shop.run("limits: {max_errors: 1}\n" + GATED % 0.9, rows, llm(), again=True) == 4


def test_the_manifest_says_what_the_gate_said(shop):
    assert shop.run(GATED % 0.4, ROWS, llm()) == 4
    manifest = json.loads(shop.bytes("manifest.json"))
    assert (manifest["status"], manifest["exit_code"]) == ("finished", 4)
    ((verdict),) = manifest["gate"]
    assert (verdict["metric"], verdict["holds"]) == ("exact_match", False)
    assert "gate" not in json.loads(shop.bytes())["eval"]


def test_scores_that_went_missing_are_made_again(shop):
    assert shop.run(GENERATE % "", ROWS, llm()) == 0
    scores = shop.bytes()
    (shop.out / "scores.json").unlink()
    model = llm()
    assert shop.run(GENERATE % "", ROWS, model, again=True) == 0
    assert (work_of(model), shop.bytes()) == (0, scores)


def test_a_gate_compares_with_an_earlier_run_row_by_row(shop):
    assert shop.run(GENERATE % ", scorers: [includes]", ROWS, llm(), output="baseline") == 0
    gate = ", scorers: [includes], gate: {no_worse_than: {run: baseline, metric: includes, margin: %s}}"
    worse = EvalLLM({**ANSWERS, "row 0": "nothing"})
    assert shop.run(GENERATE % gate % 0, ROWS, worse) == 4  # one row of twelve is lost
    assert "0.0833 worse than" in shop.said
    assert shop.run(GENERATE % gate % 0.1, ROWS, worse) == 0
    assert shop.run(GENERATE % gate % 0, ROWS, llm()) == 0


def test_restart_forgets_the_scores(shop):
    assert shop.run(GENERATE % "", ROWS, llm()) == 0
    model = llm()
    assert shop.run("restart: true\n" + GENERATE % "", ROWS, model, again=True) == 0
    assert len(model.seen) == 12
