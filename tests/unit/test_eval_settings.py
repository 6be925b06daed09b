"""The `eval:` section: all that can be refused is refused before the model, by line, key and cure."""

import re

import pytest
from eval_shop import EvalShop

from jobs.run import run_job
from nanovllm import ConfigError

GENERATE = "eval: {task: generate, target: a"
LEAD = "prompt: {template: '{{ q }}', chat: false}\n"  # line 5; `eval:` is line 6


@pytest.fixture
def shop(tmp_path):
    return EvalShop(tmp_path)


def no_model(job):
    raise AssertionError("the model was loaded")


def refusal(shop, text, lead=LEAD):
    with pytest.raises(ConfigError) as caught:
        run_job(shop.load(lead + text, [{"q": "one", "a": "1"}]), no_model)
    assert not (shop.out / "manifest.json").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eval: {target: a}", "line 6: eval.task is missing: it is one of generate, multiple_choice"),
        ("eval: {task: chooze}", "line 6: eval.task is 'chooze', expected one of generate, multiple_choice"),
        ("eval: yes please", "line 6: eval is 'yes please', expected keys with values"),
        ("eval:\n  task: generate\n  taget: a", "line 8: eval.taget is not a known key: did you mean 'target'?"),
        ("eval:\n  task: generate", "eval.target is missing: name the column that holds the right answer"),
        ("eval: {task: multiple_choice, target: a}", "eval.choices is missing"),
        ("eval: {task: score}", "eval.choices is missing"),
        ("eval:\n  task: generate\n  target: a\n  metrics: [acc]", "line 9: eval.metrics has no meaning"),
        ("eval: {task: rank, choices: c, target: a, scorers: [f1]}", "eval.scorers has no meaning for task rank"),
        ("eval: {task: perplexity, few_shot: {num: 1}}", "eval.few_shot has no meaning for task perplexity"),
        ("eval:\n  task: multiple_choice\n  choices: c\n  target: a\n  metrics: [acc_nrom]", "line 10: eval.metrics"),
        ("eval: {task: multiple_choice, choices: c, target: a, metrics: [acc_nrom]}", "did you mean 'acc_norm'?"),
        ("eval: {task: generate, target: '{{ a'}", "eval.target, line 1 of the template"),
        ("eval:\n  task: generate\n  target: '{{ a'", "line 8: eval.target"),
        ("eval: {task: multiple_choice, choices: ['{% x %}'], target: a}", "line 6: eval.choices"),
        ("eval: {task: multiple_choice, choices: '{{ c }}', target: a}", "expected a column's name, or a list"),
        (GENERATE + ", extract: [{regex: '('}]}", "line 6: eval.extract"),
        ("eval:\n  task: generate\n  target: a\n  scorers: [exact_mach]", "line 9: eval.scorers"),
        (GENERATE + ", scorers: [exact_mach]}", "did you mean 'exact_match'?"),
        (GENERATE + ", scorers: [f1, f1]}", "two scorers are called 'f1'"),
        (GENERATE + ", scorers: [{python: 'os:getcwd'}]}", "allow_code"),
        (GENERATE + ", strip_thinking: [x]}", "eval.strip_thinking is ['x'], expected true, false"),
        (GENERATE + ", vote: most}", "eval.vote is 'most', expected one of majority"),
        ("eval:\n  task: generate\n  target: a\n  vote: majority", "line 9: eval.vote: one sample is no vote: set"),
        (GENERATE + ", pass_at_k: [5]}", "eval.pass_at_k: 5 samples are asked for"),
        (
            "sampling: {n: 2, temperature: 1}\n" + GENERATE + ", pass_at_k: [2], scorers: [bleu, exact_match]}",
            "line 7: eval.pass_at_k counts answers to which the first scorer gives 1, and the first is 'bleu'",
        ),
        ("eval: {task: rank, choices: '{% if a %}b{% endif %}', target: a}", "expected a column's name, or a list"),
        (GENERATE + ", maj_at_k: [0]}", "eval.maj_at_k is 0, expected a list of numbers"),
        (GENERATE + ", gate: {}}", "eval.gate is {}, expected metrics with conditions"),
        ("eval:\n  task: generate\n  target: a\n  gate: {exact_macth: '>= 1'}", "line 9: eval.gate: there will be"),
        (GENERATE + ", gate: {exact_macth: '>= 1'}}", "did you mean 'exact_match'?"),
        ("eval: {task: score, choices: c, gate: {acc: '>= 1'}}", "no metric 'acc': task score has none"),
        (GENERATE + ", format: lm-eval}", "eval.format is 'lm-eval', expected one of lm_eval"),
        ("sampling: {n: 3}\n" + GENERATE + "}", "sampling.n: an evaluation is greedy unless told otherwise"),
        ("on_overlong: truncate_right\neval: {task: rank, choices: c, target: a}", "truncate_right would cut what"),
    ],
)
def test_refusals_name_line_key_and_cure(shop, text, message):
    assert message in refusal(shop, text)


