"""Scores of continuations and texts against sums taken by hand, one position at a time, from raw logits."""

import json
import math

import numpy as np
import pytest
from scoring_by_hand import LONG, TOLERANCE, assert_score, by_hand
from tensor_bytes import overwrite

from nanovllm import ConfigError, SamplingParams
from nanovllm.score_tree import Branch
from nanovllm.scoring import rolling_windows

CASE = "llama-f32"  # BOS is 0 and never added by the tokenizer
WITH_BOS = "llama-bf16-llama3rope"  # the tokenizer adds BOS, 497
WITHOUT_BOS = "qwen2-bf16-tied"  # no BOS at all, EOS is 499


# ---- where a pair is cut


@pytest.mark.parametrize(
    "case, prompt, continuation, context, ids",
    [
        (CASE, "The", " answer", [340], [460, 85, 89, 270]),
        (CASE, "The answer ", "is", [340, 460, 85, 89, 270], [323]),  # the blank belongs to the continuation
        (CASE, "a t", "he", [67], [264]),  # "the" spans the cut
        (CASE, "th", "e", [86], [259]),  # together they are "t", "he"
        (CASE, "i", "n", [0], [263]),  # one token over the cut: it is scored whole
        (CASE, "", "the", [0], [86, 259]),
        (CASE, "   ", "the", [0], [293, 264]),
        (CASE, [340], " answer", [340], [460, 85, 89, 270]),
        (CASE, "The", [460, 85], [340], [460, 85]),
        (CASE, {"prompt": "The"}, [460, 85], [340], [460, 85]),
        (CASE, {"prompt_token_ids": [340]}, (460, 85), [340], [460, 85]),
        (CASE, "", "<|endoftext|>the", [0], [86, 259]),  # no second BOS
        (WITH_BOS, "The answer ", "is", [497, 337, 457, 82, 86, 267], [320]),
        (WITH_BOS, "i", "n", [497], [260]),
        (WITH_BOS, "", "the", [497], [83, 256]),
        (WITH_BOS, [337], "n", [337], [77]),
        (WITHOUT_BOS, "", "the", [499], [83, 256]),
    ],
)
def test_a_pair(make_llm, case, prompt, continuation, context, ids):
    llm = make_llm(case)
    ((output,),) = llm.score(prompt, [continuation], use_tqdm=False)
    assert_score(llm, output, context, ids)


def test_the_continuations_of_several_prompts(make_llm):
    llm = make_llm(max_num_seqs=4, max_num_batched_tokens=16)
    prompts = ["The answer ", LONG[:70], "", [5, 6]]
    groups = [["is", "was", "is"], [[5], [6, 7, 8], LONG[70:]], [], [[4]]]
    outputs = llm.score(prompts, groups, use_tqdm=False)
    assert [len(group) for group in outputs] == [3, 3, 0, 1]
    assert outputs[0][0] == outputs[0][2] and outputs[0][0].token_ids == [323]
    for output, ids in zip(outputs[1], groups[1], strict=True):
        assert_score(llm, output, LONG[:70], ids)
    assert_score(llm, outputs[3][0], [5, 6], [4])
    assert not llm.engine.has_unfinished and not llm.dispatcher.scoring
    llm.engine.block_manager.check([])


def test_what_greedy_decoding_writes_is_greedy(make_llm, models_dir):
    llm = make_llm()
    ids = llm.generate([LONG], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True), use_tqdm=False)[0]
    ids = ids.outputs[0].token_ids
    right, wrong = llm.score(LONG, [ids, [*ids[:-1], (ids[-1] + 1) % 500]], use_tqdm=False)[0]
    assert (right.is_greedy, wrong.is_greedy) == (True, False)
    assert right.logprobs[:-1] == wrong.logprobs[:-1]


def test_a_prompt_is_computed_once_for_all_its_continuations(make_llm):
    llm = make_llm()
    llm.score(LONG[:65], [[i] * 3 for i in range(5, 15)], use_tqdm=False)
    # Each pair computes two of its three own tokens: the last is scored only.
    assert llm.stats()["computed_tokens"] == 65 + 10 * 2
    assert llm.stats()["cached_tokens"] == 9 * 65


