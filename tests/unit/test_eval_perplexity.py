"""Perplexities of texts, by hand: the fake model has -2 for each character."""

import math

import pytest
from eval_shop import EvalLLM, EvalShop

from jobs.evaluation.comparison import compare_runs
from jobs.job_file import load_job
from jobs.run import run_job
from nanovllm import PerplexityOutput, ScoredRequest


@pytest.fixture
def shop(tmp_path):
    return EvalShop(tmp_path)


def test_perplexities_are_of_all_texts_together(shop):
    assert shop.run("eval: {task: perplexity}\n", [{"prompt": "ab cd"}, {"prompt": "é"}, {"prompt": "xyz"}]) == 0
    # 9 characters make -18 nats; 9 tokens, 4 words, 10 bytes
    assert shop.values() == {
        "token_perplexity": pytest.approx(math.exp(2)),
        "word_perplexity": pytest.approx(math.exp(18 / 4)),
        "byte_perplexity": pytest.approx(math.exp(18 / 10)),
        "bits_per_byte": pytest.approx(1.8 / math.log(2)),
    }
    metric = shop.scores()["metrics"]["word_perplexity"]
    assert (metric["n"], metric["higher_is_better"]) == (3, False)
    assert metric["low"] < metric["value"] < metric["high"]
    first = shop.lines()[0]
    assert (first["logprob"], first["num_tokens"], first["num_words"], first["num_bytes"]) == (-10.0, 5, 2, 5)
    assert (first["scores"], first["prompt"]) == ({}, "ab cd")


def test_an_error_row_is_in_no_perplexity(shop):
    assert shop.run("eval: {task: perplexity}\n", [{"prompt": "ab"}, {"prompt": ""}, {"p": 1}]) == 3
    assert shop.values()["token_perplexity"] == pytest.approx(math.exp(2))
    assert shop.scores()["rows"] == {"total": 3, "scored": 1, "errors": 2, "skipped": 0}


class IdsLLM(EvalLLM):
    """Scores token ids too: -5 for each but the first."""

    def _score(self, request):
        if isinstance(request.prompt, str):
            return super()._score(request)
        return ScoredRequest(request, [], PerplexityOutput([-5.0] * (len(request.prompt["prompt_token_ids"]) - 1)))


def test_a_text_of_token_ids_counts_for_tokens_alone(shop):
    rows = [{"prompt": "abcd"}, {"prompt_token_ids": [1, 2, 3, 4, 5]}]
    assert shop.run("eval: {task: perplexity}\n", rows, IdsLLM()) == 0
    assert shop.values()["token_perplexity"] == pytest.approx(math.exp((8 + 20) / 8))
    assert shop.values()["byte_perplexity"] == pytest.approx(math.exp(2))
    assert {name: values["n"] for name, values in shop.scores()["metrics"].items()} == {
        "token_perplexity": 2, "word_perplexity": 1, "byte_perplexity": 1, "bits_per_byte": 1,
    }  # fmt: skip
    found = {one.metric.name: one for one in compare_runs(shop.out, shop.out).metrics}
    assert (found["token_perplexity"].difference.n, found["bits_per_byte"].difference.n) == (2, 1)


def test_a_whole_file_is_one_text(shop):
    (shop.folder / "a.txt").write_text("one\n\ntwo\n")
    (shop.folder / "b.txt").write_text("x")
    text = "model: fake\ninput: [a.txt, b.txt]\noutput: run\nprogress: none\n"
    (shop.folder / "job.yaml").write_text(text + "eval: {task: perplexity, whole_file: true}\n")
    llm = EvalLLM()
    assert run_job(load_job(shop.folder / "job.yaml"), lambda job: llm) == 0
    assert sorted(text for text, _ in llm.scored) == ["one\n\ntwo\n", "x"]
    lines = shop.lines()
    assert [line["row"] for line in lines] == [{"file": str(shop.folder / name)} for name in ("a.txt", "b.txt")]
    assert [line["prompt"] for line in lines] == [None, None]
    assert shop.values()["token_perplexity"] == pytest.approx(math.exp(2))


def test_one_text_has_no_interval(shop):
    assert shop.run("eval: {task: perplexity}\n", [{"prompt": "ab"}]) == 0
    metric = shop.scores()["metrics"]["bits_per_byte"]
    assert (metric["stderr"], metric["low"], metric["high"]) == (None, None, None)
    assert "score:   bits_per_byte     2.8854" in shop.said
