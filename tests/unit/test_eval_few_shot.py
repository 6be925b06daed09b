"""Which rows become examples, and how they stand in a prompt. A row is never its own example."""

import json

import pytest
from eval_shop import EvalLLM, EvalShop

from nanovllm import ConfigError

TEXT = 'prompt: {template: "Q: {{ q }}\\nA:", chat: %s%s}\neval: {task: generate, target: a, few_shot: {num: 2%s}%s}\n'
TRAIN = [{"q": f"t{n}", "a": f"x{n}"} for n in range(6)]


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRAIN))
    return EvalShop(tmp_path)


def prompts(shop, rows, few_shot="", rest="", chat="false", prompt="", **options):
    llm = EvalLLM(window=1, **options)
    assert shop.run(TEXT % (chat, prompt, few_shot, rest), rows, llm) == 0
    return [text for _, text, _ in llm.seen]


def questions(prompt):
    """The questions of a raw prompt's examples."""
    return [part.split("\n")[0].removeprefix("Q: ") for part in prompt.split("\n\n")[:-1]]


def test_the_first_rows_of_another_file_stand_before_the_question(shop):
    (prompt,) = prompts(shop, [{"q": "own", "a": "z"}], ", input: train.jsonl, sampler: first")
    assert prompt == "Q: t0\nA: x0\n\nQ: t1\nA: x1\n\nQ: own\nA:"


def test_a_row_that_is_in_both_files_is_never_its_own_example(shop):
    rows = [{"q": "t0", "a": "x0"}, {"q": " T1 ", "a": "other", "id": "copy"}, {"q": "own", "a": "z"}]
    first, second, third = prompts(shop, rows, ", input: train.jsonl, sampler: first")
    assert questions(first) == ["t1", "t2"]
    assert questions(second) == ["t0", "t2"]  # the same question by another id, spelling and answer
    assert questions(third) == ["t0", "t1"]


@pytest.mark.parametrize("sampler", ["sampler: first", "sampler: random", "sampler: random, fixed: false"])
def test_examples_from_the_own_file_leave_the_row_out(shop, sampler):
    for row, prompt in zip(TRAIN, prompts(shop, TRAIN, f", {sampler}"), strict=True):
        chosen = questions(prompt)
        assert len(set(chosen)) == 2
        assert row["q"] not in chosen


def test_all_rows_share_their_examples_unless_they_are_among_them(shop):
    rows = [{"q": f"own{n}", "a": "z"} for n in range(5)]
    shared = {prompt.rsplit("\n\n", 1)[0] for prompt in prompts(shop, rows, ", input: train.jsonl")}
    assert len(shared) == 1
    drawn = {prompt.rsplit("\n\n", 1)[0] for prompt in prompts(shop, rows, ", input: train.jsonl, fixed: false")}
    assert len(drawn) > 1


def test_the_random_choice_follows_the_seed_and_not_the_order_of_the_file(shop):
    rows = [{"q": "own", "a": "z"}]
    for fixed in ("true", "false"):
        few_shot = f", input: train.jsonl, fixed: {fixed}, seed: "
        chosen = {seed: prompts(shop, rows, few_shot + str(seed))[0] for seed in range(5)}
        assert len(set(chosen.values())) > 1
        (shop.folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reversed(TRAIN)))
        assert {seed: prompts(shop, rows, few_shot + str(seed))[0] for seed in range(5)} == chosen
    # recorded: a change here changes the prompts of every evaluation with examples
    assert questions(prompts(shop, rows, ", input: train.jsonl, seed: 1234")[0]) == RECORDED


RECORDED = ["t5", "t3"]


def test_an_examples_place_does_not_change_when_rows_are_added(shop):
    one = prompts(shop, [{"q": "own", "a": "z"}], ", input: train.jsonl, fixed: false")
    two = prompts(shop, [{"q": "before", "a": "y"}, {"q": "own", "a": "z"}], ", input: train.jsonl, fixed: false")
    assert one[0] == two[1]


def test_delimiters_description_and_the_examples_own_templates(shop):
    few_shot = ', input: train.jsonl, sampler: first, delimiter: "\\n--\\n", target_delimiter: "=", '
    few_shot += 'template: "{{ q }}", target: "<{{ a }}>"'
    (prompt,) = prompts(shop, [{"q": "own", "a": "z"}], few_shot, ', description: "Solve.\\n"')
    assert prompt == "Solve.\nt0=<x0>\n--\nt1=<x1>\n--\nQ: own\nA:"


def test_the_beginning_of_the_answer_stands_in_examples_too(shop):
    few_shot = ", input: train.jsonl, sampler: first"
    (prompt,) = prompts(shop, [{"q": "own", "a": "z"}], few_shot, ', gen_prefix: "It is"')
    assert prompt == "Q: t0\nA: It is x0\n\nQ: t1\nA: It is x1\n\nQ: own\nA: It is"