def test_choices_of_one_token_are_read_from_one_row(make_llm):
    llm = make_llm()
    group = [[i] for i in range(5, 15)]
    scores = llm.score(LONG[:65], [*group, [5]], use_tqdm=False)[0]
    assert llm.stats()["computed_tokens"] == 65
    for score, ids in zip(scores, group, strict=False):
        assert_score(llm, score, LONG[:65], ids)
    assert scores[0] == scores[-1]
    best = int(np.argmax(llm.engine.next_token_logits(LONG[:65])))
    greedy = llm.score(LONG[:65], [[5], [best], [6]], use_tqdm=False)[0]
    assert [score.is_greedy for score in greedy] == [False, True, False]


def test_what_continuations_have_in_common_is_computed_once(make_llm):
    llm = make_llm()
    a, b, c, d, e = range(5, 10)
    group = [[a, b, c], [a, b, d, e], [a], [a, b], [c, d, e], [c, d, a, b], [a, b, d, a], [c, d, a], [a, b, c]]
    scores = llm.score(LONG[:40], group, use_tqdm=False)[0]
    # The prompt, a b, d behind these, c d, a behind these.
    assert llm.stats()["computed_tokens"] == 40 + 2 + 1 + 2 + 1
    for score, ids in zip(scores, group, strict=True):
        assert score.token_ids == ids
        assert_score(llm, score, LONG[:40], ids)
    assert not llm.engine.scheduler.kept
    llm.engine.block_manager.check([])


def test_continuations_that_begin_with_each_other(make_llm):
    llm = make_llm(max_model_len=64)
    group = [[5, 6] * 10] * 3 + [([5, 6] * 15)[:size] for size in range(1, 30)]
    scores = llm.score(LONG[:10], group, use_tqdm=False)[0]
    assert all(score.logprobs == scores[-1].logprobs[: len(ids)] for score, ids in zip(scores, group, strict=True))
    assert llm.stats()["computed_tokens"] == 10 + 28


def test_a_pair_with_a_shorter_context_stands_alone(make_llm):
    # "the" is one token over the cut in "a t" + "he", so its context is shorter than that of the pair before it.
    llm = make_llm()
    whole, cut = llm.score("a t", ["oo", "he"], use_tqdm=False)[0]
    assert len(cut.prompt_token_ids) < len(whole.prompt_token_ids)
    for score in (whole, cut):
        assert_score(llm, score, score.prompt_token_ids, score.token_ids)


@pytest.mark.parametrize("settings", [{"enable_prefix_caching": False}, {"max_num_batched_tokens": 7}, {"threads": 2}])
def test_scores_do_not_depend_on_cache_and_chunks(make_llm, settings):
    pairs = ([LONG[:64], LONG[:65], LONG[:33]], [[LONG[64:], [3]], [[4, 5]], [[5], [6], LONG[33:]]])
    assert make_llm(**settings).score(*pairs, use_tqdm=False) == make_llm().score(*pairs, use_tqdm=False)


@pytest.mark.parametrize("caching", [True, False])
def test_less_than_a_block_is_shared_too(make_llm, caching):
    llm = make_llm(enable_prefix_caching=caching)
    llm.score([LONG[:25], LONG[5:50]], [[[i] * 3 for i in range(5, 9)]] * 2, use_tqdm=False)
    assert llm.stats()["computed_tokens"] == (25 + 2) + (45 + 2) + 2 * 3 * 2
    assert llm.stats()["cached_tokens"] == 3 * 25 + 3 * 45
    assert not llm.engine.scheduler.kept
    llm.engine.block_manager.check([])


