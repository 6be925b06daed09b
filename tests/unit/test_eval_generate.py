"""The task generate: what is extracted and compared, votes and counts over samples, and the means of rows."""

import pytest
from eval_shop import EvalLLM, EvalShop

TEXT = 'prompt: {template: "{{ q }}", chat: false}\n%seval: {task: generate, target: a%s}\n'


@pytest.fixture
def shop(tmp_path):
    return EvalShop(tmp_path)


def test_an_answer_is_extracted_and_compared_with_the_extracted_target(shop):
    steps = ", extract: [{regex: '#### (-?[0-9]+)', which: last}], target_extract: [{regex: '#### (.*)'}]"
    rows = [{"q": "one", "a": "2 + 2 #### 4"}, {"q": "two", "a": "#### 5"}, {"q": "six", "a": "#### 6"}]
    llm = EvalLLM({"one": "#### 3 no: #### 4", "two": "#### 7", "six": "nothing"})
    assert shop.run(TEXT % ("", steps), rows, llm) == 0
    found = [(line["target"], line["extracted"], line["scores"]) for line in shop.lines()]
    assert found == [
        ("4", "4", {"exact_match": 1.0}),
        ("5", "7", {"exact_match": 0.0}),
        ("6", None, {"exact_match": 0.0}),
    ]
    assert shop.values()["exact_match"] == pytest.approx(1 / 3)
    assert shop.scores()["metrics"]["exact_match"]["n"] == 3


def test_without_steps_blanks_around_an_answer_do_not_count(shop):
    assert shop.run(TEXT % ("", ""), [{"q": "one", "a": "4"}], EvalLLM({"one": " 4\n"})) == 0
    assert shop.values() == {"exact_match": 1.0}


def test_thinking_is_taken_out_first(shop):
    llm = EvalLLM({"one": "<think>maybe 5</think>4"})
    assert shop.run(TEXT % ("", ", strip_thinking: true"), [{"q": "one", "a": "4"}], llm) == 0
    assert (shop.lines()[0]["extracted"], shop.lines()[0]["text"]) == ("4", "<think>maybe 5</think>4")
    llm = EvalLLM({"one": "[[5]]4"})
    assert shop.run(TEXT % ("", ", strip_thinking: ['[[', ']]']"), [{"q": "one", "a": "4"}], llm) == 0
    assert shop.lines()[0]["extracted"] == "4"


def test_the_best_of_several_accepted_answers_counts(shop):
    rows = [{"q": "one", "a": ["four", "4"]}]
    assert shop.run(TEXT % ("", ""), rows, EvalLLM({"one": "4"})) == 0
    assert shop.values() == {"exact_match": 1.0}
    assert shop.lines()[0]["target"] == ["four", "4"]


def test_several_scorers_each_have_a_metric(shop):
    scorers = ", scorers: [exact_match, includes, {numeric: {tolerance: 0.5}}]"
    assert shop.run(TEXT % ("", scorers), [{"q": "one", "a": "4"}], EvalLLM({"one": "about 4.2"})) == 0
    assert shop.values() == {"exact_match": 0.0, "includes": 1.0, "numeric": 1.0}


SAMPLED = "sampling: {n: 4, temperature: 0.8}\n"


def test_a_row_with_several_samples_counts_once_by_its_mean(shop):
    rows = [{"q": "one", "a": "4"}, {"q": "two", "a": "5"}]
    llm = EvalLLM({"one": ["4", "4", "4", "3"], "two": ["1", "2", "3", "5"]})
    assert shop.run(TEXT % (SAMPLED, ""), rows, llm) == 0
    assert [line["scores"]["exact_match"] for line in shop.lines()] == [1, 1, 1, 0, 0, 0, 0, 1]
    assert shop.values() == {"exact_match": 0.5}
    assert shop.scores()["metrics"]["exact_match"]["n"] == 2


def test_a_vote_is_the_rows_answer(shop):
    rows = [{"q": "one", "a": "4"}, {"q": "two", "a": "5"}]
    llm = EvalLLM({"one": ["4", "3", "4", "2"], "two": ["1", "1", "5", "5"]})
    assert shop.run(TEXT % (SAMPLED, ", vote: majority"), rows, llm) == 0
    assert [line["voted"] for line in shop.lines()] == ["4"] * 4 + ["1"] * 4  # of a tie the first
    assert [line["extracted"] for line in shop.lines()][:4] == ["4", "3", "4", "2"]
    assert shop.values() == {"exact_match": 0.5}


def test_pass_and_maj_at_k(shop):
    rows = [{"q": "one", "a": "4"}, {"q": "two", "a": "5"}]
    llm = EvalLLM({"one": ["3", "4", "4", "2"], "two": ["1", "2", "3", "5"]})
    assert shop.run(TEXT % (SAMPLED, ", pass_at_k: [1, 2], maj_at_k: [1, 3]"), rows, llm) == 0
    # pass@2 of 2 right among 4: 1 - (2 over 2) / (4 over 2) = 5/6; of 1 right: 1 - (3 over 2) / 6 = 1/2
    scores = shop.lines()[0]["scores"]
    assert scores == {
        "exact_match": 0.0, "pass@1": 0.5, "pass@2": pytest.approx(5 / 6), "maj@1": 0.0, "maj@3": 1.0,
    }  # fmt: skip
    assert shop.values() == {
        "exact_match": pytest.approx(3 / 8), "pass@1": pytest.approx(3 / 8), "pass@2": pytest.approx(2 / 3),
        "maj@1": 0.0, "maj@3": 0.5,
    }  # fmt: skip


