"""Rules about single tokens: bad words, sequence breakers, repetitions, ids outside the vocabulary."""

import itertools
import json

import numpy as np
import pytest
from request_runs import run_together

from nanovllm import SamplingParams
from nanovllm.engine.grammar import StepMasks
from nanovllm.engine.processors import TokenRules, ends_in_repetition, step_biases
from nanovllm.errors import RequestError
from nanovllm.kernels.sampling_step import BIAS_DTYPE, DRY_UNLIMITED, pack_mask
from nanovllm.token_rules import RuleMaker

CASE = "llama-f32"


@pytest.fixture(scope="module")
def recorded(models_dir):
    return json.loads((models_dir / CASE / "expected.json").read_text(encoding="utf-8"))["prompts"]


class Words:
    """A tokenizer whose tokens are the entries of a list, the longest that fits first."""

    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens
        ids = []
        while text:
            fitting = [piece for piece in self.pieces if text.startswith(piece)]
            if not fitting:
                return []
            ids.append(self.pieces.index(max(fitting, key=len)))
            text = text[len(self.pieces[ids[-1]]) :]
        return ids

    def id_to_token(self, token_id):
        return self.pieces[token_id] if token_id < len(self.pieces) else None

    def decode(self, ids, skip_special_tokens=True):
        assert not skip_special_tokens
        return "".join(self.pieces[i] for i in ids)


# ---- bad words


def test_only_the_last_id_of_a_bad_word_is_banned_and_only_after_the_others():
    rules = TokenRules(bad_words=((7,), (1, 2), (3, 1, 4)))
    assert rules.banned_after([9, 9], 2) == [7]
    assert rules.banned_after([9, 1], 1) == [7, 2]
    assert rules.banned_after([9, 3, 1], 1) == [7, 2, 4]
    assert rules.banned_after([9, 3, 5, 1], 1) == [7, 2]


def test_the_prompt_begins_no_bad_word():
    rules = TokenRules(bad_words=((1, 2), (3, 1, 4)))
    assert rules.banned_after([3, 1], 2) == []
    assert rules.banned_after([3, 1], 1) == [2]


def test_bad_words_are_taken_as_they_are_and_after_a_space():
    maker = RuleMaker(Words("a", "b", " a", " ", "ab"), 5)
    assert maker.make(SamplingParams(bad_words=["ab"])).bad_words == ((4,), (2, 1))
    assert maker.make(SamplingParams(bad_words=["  ba"])).bad_words == ((1, 0), (3, 1, 0))
    assert maker.make(SamplingParams(bad_words=["b", "b"])).bad_words == ((1,), (3, 1))


def test_a_bad_word_that_the_model_cannot_produce_bans_nothing():
    assert RuleMaker(Words("a", " a", "zz"), 2).make(SamplingParams(bad_words=["zz"])).bad_words == ()


def test_a_bad_word_without_tokens_is_refused():
    with pytest.raises(RequestError, match="bad_words: 'q' has no tokens"):
        RuleMaker(Words("a"), 1).make(SamplingParams(bad_words=["q"]))


# ---- sequence breakers


def test_the_limit_is_what_came_after_the_newest_breaker():
    rules = TokenRules(dry_breakers={9: ((),), 5: ((6,), (6, 7))})
    assert rules.dry_limit([1, 2, 3], -1) == DRY_UNLIMITED
    assert rules.dry_limit([9, 1, 2, 3], -1) == 3
    assert rules.dry_limit([9, 1, 9], -1) == 0
    assert rules.dry_limit([1, 5, 6, 2], -1) == 1
    assert rules.dry_limit([1, 5, 6, 7, 2], -1) == 1
    assert rules.dry_limit([1, 5, 7, 6, 2], -1) == DRY_UNLIMITED
    assert rules.dry_limit([9, 1, 5], -1) == 2
    assert rules.dry_limit([9, 1, 2, 3], 3) == DRY_UNLIMITED
    assert rules.dry_limit([9, 1, 2, 3], 4) == 3
    assert TokenRules().dry_limit([9, 9], -1) == DRY_UNLIMITED


def test_breakers_are_tokens_that_hold_the_text_or_begin_it():
    maker = RuleMaker(Words("a", "\n", "a:\n", "x<", "/s>", "<", "</s>", "b"), 8)
    default = maker.make(SamplingParams(dry_multiplier=1))
    assert default.dry_breakers == {1: ((),), 2: ((), ())}
    own = maker.make(SamplingParams(dry_multiplier=1, dry_sequence_breakers=["</s>"]))
    assert own.dry_breakers == {3: ((4,),), 5: ((4,),), 6: ((),)}
    assert (default.breaker_mask.tolist(), own.breaker_mask.tolist()) == ([0b110], [1 << 6])
    assert maker.make(SamplingParams(dry_multiplier=1, dry_sequence_breakers=[])).dry_breakers == {}
    assert maker.make(SamplingParams(dry_sequence_breakers=["a"])) is None