def test_chats_that_make_no_sense_are_refused(shop):
    chat = "prompt: {template: '{{ q }}'}\n"
    assert "perplexity is that of plain text: set prompt.chat: false" in refusal(shop, "eval: {task: perplexity}", chat)
    text = "eval: {task: generate, target: a, description: Solve}"
    assert "in a chat, write it into prompt.system" in refusal(shop, text, chat)


def test_a_whole_file_must_be_text(shop):
    said = refusal(shop, "eval: {task: perplexity, whole_file: true}")
    assert "eval.whole_file reads texts: name a .txt file" in said


def test_a_file_of_examples_that_cannot_be_read_is_refused(shop):
    (shop.folder / "train.xml").write_text("")
    text = "eval: {task: generate, target: a, few_shot: {num: 1, input: train.xml}}"
    assert "files named '.xml' are not read" in refusal(shop, text)


def test_settings_stand_in_the_manifest_as_resolved(shop):
    job = shop.load(LEAD + "eval: {task: multiple_choice, choices: [x, 2], target: a, few_shot: {num: 2}}\n")
    values = job.as_json()["eval"]
    assert (values["choices"], values["metrics"], values["target_delimiter"]) == (["x", "2"], ["acc", "acc_norm"], " ")
    assert values["few_shot"] == {
        "num": 2, "input": [], "sampler": "random", "seed": 0, "fixed": True, "as": None, "template": None,
        "target": None, "delimiter": "\n\n", "target_delimiter": " ",
    }  # fmt: skip
    assert shop.load("").as_json()["eval"] is None


def test_an_output_path_is_short_and_follows_no_link(shop, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "job.yaml").write_text("model: m\ninput: ../in.jsonl\noutput: ../runs/./x\n")
    (tmp_path / "in.jsonl").write_text("")
    from jobs.job_file import load_job

    assert load_job(tmp_path / "configs" / "job.yaml").output == tmp_path / "runs" / "x"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "configs" / "job.yaml").write_text("model: m\ninput: ../in.jsonl\noutput: ../link/x\n")
    assert load_job(tmp_path / "configs" / "job.yaml").output == tmp_path / "link" / "x"


def test_a_gate_on_an_earlier_run_is_looked_at_before_the_model(shop):
    text = GENERATE + ", gate: {no_worse_than: {run: %s, metric: exact_match}}}"
    assert "eval.gate.no_worse_than.run: there is no directory 'nowhere'" in refusal(shop, text % "nowhere")
    (shop.folder / "empty").mkdir()
    assert re.search("no_worse_than.run: .*empty is not the directory of an evaluation", refusal(shop, text % "empty"))
    text = GENERATE + ", gate: {no_worse_than: [{run: x, metric: exact_macth}]}}"
    assert "there will be no metric 'exact_macth': did you mean 'exact_match'?" in refusal(shop, text)
