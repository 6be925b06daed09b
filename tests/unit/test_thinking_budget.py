"""A budget of thinking: so many tokens after the opening tag, then the closing one, whatever else is set."""

import json

import numpy as np
import pytest
from request_runs import run_together

from nanovllm import ConfigError, RequestError, SamplingParams, plan_model
from nanovllm.engine.processors import Thinking, ThinkingBudget, TokenRules
from nanovllm.token_rules import RuleMaker

CASE = "llama-f32"
START, END = 498, 499  # what the model takes for the tags: two ids that its greedy texts below do not have


@pytest.fixture(scope="module")
def recorded(models_dir):
    """A prompt and what a reference implementation makes of it: 198 229 365 445 448 445 448 445 38 430 27 359 …"""
    return json.loads((models_dir / CASE / "expected.json").read_text(encoding="utf-8"))["prompts"][2]


@pytest.fixture
def thinking_llm(make_llm, monkeypatch):
    """Factory of an LLM whose tokenizer has the tags at two ids of the vocabulary."""

    def make(start_id=START, end_id=END, **settings):
        llm = make_llm(**settings)
        tags = {"<think>": start_id, "</think>": end_id}
        monkeypatch.setattr(llm.tokenizer, "token_to_id", tags.get)
        return llm

    return make


def run(llm, prompts, settings):
    outputs = run_together(llm, prompts, settings)
    assert all(output.error is None for output in outputs)
    return [[answer.token_ids for answer in output.outputs] for output in outputs]


def complete(llm, prompt, **settings):
    return run(llm, [prompt], [settings])[0][0]


# ---- where a completion stands


@pytest.mark.parametrize(
    ("prompt", "completion", "num_tokens", "forced"),
    [
        ([5], [], 2, False),
        ([5], [6, 7, 8, 9], 2, False),  # never opened
        ([5], [1], 2, False),
        ([5], [1, 6], 2, False),
        ([5], [1, 6, 7], 2, True),
        ([5], [1], 0, True),
        ([1, 5], [], 0, True),
        ([1, 5, 6, 7, 8], [9], 2, False),  # what the prompt has of the block does not count
        ([1, 5, 6, 7, 8], [9, 9], 2, True),
        ([1, 5, 2], [6, 7, 8], 0, False),  # closed in the prompt
        ([2, 5, 1], [6, 7], 2, True),
        ([1], [6, 2, 7, 8, 9], 2, False),  # closed by itself
        ([1], [6, 7, 2], 2, False),  # closed by force
        ([1], [6, 7, 2, 8, 1], 2, False),  # the next block has a budget of its own
        ([1], [6, 7, 2, 8, 1, 6, 7], 2, True),
        ([1], [6, 1], 2, True),  # opened again while it is open: goes on
        ([], [2, 1, 6, 7], 2, True),
    ],
)
def test_the_closing_tag_is_due_after_so_many_tokens_of_an_open_block(prompt, completion, num_tokens, forced):
    place = Thinking(ThinkingBudget(num_tokens, 1, 2, TokenRules()), prompt)
    for token_id in completion:
        place.accept(token_id)
    assert place.must_end is forced


# ---- completions


def test_the_budget_ends_a_block_that_the_completion_opened(thinking_llm, recorded):
    llm, prompt = thinking_llm(start_id=365), recorded["ids"]
    ids = complete(llm, prompt, thinking_token_budget=2)
    assert ids[:6] == [198, 229, 365, 445, 448, END]
    # After it the text goes on as it would have after a prompt that ends there.
    assert ids[6:] == complete(llm, prompt + ids[:6], max_tokens=6)


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_exactly_so_many_tokens_of_thinking(thinking_llm, recorded, num_tokens):
    expected = [*recorded["greedy_ids"][: 3 + num_tokens], END]
    ids = complete(thinking_llm(start_id=365), recorded["ids"], thinking_token_budget=num_tokens)
    assert ids[: 4 + num_tokens] == expected


@pytest.mark.parametrize(
    ("start_id", "end_id", "num_tokens"),
    [
        (START, END, 0),  # never opened
        (365, END, 9),  # max_tokens comes first
        (365, 38, 5),  # closed by itself, where the budget would have
        (365, 38, 100),
        (365, END, None),
        (365, END, -1),
    ],
)
def test_a_budget_that_is_not_reached_changes_nothing(thinking_llm, recorded, start_id, end_id, num_tokens):
    llm = thinking_llm(start_id, end_id)
    assert complete(llm, recorded["ids"], thinking_token_budget=num_tokens) == recorded["greedy_ids"][:12]


