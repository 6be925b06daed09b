"""Tasks over given continuations: what is asked, and how likelihoods become scores. Numbers by hand."""

import pytest
from eval_shop import EvalLLM, EvalShop

from jobs.job_file import load_job
from jobs.run import run_job
from nanovllm import RequestError, ScoreOutput

PLAIN = 'prompt: {template: "{{ q }}", chat: false}\n'
MC = (
    'prompt: {template: "Q: {{ q }}\\nA:", chat: false}\n'
    "eval: {task: multiple_choice, choices: options, target: gold%s}\n"
)
# By sum the first is the likeliest, by character the second, by byte the third (its two characters have four bytes),
# by token, of which the fake has one for each character of delimiter and choice, the second again.
LIKELIHOODS = {"a": -1.0, "bbbb": -2.0, "éé": -1.6}
ROWS = [{"q": "one", "options": ["a", "bbbb", "éé"], "gold": 1}]


@pytest.fixture
def shop(tmp_path):
    return EvalShop(tmp_path)


def test_each_accuracy_measures_as_lm_eval_does(shop):
    metrics = ", metrics: [acc, acc_norm, acc_bytes, acc_tokens]"
    llm = EvalLLM(likelihoods=LIKELIHOODS)
    assert shop.run(MC % metrics, ROWS, llm) == 0
    assert llm.scored == [("Q: one\nA:", [" a", " bbbb", " éé"])]
    (line,) = shop.lines()
    assert line["scores"] == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 0.0, "acc_tokens": 1.0}
    assert (line["text"], line["extracted"], line["target"]) == ("a", 0, 1)
    assert line["choices"] == [
        {"text": "a", "logprob": -1.0, "num_tokens": 2, "is_greedy": True},
        {"text": "bbbb", "logprob": -2.0, "num_tokens": 5, "is_greedy": False},
        {"text": "éé", "logprob": -1.6, "num_tokens": 3, "is_greedy": True},
    ]
    assert line["prompt"] == "Q: one\nA:"
    assert line["prompt_hash"] == "6c05b3b75591faec"
    assert (line["finish_reason"], line["error"], line["group"]) == ("stop", None, None)
    assert list(line)[-1] == "row"


def test_mutual_information_takes_away_what_a_choice_is_worth_alone(shop):
    rows = [{"q": "one", "options": ["a", "b"], "gold": 0}]
    llm = EvalLLM(likelihoods={"a": -4.0, "b": -3.0})
    original = llm._score

    def score(request):
        scored = original(request)
        if not request.prompt:
            scored.outputs[1].logprobs = [-2.0]
        return scored

    llm._score = score
    assert shop.run(MC % ", metrics: [acc, acc_mutual_info]", rows, llm) == 0
    # a: -4 - -10 = 6; b: -3 - -2 = -1
    assert shop.values() == {"acc": 0.0, "acc_mutual_info": 1.0}
    assert sorted(llm.scored, key=str) == [("", [" a", " b"]), ("Q: one\nA:", [" a", " b"])]


@pytest.mark.parametrize(
    ("target", "gold"),
    [(2, 2), ("C", 2), ("c", 2), ("2", 2), ("blue", 2), (" blue ", 2), ("green", 1), ([0, 2], 2), (["red", "B"], 1)],
)
def test_a_target_is_an_index_a_letter_a_text_or_a_list(shop, target, gold):
    rows = [{"q": "one", "options": ["red", "green", "blue"], "gold": target}]
    likely = {["red", "green", "blue"][gold]: -1.0}
    assert shop.run(MC % "", rows, EvalLLM(likelihoods=likely)) == 0
    assert shop.lines()[0]["scores"] == {"acc": 1.0, "acc_norm": 1.0}