def test_a_vote_of_the_first_samples_is_as_good_as_the_first_scorer_says(shop, monkeypatch):
    (shop.folder / "far_off.py").write_text("def distance(text, target):\n    return abs(len(text) - len(target))\n")
    monkeypatch.syspath_prepend(str(shop.folder))
    scorers = ", allow_code: true, scorers: [{python: {function: 'far_off:distance', higher_is_better: false}}]"
    llm = EvalLLM({"one": ["444", "444", "4", "4"]})
    assert shop.run(TEXT % (SAMPLED, scorers + ", maj_at_k: [3]"), [{"q": "one", "a": "4"}], llm) == 0
    metric = shop.scores()["metrics"]["maj@3"]
    assert (metric["value"], metric["higher_is_better"]) == (2.0, False)


def test_a_row_with_fewer_samples_than_are_counted_is_an_error_row(shop):
    rows = [{"q": "one", "a": "4", "sampling": {"n": 2}}]
    assert shop.run(TEXT % (SAMPLED, ", pass_at_k: 3"), rows) == 3
    assert shop.lines()[0]["error"]["code"] == "too_few_samples"


def test_groups_have_scores_of_their_own_and_cluster_the_error(shop):
    rows = [{"q": f"{group}{n}", "a": "4", "kind": group} for group, n in (("a", 1), ("b", 2), ("a", 3), ("a", 4))]
    llm = EvalLLM({"a": "4", "b": "5"})
    assert shop.run(TEXT % ("", ", group: kind"), rows, llm) == 0
    scores = shop.scores()
    assert {group: metrics["exact_match"]["value"] for group, metrics in scores["groups"].items()} == {"a": 1, "b": 0}
    assert [metrics["exact_match"]["n"] for metrics in scores["groups"].values()] == [3, 1]
    assert scores["metrics"]["exact_match"]["value"] == 0.75
    assert [line["group"] for line in shop.lines()] == ["a", "b", "a", "a"]
    # of independent rows (1/4) / 4, and 1 / 4^2 for each of the six pairs within a, whose errors are 1/4 and 1/4
    assert scores["metrics"]["exact_match"]["stderr"] == pytest.approx((1 / 16 + 6 / 16 / 16) ** 0.5)
    assert scores["metrics"]["exact_match"]["method"] == "clustered wilson"


def test_error_rows_count_as_wrong_and_keep_their_group(shop):
    rows = [{"q": "one", "a": "4", "kind": "x"}, {"a": "4", "kind": "y"}, {"q": "three", "kind": "x"}]
    assert shop.run(TEXT % ("limits: {max_errors: 2}\n", ", group: kind"), rows, EvalLLM({"one": "4"})) == 0
    lines = shop.lines()
    assert [line["error"] and line["error"]["code"] for line in lines] == [None, "missing_column", "missing_column"]
    assert [line["group"] for line in lines] == ["x", "y", "x"]
    assert [line["scores"] for line in lines][1:] == [{}, {}]
    scores = shop.scores()
    assert scores["rows"] == {"total": 3, "scored": 1, "errors": 2, "skipped": 0}
    assert scores["metrics"]["exact_match"]["value"] == pytest.approx(1 / 3)
    assert scores["groups"]["x"]["exact_match"]["value"] == 0.5


def test_a_target_that_a_scorer_cannot_use_keeps_the_answer(shop):
    assert shop.run(TEXT % ("", ""), [{"q": "one", "a": {"x": 1}}], EvalLLM({"one": "4"})) == 3
    (line,) = shop.lines()
    assert (line["text"], line["finish_reason"], line["scores"]) == ("4", "length", {})
    assert line["error"]["code"] == "bad_target"
    assert shop.values() == {"exact_match": 0.0}


def test_sampling_is_greedy_and_long_enough_unless_told_otherwise(shop):
    llm = EvalLLM(model_defaults={"temperature": 0.6, "top_p": 0.9})
    shop.run(TEXT % ("", ""), [{"q": "one", "a": "4"}], llm)
    params = llm.seen[0][2]
    assert (params.temperature, params.max_tokens, params.top_p) == (0.0, 256, 1.0)
    llm = EvalLLM()
    shop.run(TEXT % ("sampling: {max_tokens: 8, temperature: 0.5}\n", ""), [{"q": "one", "a": "4"}], llm)
    params = llm.seen[0][2]
    assert (params.temperature, params.max_tokens) == (0.5, 8)