def test_a_block_is_closed_before_it_would_have_been(thinking_llm, recorded):
    ids = complete(thinking_llm(365, 38), recorded["ids"], thinking_token_budget=4)
    assert ids[:8] == [198, 229, 365, 445, 448, 445, 448, 38]


def test_an_opening_tag_within_a_block_brings_no_new_budget(thinking_llm, recorded):
    ids = complete(thinking_llm(start_id=445), recorded["ids"], thinking_token_budget=3)
    assert ids[:8] == [198, 229, 365, 445, 448, 445, 448, END]


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_a_prompt_may_end_in_an_open_block(thinking_llm, recorded, num_tokens):
    llm, prompt = thinking_llm(), [*recorded["ids"][:8], START, *recorded["ids"][8:]]
    plain = complete(llm, prompt)
    ids = complete(llm, prompt, thinking_token_budget=num_tokens)
    assert ids[: num_tokens + 1] == [*plain[:num_tokens], END]
    assert ids[num_tokens + 1 :] == complete(llm, prompt + ids[: num_tokens + 1], max_tokens=11 - num_tokens)
    closed = [*prompt, END]
    assert complete(llm, closed, thinking_token_budget=num_tokens) == complete(llm, closed)


def test_samples_have_a_budget_each(thinking_llm, recorded):
    llm, prompt = thinking_llm(), [*recorded["ids"], START]
    drawn = {"temperature": 1.0, "seed": 8, "n": 3}
    plain, bounded = run(llm, [prompt] * 2, [drawn, {**drawn, "thinking_token_budget": 4}])
    assert len({tuple(ids) for ids in plain}) == 3
    assert [ids[:5] for ids in bounded] == [[*ids[:4], END] for ids in plain]
    # The draw at a position is the same, so what follows is what follows the same text without a budget.
    assert all(len(ids) == 12 and END not in ids[5:] for ids in bounded)


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_bias": {END: -100}},
        {"allowed_token_ids": [7, END], "logit_bias": {7: 100}},
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 2.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"dry_multiplier": 50.0, "dry_allowed_length": 1},
        {"temperature": 2.0, "seed": 1, "top_k": 1},
        {"temperature": 2.0, "seed": 1, "top_p": 0.01, "min_p": 1.0, "top_n_sigma": 0.1, "typical_p": 0.01},
        {"min_tokens": 10, "stop_token_ids": [END]},
        {"logprobs": 3},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_no_other_setting_keeps_the_closing_tag_away(thinking_llm, recorded, settings):
    prompt = [END, *recorded["ids"], START]
    assert complete(thinking_llm(), prompt, thinking_token_budget=2, **settings)[2] == END


def test_a_bad_word_does_not_keep_the_closing_tag_away(thinking_llm, recorded):
    llm = thinking_llm()
    word = llm.tokenizer.decode([END])
    prompt = [*recorded["ids"], START]
    assert RuleMaker(llm.tokenizer, 500).make(SamplingParams(bad_words=[word])).bad_words[0] == (END,)
    assert complete(llm, prompt, thinking_token_budget=2, bad_words=[word])[2] == END


def test_a_closing_tag_that_is_a_stop_id_ends_the_text(thinking_llm, recorded):
    prompt = [*recorded["ids"], START]
    ids = complete(thinking_llm(), prompt, thinking_token_budget=2, stop_token_ids=[END])
    assert (len(ids), ids[2]) == (3, END)


def test_log_probabilities_of_the_closing_tag_are_the_models(thinking_llm, recorded):
    llm, prompt = thinking_llm(), [*recorded["ids"], START]
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, thinking_token_budget=2, logprobs=2)
    answer = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0]
    logits = llm.engine.next_token_logits(prompt + answer.token_ids[:2]).astype(np.float64)
    expected = logits[END] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    assert answer.logprobs[2][END].logprob == pytest.approx(expected, abs=1e-4)
    assert answer.logprobs[2][END].rank == 1 + (logits > logits[END]).sum()


