"""Score requests as they come: results leave as they finish, and nothing stays behind."""

import numpy as np
import pytest
from scoring_by_hand import LONG, TOLERANCE, assert_score, by_hand

from nanovllm import ConfigError, Request, RequestError, SamplingParams, ScoreRequest


def assert_idle(llm):
    assert not llm.engine.has_unfinished and not llm.dispatcher.scoring and not llm.engine.scheduler.kept
    llm.engine.block_manager.check([])


def test_requests_of_both_kinds_come_back_with_what_the_caller_put_in(make_llm):
    llm = make_llm(max_num_seqs=4)
    requests = [
        ScoreRequest(LONG[:40], [[5], [6, 7, 8], LONG[70:]], data="pairs"),
        ScoreRequest(LONG, data="text"),
        ScoreRequest(LONG, None, "unconditioned", score_first=False),
        ScoreRequest("The", [], data="none"),
    ]
    results = {scored.request.data: scored for scored in llm.score_iter(requests)}
    assert {key: scored.request for key, scored in results.items()} == {one.data: one for one in requests}
    for output, ids in zip(results["pairs"].outputs, requests[0].continuations, strict=True):
        assert_score(llm, output, LONG[:40], ids)
    assert results["pairs"].perplexity is None
    assert (results["text"].outputs, results["none"].outputs, results["none"].perplexity) == ([], [], None)
    np.testing.assert_allclose(results["text"].perplexity.logprobs, by_hand(llm, [0], LONG)[0], atol=TOLERANCE, rtol=0)
    expected = by_hand(llm, LONG[:1], LONG[1:])[0]
    np.testing.assert_allclose(results["unconditioned"].perplexity.logprobs, expected, atol=TOLERANCE, rtol=0)
    assert_idle(llm)


def test_requests_are_pulled_as_results_leave(make_llm):
    llm = make_llm(max_num_seqs=2)
    pulled = 0

    def source():
        nonlocal pulled
        for i in range(200):
            pulled += 1
            yield ScoreRequest(LONG[: 9 + i % 7], [[5], [6]], i)

    seen = []
    for scored in llm.score_iter(source()):
        seen.append(scored.request.data)
        # Four times max_num_seqs sequences are in flight, each of another request at most, and one is being begun.
        assert pulled <= len(seen) + 8 + 1
    assert sorted(seen) == list(range(200))
    assert_idle(llm)


def test_a_refused_request_leaves_before_the_next_is_asked_for(make_llm):
    llm = make_llm()
    pulled = 0

    def source():
        nonlocal pulled
        while True:
            pulled += 1
            refusal = RequestError("invalid_prompt", f"number {pulled}")
            yield ScoreRequest(refusal, [[5], [6]] if pulled % 2 else None)

    results = llm.score_iter(source())
    first, second = next(results), next(results)
    assert pulled == 2
    assert [str(output.error) for output in first.outputs] == ["number 1"] * 2
    assert second.perplexity.error.code == "invalid_prompt"


def test_requests_may_depend_on_results(make_llm):
    llm = make_llm()
    best, todo = [], [ScoreRequest([7, 8, 9], [[i] for i in range(20, 30)])]

    def source():
        while len(best) < 4:
            yield todo.pop() if todo else None

    for scored in llm.score_iter(source()):
        best.append(max(scored.outputs, key=lambda output: output.logprob).token_ids)
        todo.append(ScoreRequest([*scored.request.prompt, *best[-1]], scored.request.continuations))
    ids = [7, 8, 9]
    for (token_id,) in best:
        assert token_id == 20 + int(llm.engine.next_token_logits(ids)[20:30].argmax())
        ids.append(token_id)


def test_scoring_runs_beside_generation(make_llm):
    llm, params = make_llm(max_num_seqs=3), SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompts = [LONG[i : i + 20] for i in range(6)]
    texts = llm.generate(prompts, params, use_tqdm=False)
    scores = llm.score(prompts, [[[5, 6], [7]]] * 6, use_tqdm=False)
    generating = llm.generate_iter(Request(prompt, params, data=i) for i, prompt in enumerate(prompts))
    scoring = llm.score_iter(ScoreRequest(prompt, [[5, 6], [7]], i) for i, prompt in enumerate(prompts))
    for output, scored in zip(generating, scoring, strict=True):
        assert output.outputs[0].token_ids == texts[output.data].outputs[0].token_ids
        assert scored.outputs == scores[scored.request.data]
    assert_idle(llm)


def test_a_pair_that_is_too_long_loses_the_beginning_of_its_prompt_where_that_is_wanted(make_llm):
    llm = make_llm(max_model_len=32)
    continuations = [[5], [6, 7, 8], LONG[:32], LONG[:33]]
    (scored,) = llm.score_iter([ScoreRequest(LONG[:40], continuations, truncate=True)])
    assert [output.num_truncated for output in scored.outputs] == [8, 10, 39, 0]
    for output, num_kept, ids in zip(scored.outputs, (32, 30, 1), continuations, strict=False):
        assert_score(make_llm(), output, LONG[40 - num_kept : 40], ids)
    assert scored.outputs[3].error.code == "prompt_too_long"
    (refused,) = llm.score_iter([ScoreRequest(LONG[:40], continuations)])
    assert [output.error.code for output in refused.outputs] == ["prompt_too_long"] * 4


@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_closing_the_iterator_ends_its_requests(make_llm, num_taken):
    llm = make_llm(max_num_batched_tokens=32)
    results = llm.score_iter(ScoreRequest(LONG[i : i + 60], [[5] * 3, [6], [7]]) for i in range(9))
    for _ in range(num_taken):
        next(results)
    results.close()
    assert_idle(llm)


@pytest.mark.parametrize("continuations, found", [("is", "str"), ([5, 6], "token ids"), (5, "int")])
def test_continuations_that_are_no_list_of_them_are_refused(make_llm, continuations, found):
    llm = make_llm()
    with pytest.raises(ConfigError, match=rf"ScoreRequest\.continuations: expected a list of .*, found {found}"):
        list(llm.score_iter([ScoreRequest("The", [[5]]), ScoreRequest("The", continuations)]))
    assert_idle(llm)