def test_default_breakers_of_a_real_tokenizer(make_llm):
    llm = make_llm()
    breakers = RuleMaker(llm.tokenizer, llm.engine.spec.vocab_size).make(SamplingParams(dry_multiplier=1)).dry_breakers
    texts = {i: llm.tokenizer.decode([i], skip_special_tokens=False) for i in range(llm.engine.spec.vocab_size)}
    assert set(breakers) == {i for i, text in texts.items() if set(text) & set('\n:"*')}
    assert breakers


def test_a_breaker_is_never_penalized_itself(make_llm):
    llm = make_llm()
    colon = llm.tokenizer.encode(":", add_special_tokens=False)[-1]
    # Only the colon and 7 can come, the colon by far more likely; after 7 it would prolong a repetition.
    dry = {"dry_multiplier": 100, "dry_allowed_length": 1}
    bias = {"logit_bias": {colon: 60}, "allowed_token_ids": [7, colon], **dry}
    prompt = [7, colon, 9, colon, 8, 7]
    free = run_together(llm, [prompt], [bias])[0].outputs[0].token_ids
    assert free[0] == colon
    hindered = run_together(llm, [prompt], [{**bias, "dry_sequence_breakers": []}])[0].outputs[0].token_ids
    assert hindered[0] == 7


# ---- repetitions


@pytest.mark.parametrize(
    ("ids", "num_prompt", "sizes", "found"),
    [
        ([1, 1, 1], 0, (1, 1, 3), True),
        ([1, 1, 1], 1, (1, 1, 3), False),
        ([2, 1, 1], 0, (1, 1, 3), False),
        ([1, 2, 1, 2], 0, (1, 2, 2), True),
        ([1, 2, 1, 2], 0, (1, 1, 2), False),
        ([1, 2, 1, 2], 1, (1, 2, 2), False),
        ([1, 1, 1, 1], 0, (2, 4, 2), True),
        ([1, 1, 1], 0, (2, 4, 2), False),
        ([3, 1, 2, 1, 2, 1, 2], 1, (1, 8, 3), True),
        ([3, 1, 2, 1, 2, 1, 2], 1, (1, 8, 4), False),
        ([1, 2, 1, 2, 3], 0, (1, 8, 2), False),
        ([2, 2, 1, 2], 0, (1, 8, 2), False),
        ([], 0, (1, 8, 2), False),
    ],
)
def test_repetition_is_a_pattern_at_the_end_of_the_completion(ids, num_prompt, sizes, found):
    detection = dict(zip(("min_pattern_size", "max_pattern_size", "min_count"), sizes, strict=True))
    assert ends_in_repetition(ids, num_prompt, detection) is found


# ---- a step's rows


def test_rows_share_masks_and_have_their_own_biases():
    mask = pack_mask([1], 40)
    one = TokenRules(mask, np.array([(3, 1.5)], BIAS_DTYPE))
    two = TokenRules(None, np.array([(4, -2.0), (5, 0.5)], BIAS_DTYPE))
    rows = [None, one, two, one, TokenRules(pack_mask([2], 40))]
    found = StepMasks(40).of(rows, [None] * 5)
    assert found["masks"].tolist() == [[2, 0], [4, 0]]
    assert found["mask_rows"].tolist() == [-1, 0, -1, 0, 1]
    found = step_biases(rows)
    assert found["biases"].tolist() == [(3, 1.5), (4, -2.0), (5, 0.5), (3, 1.5)]
    assert found["cu_biases"].tolist() == [0, 0, 1, 3, 4, 4]
    assert step_biases([None, TokenRules()]) == {}
    assert StepMasks(40).of([None, TokenRules()], [None, None]) == {}


# ---- requests


def test_a_bias_on_an_unknown_id_is_an_error_of_its_row_alone(make_llm, recorded):
    llm = make_llm()
    vocab_size = llm.engine.spec.vocab_size
    ids = recorded[0]["ids"]
    settings = [
        {"logit_bias": {"999999": -100}},
        {"logit_bias": {"-1": 5}},
        {"logit_bias": {vocab_size: 5}},
        {"allowed_token_ids": [vocab_size]},
        {},
    ]
    outputs = run_together(llm, [ids] * 5, settings)
    names = ["logit_bias"] * 3 + ["allowed_token_ids"]
    for output, name, bad in zip(outputs, names, [999999, -1, vocab_size, vocab_size], strict=False):
        assert output.error.code == "invalid_token_id"
        assert f"{name}: the token id {bad} " in output.error.message
        assert f"expected 0 to {vocab_size - 1}" in output.error.message
    assert outputs[4].error is None
    assert outputs[4].outputs[0].token_ids == recorded[0]["greedy_ids"][:12]