@pytest.mark.parametrize("case", [CASE, "mistral-swa", "llama-odd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_forked_pairs_have_the_bits_of_pairs_alone(make_llm, case, dtype):
    prompts = [LONG[: 9 + 7 * i] for i in range(8)]
    groups = [[LONG[60 : 62 + j + i] for j in range(3)] for i in range(8)]
    alone = make_llm(case, dtype=dtype, enable_prefix_caching=False)
    expected = [
        [alone.score(prompt, [ids], use_tqdm=False)[0][0] for ids in group]
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    size = alone.engine.limits.kv_cache_bytes // alone.engine.limits.num_blocks
    for settings in (
        {},
        {"kv_cache_memory": 7 * size},
        {"max_num_batched_tokens": 5},
        {"enable_prefix_caching": False},
    ):
        llm = make_llm(case, dtype=dtype, **settings)
        assert llm.score(prompts, groups, use_tqdm=False) == expected
        assert not llm.engine.scheduler.kept
        llm.engine.block_manager.check([])


@pytest.mark.parametrize("num_steps", range(1, 8))
def test_a_failing_step_frees_everything(make_llm, monkeypatch, num_steps):
    llm = make_llm(max_num_batched_tokens=64)
    pairs = ([LONG[:25], LONG[5:50], LONG[:25]], [[[5] * 3, [6, 6, 5], [6, 6, 6, 6], [7, 7]]] * 3)
    expected = make_llm().score(*pairs, use_tqdm=False)
    run, steps = llm.engine.runner.run, []

    def broken(batch):
        steps.append(batch)
        if len(steps) == num_steps:
            raise KeyboardInterrupt
        return run(batch)

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "run", broken)
        if num_steps <= 6:
            with pytest.raises(KeyboardInterrupt):
                llm.score(*pairs, use_tqdm=False)
        else:
            llm.score(*pairs, use_tqdm=False)
    assert not llm.engine.has_unfinished and not llm.engine.scheduler.kept and not llm.engine.block_manager.copies
    llm.engine.block_manager.check([])
    assert llm.score(*pairs, use_tqdm=False) == expected


def test_penalties_of_the_model_file_are_not_applied(make_llm, edited_model):
    with_penalty = make_llm(edited_model(CASE, generation_config={"repetition_penalty": 1.9, "temperature": 0.6}))
    assert with_penalty.default_sampling_params().repetition_penalty == 1.9
    ((output,),) = with_penalty.score([5, 6, 7], [[5, 6, 7]], use_tqdm=False)
    assert_score(make_llm(), output, [5, 6, 7], [5, 6, 7])


def test_a_refused_pair_fails_alone(make_llm):
    llm = make_llm()
    prompts = ["The", [500], LONG, {"text": "x"}, "lone \ud83d"]
    groups = [["", [], " answer", [500], 7, None, "<|endoftext|>"], [[1]], [[7] * 111, [7] * 112], ["x"], ["x"]]
    outputs = llm.score(prompts, groups, use_tqdm=False)
    codes = [[output.error and output.error.code for output in group] for group in outputs]
    assert codes == [
        ["empty_continuation"] * 2 + [None, "invalid_token_id", "invalid_prompt", "invalid_prompt", None],
        ["invalid_token_id"], [None, "prompt_too_long"], ["invalid_prompt"], ["invalid_text"],
    ]  # fmt: skip
    assert "have 202 tokens, the limit is 201" in str(outputs[2][1].error)
    assert_score(llm, outputs[0][2], [340], [460, 85, 89, 270])
    assert llm.score("", ["<|endoftext|>"], use_tqdm=False)[0][0].error.code == "empty_continuation"


@pytest.mark.parametrize(
    "prompts, continuations, message",
    [
        ("a", "b", "continuations: expected a list, found str"),
        (["a", "b"], [["c"]], "continuations: 1 lists given for 2 prompts"),
        (["a"], ["c"], r"continuations\[0\]: expected a list of continuations, found str"),
        (["a"], [[5, 6]], r"continuations\[0\]: expected a list of continuations, found token ids"),
        (5, [["c"]], "prompts: expected a prompt or a list of prompts, found int"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make_llm, prompts, continuations, message):
    with pytest.raises(ConfigError, match=message):
        make_llm().score(prompts, continuations, use_tqdm=False)


# ---- texts


@pytest.mark.parametrize(
    "num_tokens, size, windows",
    [
        (1, 4, []),
        (2, 4, [(0, 1, 2)]),
        (5, 4, [(0, 1, 5)]),
        (6, 4, [(0, 1, 5), (1, 5, 6)]),
        (9, 4, [(0, 1, 5), (4, 5, 9)]),
        (11, 4, [(0, 1, 5), (4, 5, 9), (6, 9, 11)]),
    ],
)
def test_windows(num_tokens, size, windows):
    assert list(rolling_windows(num_tokens, size)) == windows


@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33, 64, 70, 90])
@pytest.mark.parametrize("score_first", [True, False])
def test_a_text_longer_than_the_context(make_llm, num_tokens, score_first):
    llm, roomy, ids = make_llm(max_model_len=32), make_llm(), LONG[:num_tokens]
    (output,) = llm.perplexity([ids], score_first=score_first, use_tqdm=False)
    if num_tokens == 1 and not score_first:
        assert output.error.code == "empty_prompt"
        return
    whole = [0, *ids] if score_first else ids
    expected = []
    while len(expected) < len(whole) - 1:
        done = len(expected)
        end = min(done + 1 + 32, len(whole))
        begin = max(0, end - 33)
        expected += by_hand(roomy, whole[begin : done + 1], whole[done + 1 : end])[0]
    np.testing.assert_allclose(output.logprobs, expected, atol=TOLERANCE, rtol=0)
    assert output.num_tokens == len(whole) - 1
    assert output.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=TOLERANCE)
    assert (output.byte_perplexity, output.word_perplexity) == (None, None)


@pytest.mark.parametrize("case, first", [(CASE, 0), (WITH_BOS, 497), (WITHOUT_BOS, 499)])
def test_bytes_and_words_of_a_text(make_llm, case, first):
    llm = make_llm(case)
    text = "The  answer\nis né."
    (output,) = llm.perplexity(text, use_tqdm=False)
    ids = llm.tokenizer.encode(text, add_special_tokens=False)
    total = sum(by_hand(llm, [first], ids)[0])
    assert (output.num_tokens, output.num_bytes, output.num_words) == (len(ids), 19, 4)
    assert output.logprob == pytest.approx(total, abs=TOLERANCE)
    assert output.byte_perplexity == pytest.approx(math.exp(-total / 19), rel=TOLERANCE)
    assert output.word_perplexity == pytest.approx(math.exp(-total / 4), rel=TOLERANCE)


def test_refused_texts_fail_alone(make_llm):
    outputs = make_llm().perplexity(["", "the", [500], None, "lone \ud83d"], use_tqdm=False)
    assert [output.error and output.error.code for output in outputs] == [
        "empty_prompt", None, "invalid_token_id", "invalid_prompt", "invalid_text"
    ]  # fmt: skip
    assert math.isnan(outputs[0].perplexity)


# ---- damaged models


def test_a_failed_tree_may_be_deeper_than_the_stack():
    root = deepest = Branch(0, [5, 6], 1)
    for i in range(1, 3000):
        deepest.children.append(Branch(i, [5, 6], 1))
        deepest = deepest.children[0]
    alone = root.scatter()
    assert sorted(tree.index for tree in alone) == list(range(1, 3000)) and not any(tree.children for tree in alone)


def test_pairs_that_go_on_from_a_failed_one_are_computed_by_themselves(make_llm, edited_model):
    folder = edited_model(CASE)
    hidden_size = json.loads((folder / "config.json").read_text())["hidden_size"]
    overwrite(folder, "model.embed_tokens.weight", [np.nan], 9 * hidden_size)  # token 9 cannot be computed
    llm = make_llm(folder)
    group = [[5, 9, 6], [5, 9, 7], [5, 8, 6], [5, 8], [5, 9], [6]]
    scores = llm.score(LONG[:40], group, use_tqdm=False)[0]
    assert [score.error and score.error.code for score in scores] == ["invalid_logits"] * 2 + [None] * 4
    assert scores[2:] == make_llm().score(LONG[:40], group, use_tqdm=False)[0][2:]
    assert not llm.engine.has_unfinished and not llm.engine.scheduler.kept
    llm.engine.block_manager.check([])


def test_logits_that_are_not_numbers_are_errors(make_llm, edited_model):
    llm = make_llm(overwrite(edited_model(CASE), "lm_head.weight", [np.nan]))
    ((score,),) = llm.score([5, 6], [[7, 8]], use_tqdm=False)
    (perplexity,) = llm.perplexity([LONG], use_tqdm=False)
    params = SamplingParams(max_tokens=2, prompt_logprobs=1)
    output = llm.generate([LONG], params, use_tqdm=False)[0]
    assert [one.error.code for one in (score, perplexity, output)] == ["invalid_logits"] * 3
    assert output.outputs[0].finish_reason == "error"
    assert not llm.engine.has_unfinished and not llm.dispatcher.states and not llm.dispatcher.scoring
    llm.engine.block_manager.check([])