def test_in_a_chat_examples_are_turns(shop):
    few_shot = ", input: train.jsonl, sampler: first"
    rows = [{"q": "own", "a": "z"}]
    (prompt,) = prompts(shop, rows, few_shot, chat="true", prompt=", system: Be brief")
    assert prompt == (
        "<system>Be brief<user>Q: t0\nA:<assistant>x0<user>Q: t1\nA:<assistant>x1<user>Q: own\nA:<assistant>"
    )
    (prompt,) = prompts(shop, rows, few_shot, ', gen_prefix: "It is"', chat="true")
    assert prompt == (
        "<user>Q: t0\nA:<assistant>It is x0<user>Q: t1\nA:<assistant>It is x1<user>Q: own\nA:<assistant>It is"
    )


def test_in_a_chat_examples_may_be_one_text(shop):
    few_shot = ", input: train.jsonl, sampler: first, as: text"
    (prompt,) = prompts(shop, [{"q": "own", "a": "z"}], few_shot, chat="true")
    assert prompt == "<user>Q: t0\nA: x0\n\nQ: t1\nA: x1\n\nQ: own\nA:<assistant>"


def test_a_completion_ends_where_the_next_example_would_begin(shop):
    llm = EvalLLM()
    text = TEXT % ("false", "", ", input: train.jsonl", "")
    shop.run(text, [{"q": "own", "a": "z"}], llm)
    assert list(llm.seen[0][2].stop) == ["\n\n"]
    llm = EvalLLM()
    shop.run("sampling: {stop: ['Q:']}\n" + text, [{"q": "own", "a": "z"}], llm)
    assert list(llm.seen[0][2].stop) == ["Q:"]


def test_answers_of_choice_rows_are_the_choices_text(shop):
    train = [{"q": "t", "options": ["no", "yes"], "gold": "B"}]
    (shop.folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    text = 'prompt: {template: "{{ q }}:", chat: false}\n'
    text += "eval: {task: multiple_choice, choices: options, target: gold, few_shot: {num: 1, input: train.jsonl}}\n"
    llm = EvalLLM()
    assert shop.run(text, [{"q": "own", "options": ["u", "v"], "gold": 0}], llm) == 0
    assert llm.scored == [("t: yes\n\nown:", [" u", " v"])]


def test_rows_that_cannot_be_examples_are_passed_over(shop):
    with (shop.folder / "train.jsonl").open("a") as file:
        file.write('{"q": "no answer"}\nbroken\n')
    assert prompts(shop, [{"q": "own", "a": "z"}], ", input: train.jsonl, seed: 3")


@pytest.mark.parametrize(
    ("few_shot", "rows", "message"),
    [
        (", input: none.jsonl", [{"q": "own", "a": "z"}], "eval.few_shot.input: there is no file 'none.jsonl'"),
        (", input: '-'", [{"q": "own", "a": "z"}], "eval.few_shot.input is '-', expected a file"),
        (", target: wrong, input: train.jsonl", [{"q": "own", "a": "z"}], "the first that cannot be used: "),
        ("", TRAIN[:2], "2 examples are asked for beside the row itself, and there are 2 different ones"),
        (", as: chat", TRAIN, "eval.few_shot.as: turns of a chat need prompt.chat: true"),
        (", sampler: last", TRAIN, "eval.few_shot.sampler is 'last', expected one of random, first"),
        (", nun: 3", TRAIN, "eval.few_shot.nun is not a known key: did you mean 'num'?"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model(shop, few_shot, rows, message):
    def no_model(job):
        raise AssertionError("the model was loaded")

    from jobs.run import run_job

    with pytest.raises(ConfigError) as caught:
        run_job(shop.load(TEXT % ("false", "", few_shot, ""), rows), no_model)
    assert message in str(caught.value)


def test_a_conversation_cannot_have_examples(shop):
    rows = [{"messages": [{"role": "user", "content": "hi"}], "a": "z"}]
    text = "eval: {task: generate, target: a, few_shot: {num: 1, input: train.jsonl, template: '{{ q }}'}}\n"
    assert shop.run(text, rows) == 3
    assert "eval.few_shot needs questions as text" in shop.lines()[0]["error"]["message"]


def test_ids_cannot_have_a_beginning_of_the_answer(shop):
    text = "eval: {task: generate, target: a, gen_prefix: So}\n"
    assert shop.run(text, [{"prompt_token_ids": [1, 2], "a": "z"}]) == 3
    assert "need a prompt that is text" in shop.lines()[0]["error"]["message"]