def test_greedy_rows_follow_their_rules(make_llm, recorded):
    llm = make_llm()
    prompt, plain = recorded[0]["ids"], recorded[0]["greedy_ids"][:12]
    first = plain[0]
    other = next(i for i in range(9, 400) if i not in plain)
    banned, forced, only, clamped, looped = (
        output.outputs[0]
        for output in run_together(
            llm,
            [prompt] * 5,
            [
                {"logit_bias": {first: -100}},
                {"logit_bias": {other: 100}},
                {"allowed_token_ids": [other, first]},
                {"logit_bias": {str(other): 1e9}},
                {"logit_bias": {other: 100}, "repetition_detection": {"max_pattern_size": 3, "min_count": 4}},
            ],
        )
    )
    assert first not in banned.token_ids
    assert forced.token_ids == clamped.token_ids == [other] * 12
    assert set(only.token_ids) <= {other, first}
    assert only.token_ids[0] == first
    assert looped.token_ids == [other] * 4
    assert (looped.finish_reason, looped.stop_reason) == ("stop", "repetition")
    assert looped.text == llm.tokenizer.decode([*prompt, *[other] * 4])[len(llm.tokenizer.decode(prompt)) :]


def test_min_tokens_holds_a_repetition_back(make_llm, recorded):
    detection = {"max_pattern_size": 1, "min_count": 2}
    settings = {"logit_bias": {9: 100}, "repetition_detection": detection, "min_tokens": 7}
    answer = run_together(make_llm(), [recorded[0]["ids"]], [settings])[0].outputs[0]
    assert (answer.token_ids, answer.stop_reason) == ([9] * 7, "repetition")


def test_no_ngram_comes_twice(make_llm, recorded):
    settings = {"no_repeat_ngram_size": 2, "max_tokens": 60, "logit_bias": {9: 20, 10: 19, 11: 18}}
    prompt = recorded[0]["ids"]
    ids = [*prompt, *run_together(make_llm(), [prompt], [settings])[0].outputs[0].token_ids]
    bigrams = list(itertools.pairwise(ids))[len(prompt) - 1 :]
    assert len(set(bigrams)) == len(bigrams) == 60
    assert not set(bigrams) & set(itertools.pairwise(prompt))


def test_a_bad_word_is_left_out(make_llm, recorded):
    llm = make_llm()
    prompt = recorded[0]["ids"]
    plain = run_together(llm, [prompt], [{}])[0].outputs[0].text
    words = [word for word in plain.split() if word.isascii() and len(word) > 1]
    answer = run_together(llm, [prompt], [{"bad_words": words[:1]}])[0].outputs[0].text
    assert words[0] in plain
    assert words[0] not in answer


MIXED = [
    {},
    {"logit_bias": {7: 4.5, 8: -3.0}},
    {"allowed_token_ids": list(range(5, 300))},
    {"bad_words": ["the", "e"], "temperature": 0.9, "seed": 3},
    {"no_repeat_ngram_size": 2, "logit_bias": {9: 8.0}},
    {"dry_multiplier": 2.0, "logit_bias": {9: 8.0, 10: 8.0}},
    {"dry_multiplier": 1.0, "dry_allowed_length": 1, "temperature": 1.2, "seed": 4},
    {"top_n_sigma": 1.5, "temperature": 1.5, "seed": 5, "n": 2},
    {"repetition_detection": {"max_pattern_size": 4, "min_count": 2}, "temperature": 0.5, "seed": 6},
    {"repetition_penalty": 1.3, "logprobs": 2, "dry_multiplier": 0.5},
]


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_with_rules_are_the_same_alone_and_in_any_batch(make_llm, recorded, threads):
    llm = make_llm(threads=threads)
    prompts = [recorded[i % len(recorded)]["ids"][:30] for i in range(len(MIXED))]

    def ids(outputs):
        return [[answer.token_ids for answer in output.outputs] for output in outputs]

    together = run_together(llm, prompts, MIXED)
    assert all(output.error is None for output in together)
    backwards = run_together(llm, prompts[::-1], MIXED[::-1])[::-1]
    alone = [run_together(llm, [prompt], [one])[0] for prompt, one in zip(prompts, MIXED, strict=True)]
    assert ids(together) == ids(backwards) == ids(alone)
    few_blocks = make_llm(threads=threads, max_num_batched_tokens=16, enable_prefix_caching=False)
    assert ids(run_together(few_blocks, prompts, MIXED)) == ids(together)


def test_nothing_left_to_draw_is_an_error_that_says_so(make_llm, recorded):
    llm = make_llm()
    prompt = recorded[0]["ids"]
    settings = [{"allowed_token_ids": [prompt[0]], "no_repeat_ngram_size": 1}, {}]
    failed, fine = run_together(llm, [prompt] * 2, settings)
    assert failed.error.code == "no_token_allowed"
    assert failed.outputs[0].finish_reason == "error"
    assert "no_repeat_ngram_size" in failed.error.message
    assert fine.outputs[0].token_ids == recorded[0]["greedy_ids"][:12]
    with pytest.raises(RequestError, match="leave no token"):
        list(llm.generate_stream({"prompt_token_ids": prompt}, SamplingParams(**settings[0])))