def test_rows_of_an_openai_batch_are_evaluated_too(shop):
    body = {"messages": [{"role": "user", "content": "one"}], "max_tokens": 3, "metadata": {"answer": "4"}}
    rows = [{"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions", "body": body}]
    text = "eval: {task: generate, target: body.metadata.answer}\n"
    llm = EvalLLM({"one": "4"})
    assert shop.run(text, rows, llm) == 0
    (line,) = shop.lines()
    assert (line["id"], line["target"], line["scores"]) == ("c1", "4", {"exact_match": 1.0})
    assert line["prompt"] == "<user>one<assistant>"
    assert llm.seen[0][2].max_tokens == 3


def test_scores_name_data_prompts_targets_and_settings(shop):
    assert shop.run(TEXT % ("", ""), [{"q": "one", "a": "4"}], EvalLLM({"one": "4"})) == 0
    scores = shop.scores()
    import hashlib

    assert scores["hashes"]["data"] == hashlib.sha256((shop.folder / "in.jsonl").read_bytes()).hexdigest()
    assert (scores["schema_version"], scores["name"], scores["task"], scores["model"]) == (1, "job", "generate", "fake")
    assert scores["eval"]["target"] == "a"
    first = scores["hashes"]
    shop.run(TEXT % ("", ""), [{"q": "one", "a": "5"}], EvalLLM({"one": "4"}))
    other = shop.scores()["hashes"]
    assert [first[key] == other[key] for key in ("data", "prompts", "targets")] == [False, True, False]
    assert "score:   exact_match  0.0000" in shop.said


def test_bleu_is_that_of_the_whole_corpus(shop):
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (extra metrics)")
    texts = {"one": "the cat sat on the mat today", "two": "a dog ran over there", "six": "it rains again and again"}
    targets = ["the cat sat on a mat today", "a dog ran over to us", "it rained again and again"]
    rows = [{"q": q, "a": a} for q, a in zip(texts, targets, strict=True)]
    assert shop.run(TEXT % ("", ", scorers: [bleu]"), rows, EvalLLM(texts)) == 0
    expected = sacrebleu.corpus_bleu(list(texts.values()), [targets]).score
    assert shop.values()["bleu"] == pytest.approx(expected)
    assert shop.values()["bleu"] != pytest.approx(sum(line["scores"]["bleu"] for line in shop.lines()) / 3)
    assert shop.scores()["metrics"]["bleu"]["method"] == "bootstrap"


CATS = ["the cat sat on the mat today", "the cat lay on the mat today", "the cat lay on the mat today"]
DOGS = ["a dog ran over there", "a dog ran over there", "a dog ran over to us"]
ANIMALS = [{"q": "one", "a": "the cat sat on a mat today"}, {"q": "two", "a": "a dog ran over to us"}]


def corpus_bleu(*pairs):
    import sacrebleu

    return pytest.approx(sacrebleu.corpus_bleu([text for text, _ in pairs], [[row["a"] for _, row in pairs]]).score)


def test_bleu_is_that_of_the_voted_answers_or_of_all_samples(shop):
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (extra metrics)")
    llm, cat, dog = EvalLLM({"one": CATS, "two": DOGS}), *ANIMALS
    sampling = "sampling: {n: 3, temperature: 0.8}\n"
    assert shop.run(TEXT % (sampling, ", scorers: [bleu], vote: majority"), ANIMALS, llm) == 0
    assert shop.values()["bleu"] == corpus_bleu((CATS[1], cat), (DOGS[0], dog))
    assert shop.run(TEXT % (sampling, ", scorers: [bleu]"), ANIMALS, llm) == 0
    assert shop.values()["bleu"] == corpus_bleu(*((text, cat) for text in CATS), *((text, dog) for text in DOGS))
    assert shop.scores()["metrics"]["bleu"]["n"] == 2


def test_bleu_of_groups_is_of_the_same_kind_and_clusters_its_error(shop):
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (extra metrics)")
    answers = {"one": CATS[0], "two": DOGS[0], "six": CATS[1]}
    cat, dog = ANIMALS
    rows = [{**cat, "kind": "cat"}, {**dog, "kind": "dog"}, {**cat, "q": "six", "kind": "cat"}]
    assert shop.run(TEXT % ("", ", scorers: [bleu], group: kind"), rows, EvalLLM(answers)) == 0
    groups = {group: metrics["bleu"] for group, metrics in shop.scores()["groups"].items()}
    assert groups["cat"]["value"] == corpus_bleu((CATS[0], cat), (CATS[1], cat))
    assert (groups["cat"]["n"], groups["dog"]["n"], groups["dog"]["method"]) == (2, 1, "none")
    clustered = shop.scores()["metrics"]["bleu"]
    assert shop.run(TEXT % ("", ", scorers: [bleu]"), rows, EvalLLM(answers)) == 0
    assert shop.values()["bleu"] == clustered["value"]
    assert clustered["stderr"] != shop.scores()["metrics"]["bleu"]["stderr"]
    # whole groups are drawn: the ends are those of one group twice
    assert [clustered["low"], clustered["high"]] == sorted(one["value"] for one in groups.values())