MIXED = [
    {},
    {"thinking_token_budget": 0},
    {"thinking_token_budget": 3},
    {"thinking_token_budget": 5, "temperature": 0.9, "seed": 3, "n": 2},
    {"thinking_token_budget": 100, "temperature": 0.9, "seed": 3},
    {"thinking_token_budget": 4, "logit_bias": {9: 8.0}, "no_repeat_ngram_size": 2},
    {"thinking_token_budget": 1, "logprobs": 2, "repetition_penalty": 1.3},
    {"temperature": 1.2, "seed": 4, "top_k": 9},
]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_ids_alone_and_in_any_batch(thinking_llm, recorded, threads):
    llm = thinking_llm(threads=threads)
    prompts = [[*recorded["ids"][i:], START] for i in range(len(MIXED))]
    together = run(llm, prompts, MIXED)
    assert [ids[0].index(END) for ids in together[1:4]] == [0, 3, 5]
    assert run(llm, prompts[::-1], MIXED[::-1])[::-1] == together
    assert [run(llm, [prompt], [one])[0] for prompt, one in zip(prompts, MIXED, strict=True)] == together
    in_pieces = thinking_llm(threads=threads, max_num_batched_tokens=16, enable_prefix_caching=False)
    assert run(in_pieces, prompts, MIXED) == together


def test_a_preempted_completion_keeps_its_budget(thinking_llm, recorded):
    prompts = [[*recorded["ids"][i:], START] for i in range(5)]
    settings = [{"thinking_token_budget": 25 + i, "max_tokens": 60} for i in range(5)]
    roomy = thinking_llm()
    expected = [run(roomy, [prompt], [one])[0] for prompt, one in zip(prompts, settings, strict=True)]
    block = roomy.engine.limits.kv_cache_bytes // roomy.engine.limits.num_blocks
    tight = thinking_llm(kv_cache_memory=7 * block)
    assert run(tight, prompts, settings) == expected
    assert tight.stats()["preemptions"] > 0
    assert [ids[0].index(END) for ids in expected] == [25, 26, 27, 28, 29]


# ---- a tokenizer with the tags


@pytest.fixture
def thinking_model(edited_model, models_dir):
    """A model whose vocabulary has the tags where two pieces of words were."""
    content = json.loads((models_dir / CASE / "tokenizer.json").read_text(encoding="utf-8"))
    bpe, added = content["model"], content["added_tokens"]
    names = {START: "<think>", END: "</think>"}
    bpe["vocab"] = {names.get(token_id, piece): token_id for piece, token_id in bpe["vocab"].items()}
    bpe["merges"] = bpe["merges"][:-2]  # those that made the two pieces
    added += [{**added[0], "id": token_id, "content": tag, "special": False} for token_id, tag in names.items()]
    return edited_model(CASE, tokenizer={"model": bpe, "added_tokens": added})


def test_the_tags_are_those_of_the_tokenizer(make_llm, thinking_model):
    llm = make_llm(thinking_model)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, thinking_token_budget=2)
    (output,) = llm.generate(["The sun<think>\n"], params, use_tqdm=False)
    assert START in output.prompt_token_ids
    assert output.outputs[0].token_ids[2] == END
    assert "</think>" in output.outputs[0].text


# ---- refusals


def refusal(llm, **settings):
    params = SamplingParams(temperature=0, max_tokens=2, **settings)
    (output,) = llm.generate([{"prompt_token_ids": [5, 6]}], params, use_tqdm=False)
    assert (output.error.code, output.outputs[0].finish_reason) == ("invalid_sampling", "error")
    return output.error.message


def test_a_model_without_tags_refuses_the_request(make_llm, models_dir):
    message = refusal(make_llm(), thinking_token_budget=7)
    assert message.startswith("thinking_token_budget is 7, but the model has no single token <think> and none </think>")
    plan = plan_model(models_dir / CASE, dtype="float32")
    with pytest.raises(RequestError) as caught:
        plan.check_request([5, 6], SamplingParams(thinking_token_budget=7))
    assert str(caught.value) == message


@pytest.mark.parametrize(("start_id", "end_id", "tag"), [(None, END, "<think>"), (START, 500, "</think>")])
def test_a_missing_tag_is_named(thinking_llm, start_id, end_id, tag):
    message = refusal(thinking_llm(start_id, end_id), thinking_token_budget=0)
    assert f"the model has no single token {tag}, expected both" in message


def test_allowed_ids_must_have_the_closing_tag(thinking_llm):
    message = refusal(thinking_llm(), thinking_token_budget=3, allowed_token_ids=[5, 6])
    assert message.startswith(f"thinking_token_budget is 3, but allowed_token_ids lacks {END}, the token </think>")


def test_structured_outputs_leave_no_room_to_think():
    with pytest.raises(ConfigError, match="thinking_token_budget is 3 but structured_outputs says"):
        SamplingParams(thinking_token_budget=3, structured_outputs={"choice": ["a", "b"]})