def test_a_text_that_is_a_choice_goes_before_letter_and_digit(shop):
    rows = [{"q": "x", "options": ["B", "A"], "gold": "A"}, {"q": "y", "options": ["1", "0"], "gold": "0"}]
    assert shop.run(MC % ", metrics: [acc]", rows, EvalLLM(likelihoods={"A": -0.5, "0": -0.5})) == 0
    assert shop.values() == {"acc": 1.0}


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        (
            {"options": ["a", "b"]},
            "missing_column",
            "eval.target needs the column 'gold'; the row's columns are: q, options",
        ),
        ({"options": ["a", "b"], "gold": 2}, "invalid_target", "eval.target is 2, which is no text, index or letter"),
        ({"options": ["a", "b"], "gold": -1}, "invalid_target", "eval.target is -1"),
        ({"options": ["a", "b"], "gold": None}, "missing_value", "eval.target: the column 'gold' is null"),
        ({"options": ["a", "b"], "gold": []}, "invalid_target", "eval.target is an empty list"),
        (
            {"options": ["a", ""], "gold": 0},
            "invalid_choices",
            "eval.choices must give a list of texts, none of them empty",
        ),
        ({"options": "a", "gold": 0}, "invalid_choices", "eval.choices must give a list of texts"),
        ({"gold": 0}, "missing_column", "eval.choices needs the column 'options'"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error_row_and_counts_as_wrong(shop, row, code, message):
    good = {"q": "one", "options": ["a", "bb"], "gold": 0}
    assert shop.run(MC % ", metrics: [acc]", [good, {"q": "two", **row}]) == 3
    error = shop.lines()[1]["error"]
    assert error["code"] == code
    assert message in error["message"]
    assert error["message"].startswith(f"{shop.folder / 'in.jsonl'}, line 2: ")
    assert shop.lines()[1]["scores"] == {}
    assert shop.values() == {"acc": 0.5}
    assert shop.scores()["rows"] == {"total": 2, "scored": 1, "errors": 1, "skipped": 0}


def test_a_pair_that_the_engine_refuses_makes_an_error_row(shop):
    llm = EvalLLM()
    original = llm._score

    def score(request):
        scored = original(request)
        if "two" in request.prompt:
            scored.outputs[1] = ScoreOutput(error=RequestError("prompt_too_long", "too long"))
        return scored

    llm._score = score
    rows = [{"q": q, "options": ["a", "bb"], "gold": 0} for q in ("one", "two")]
    assert shop.run(MC % ", metrics: [acc]", rows, llm) == 3
    assert [line["error"] and line["error"]["code"] for line in shop.lines()] == [None, "prompt_too_long"]
    # on_overlong: skip takes the row out of the mean
    assert shop.run("on_overlong: skip\n" + MC % ", metrics: [acc]", rows, llm) == 0
    assert shop.values() == {"acc": 1.0}
    assert shop.scores()["rows"] == {"total": 2, "scored": 1, "errors": 0, "skipped": 1}


def test_choices_from_templates_and_from_a_list_in_a_csv_cell(shop):
    text = PLAIN + 'eval: {task: multiple_choice, choices: ["{{ x }}!", no], target: "{{ t }}"}\n'
    llm = EvalLLM()
    assert shop.run(text, [{"q": "one", "x": "ja", "t": "no"}], llm) == 0
    assert llm.scored == [("one", [" ja!", " no"])]
    (shop.folder / "in.csv").write_text('q,options,gold\none,"[""p"", ""qq""]",A\n')
    text = "input: in.csv\n" + MC % ""
    (shop.folder / "job.yaml").write_text(f"model: fake\noutput: csv\nprogress: none\n{text}")
    llm = EvalLLM()
    assert run_job(load_job(shop.folder / "job.yaml"), lambda job: llm) == 0
    assert llm.scored == [("Q: one\nA:", [" p", " qq"])]


def test_a_column_inside_an_object_is_named_with_dots(shop):
    text = PLAIN + "eval: {task: multiple_choice, choices: choices.text, target: key}\n"
    llm = EvalLLM()
    assert shop.run(text, [{"q": "one", "choices": {"text": ["x", "yy"], "label": ["A", "B"]}, "key": "A"}], llm) == 0
    assert llm.scored == [("one", [" x", " yy"])]


def test_another_delimiter_stands_before_choices_and_is_not_measured(shop):
    llm = EvalLLM(likelihoods=LIKELIHOODS)
    assert shop.run(MC % ', target_delimiter: "\\n"', ROWS, llm) == 0
    assert llm.scored == [("Q: one\nA:", ["\na", "\nbbbb", "\néé"])]
    assert shop.lines()[0]["scores"] == {"acc": 0.0, "acc_norm": 1.0}


def test_in_a_chat_choices_follow_the_frame_without_a_delimiter(shop):
    text = 'prompt: {template: "{{ q }}"}\neval: {task: multiple_choice, choices: options, target: gold%s}\n'
    llm = EvalLLM()
    assert shop.run(text % "", ROWS, llm) == 0
    assert llm.scored == [("<user>one<assistant>", ["a", "bbbb", "éé"])]
    llm = EvalLLM()
    assert shop.run(text % ', gen_prefix: "It is"', ROWS, llm) == 0
    assert llm.scored == [("<user>one<assistant>It is", [" a", " bbbb", " éé"])]


def test_rank_gives_the_targets_place(shop):
    text = PLAIN + "eval: {task: rank, choices: options, target: gold}\n"
    rows = [{"q": "one", "options": ["a", "bb", "ccc"], "gold": gold} for gold in (0, 2, [1, 2])]
    assert shop.run(text, rows) == 0
    assert [line["scores"] for line in shop.lines()] == [
        {"reciprocal_rank": 1.0, "hit_at_1": 1.0},
        {"reciprocal_rank": 1 / 3, "hit_at_1": 0.0},
        {"reciprocal_rank": 0.5, "hit_at_1": 0.0},
    ]
    assert shop.values()["hit_at_1"] == pytest.approx(1 / 3)
    assert shop.values()["reciprocal_rank"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)


def test_of_equally_likely_choices_the_first_is_chosen_and_ranks_first(shop):
    text = PLAIN + "eval: {task: rank, choices: options, target: gold}\n"
    assert shop.run(text, [{"q": "one", "options": ["aa", "bb"], "gold": 1}]) == 0
    assert shop.lines()[0]["scores"] == {"reciprocal_rank": 0.5, "hit_at_1": 0.0}
    assert shop.lines()[0]["extracted"] == 0


def test_score_gives_likelihoods_back(shop):
    text = PLAIN + "eval: {task: score, choices: options}\n"
    assert shop.run(text, [{"q": "one", "options": ["a", "bb"]}]) == 0
    (line,) = shop.lines()
    assert [choice["logprob"] for choice in line["choices"]] == [-1.0, -2.0]
    assert (line["scores"], line["target"], line["extracted"]) == ({}, None, 0)
    assert shop.scores()["metrics"] == {}


def test_score_of_the_target_alone_has_perplexity_and_greedy_accuracy(shop):
    text = PLAIN + "eval: {task: score, target: word}\n"
    assert shop.run(text, [{"q": "one", "word": "a"}, {"q": "two", "word": "abc"}]) == 0
    # log likelihoods -1 and -3: exp(2); greedy is what is above -2
    assert shop.values() == {"acc": 0.5, "perplexity": pytest.approx(7.38905609893065)}
    assert shop.scores()["metrics"]["perplexity"]["higher_is_better"] is False


def test_other_kinds_of_rows_have_other_prompts(shop):
    text = "eval: {task: multiple_choice, choices: options, target: gold}\n"
    common = {"options": ["a", "bb"], "gold": 0}
    rows = [
        {"prompt": "plain", **common},
        {"prompt_token_ids": [1, 2, 3], **common},
        {"messages": [{"role": "user", "content": "hi"}], **common},
        {
            "custom_id": "x", "method": "POST", "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": "ho"}]}, **common,
        },
    ]  # fmt: skip
    llm = EvalLLM()
    assert shop.run(text, rows, llm) == 0
    assert sorted(llm.scored, key=str) == sorted(
        [
            ("plain", [" a", " bb"]),
            ({"prompt_token_ids": [1, 2, 3]}, [" a", " bb"]),
            ("<user>hi<assistant>", [" a", " bb"]),
            ("<user>ho<assistant>", [" a", " bb"]),
        ],
        key=str,
    )
    lines = shop.lines()
    assert [line["prompt"] for line in lines] == ["plain", None, "<user>hi<assistant>", "<user>ho<assistant>"]
    assert lines[3]["id"] == "x"
    assert len({line["prompt_hash"] for line in lines}) == 4
