"""The three kinds of requests of lm-evaluation-harness, answered by a tiny model, against raw logits taken by hand."""

import logging

import numpy as np
import pytest

pytest.importorskip("lm_eval.api.model", reason="lm-evaluation-harness is not installed (extra lm-eval)")

from nanovllm import ConfigError, RequestError, SamplingParams

TOLERANCE = 1e-4
LONG = "The answer of the question is in the answer of the other question. " * 4


def logprob_by_hand(lm, context, ids):
    """Sum over ids after context, each position computed by itself; and whether all are the largest."""
    total, greedy = 0.0, True
    for end, token_id in enumerate(ids):
        logits = lm._llm.engine.next_token_logits(context + ids[:end]).astype(np.float64)
        total += logits[token_id] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        greedy &= int(logits.argmax()) == token_id
    return total, greedy


def assert_close(answer, expected):
    assert answer[0] == pytest.approx(expected[0], abs=TOLERANCE)
    assert answer[1] is expected[1]


class Noted:
    """A cache hook that keeps what it is told."""

    def __init__(self):
        self.partial = []

    def add_partial(self, kind, arguments, result):
        self.partial.append((kind, arguments, result))


# ---- log likelihoods


def test_pairs_come_back_in_their_order(make_lm, instances):
    lm = make_lm()
    pairs = [("The", " answer"), ("", "the"), ("The answer ", "is"), ("The", " the"), ("The", " answer"), ("", "the")]
    answers = lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    ids = {"The": [340], " answer": [460, 85, 89, 270], "the": [86, 259]}
    assert_close(answers[0], logprob_by_hand(lm, ids["The"], ids[" answer"]))
    assert_close(answers[1], logprob_by_hand(lm, [0], ids["the"]))  # after BOS
    assert_close(answers[2], logprob_by_hand(lm, [340, 460, 85, 89, 270], [323]))  # the blank goes to the choice
    assert_close(answers[3], logprob_by_hand(lm, ids["The"], lm.tokenizer.encode("The the")[1:]))
    assert (answers[4], answers[5]) == (answers[0], answers[1])


def test_equal_contexts_are_computed_once(make_lm, instances):
    lm = make_lm()
    choices = [(LONG[:200], f" {word}") for word in ("answer", "question", "other")] * 2
    num_context = len(lm.tokenizer.encode(LONG[:200]))
    ids = [lm.tokenizer.encode(LONG[:200] + choice)[num_context:] for _, choice in choices[:3]]
    lm.loglikelihood(instances("loglikelihood", *choices), disable_tqdm=True)
    # What choices begin with is computed once, and the last token of each is only scored.
    assert lm._llm.stats()["computed_tokens"] == num_context + len(
        {(*one[:i],) for one in ids for i in range(1, len(one))}
    )


def test_what_greedy_decoding_writes_is_greedy(make_lm, instances):
    lm = make_lm()
    ids = lm.tokenizer.encode("The")
    text = lm._llm.generate([ids], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True), use_tqdm=False)[0]
    best, other = lm.tokenizer.decode(text.outputs[0].token_ids), " answer"
    answers = lm.loglikelihood(instances("loglikelihood", ("The", best), ("The", other)), disable_tqdm=True)
    assert [is_greedy for _, is_greedy in answers] == [True, False]


def test_a_long_context_loses_its_beginning(make_lm, instances, caplog):
    lm = make_lm(engine={"max_model_len": 32})
    with caplog.at_level(logging.WARNING, "lm_eval.models.nanovllm"):
        answers = lm.loglikelihood(instances("loglikelihood", (LONG, " answer"), ("The", " answer")), disable_tqdm=True)
    context, ids = lm.tokenizer.encode(LONG.rstrip()), lm.tokenizer.encode("The answer")[1:]
    whole = lm.tokenizer.encode(LONG + " answer")
    scored = whole[len(context) :]
    assert_close(answers[0], logprob_by_hand(make_lm(), whole[-33 : -len(scored)], scored))
    assert_close(answers[1], logprob_by_hand(lm, [340], ids))
    assert lm.num_truncated == 1
    lost = len(whole) - 33
    assert f"1 of 2 contexts did not fit into max_length 32 and lost {lost} tokens" in caplog.text


@pytest.mark.parametrize("case, first", [("llama-f32", [0]), ("qwen2-bf16-tied", [499])])
def test_a_text_rolls_over_windows(make_lm, instances, case, first):
    lm, roomy = make_lm(case, engine={"max_model_len": 16}), make_lm(case)
    whole = first + lm.tokenizer.encode(LONG[:120])
    expected = 0.0
    for begin in range(1, len(whole), 16):
        end = min(begin + 16, len(whole))
        expected += logprob_by_hand(roomy, whole[max(0, end - 17) : begin], whole[begin:end])[0]
    answers = lm.loglikelihood_rolling(
        instances("loglikelihood_rolling", ("",), (LONG[:120],), ("The",)), disable_tqdm=True
    )
    assert answers[0] == 0.0
    assert answers[1] == pytest.approx(expected, abs=len(whole) * TOLERANCE)
    assert answers[2] == pytest.approx(logprob_by_hand(roomy, first, lm.tokenizer.encode("The"))[0], abs=TOLERANCE)


def test_a_bos_that_the_tokenizer_puts_first_is_scored(make_lm, instances):
    lm = make_lm("llama-bf16-llama3rope")
    (answer,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", ("The",)), disable_tqdm=True)
    ids = lm.tokenizer.encode("The")
    assert ids[0] == 497
    assert answer == pytest.approx(logprob_by_hand(lm, [497], ids)[0], abs=TOLERANCE)


# ---- generation


def written(lm, context, num_tokens):
    """The ids and the text that the largest logits write, one token after the other."""
    prompt = lm.tokenizer.encode(context)
    ids = []
    while len(ids) < num_tokens and lm.eot_token_id not in ids:
        ids.append(int(lm._llm.engine.next_token_logits(prompt + ids).argmax()))
    return ids, lm.tokenizer.decode(prompt + ids)[len(lm.tokenizer.decode(prompt)) :]


def test_texts_are_greedy_end_before_a_stop_and_keep_their_order(make_lm, instances):
    lm = make_lm()
    _, whole = written(lm, "The answer", 12)
    assert len(whole) > 6
    stops = [whole[4:6], whole[2:3]]
    answers = lm.generate_until(
        instances(
            "generate_until",
            ("The answer", {"until": ["\x00"], "max_gen_toks": 12}),
            ("The", {"until": [], "max_tokens": 3, "do_sample": False}),
            ("The answer", {"until": stops, "max_gen_toks": 12}),
            ("The answer", {"until": ["\x00"], "max_gen_toks": 12, "temperature": 0.9, "do_sample": False}),
        ),
        disable_tqdm=True,
    )
    assert answers[0] == answers[3] == whole
    assert answers[1] == written(lm, "The", 3)[1]
    assert answers[2] == whole[: min(whole.index(stop) for stop in stops)]


def test_a_prompt_leaves_room_for_what_is_generated(make_lm, instances, caplog):
    lm = make_lm(engine={"max_model_len": 32})
    with caplog.at_level(logging.WARNING, "lm_eval.models.nanovllm"):
        (answer,) = lm.generate_until(instances("generate_until", (LONG, {"max_gen_toks": 8})), disable_tqdm=True)
    kept = lm.tokenizer.encode(LONG)[-24:]
    params = SamplingParams(temperature=0, max_tokens=8, stop=["<|im_end|>"])
    assert answer == make_lm()._llm.generate([kept], params, use_tqdm=False)[0].outputs[0].text
    assert "1 of 1 contexts did not fit into max_length 32" in caplog.text
    with pytest.raises(ConfigError, match="max_gen_toks: 32 tokens to generate leave no room"):
        lm.generate_until(instances("generate_until", ("The", {"max_gen_toks": 32})), disable_tqdm=True)


def test_samples_do_not_depend_on_what_runs_beside_them(make_lm, instances):
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    requests = [("The", settings), ("The answer", settings), ("The", settings)]
    answers = make_lm().generate_until(instances("generate_until", *requests), disable_tqdm=True)
    assert answers[0] != answers[2]  # repeats of a document differ
    alone = make_lm().generate_until(instances("generate_until", requests[1]), disable_tqdm=True)
    assert alone == [answers[1]]


@pytest.mark.parametrize("as_id", [True, False])
def test_an_answer_comes_after_the_last_thought(make_lm, instances, as_id):
    lm = make_lm()
    ids, whole = written(lm, "The answer", 12)
    mark = ids[4]
    last = len(ids) - 1 - ids[::-1].index(mark)
    token = lm.tokenizer.decode([mark])
    assert token in whole
    thinking = make_lm(think_end_token=mark if as_id else token)
    (answer,) = thinking.generate_until(
        instances("generate_until", ("The answer", {"max_gen_toks": 12})), disable_tqdm=True
    )
    expected = lm.tokenizer.decode(ids[last + 1 :]) if as_id else whole[whole.rindex(token) + len(token) :]
    assert answer == expected.lstrip()


def test_thinking_is_nothing_for_log_likelihoods(make_lm, instances):
    with pytest.raises(ConfigError, match="enable_thinking"):
        make_lm(enable_thinking=True).loglikelihood(instances("loglikelihood", ("The", " answer")))


# ---- the harness's cache, and failures


def test_the_cache_hears_of_each_result_as_it_finishes(make_lm, instances):
    lm = make_lm(engine={"max_num_seqs": 2})
    lm.set_cache_hook(Noted())
    seen = []
    score_iter = lm._llm.score_iter

    def counting(requests):
        for scored in score_iter(requests):
            seen.append(len(lm.cache_hook.partial))
            yield scored

    lm._llm.score_iter = counting
    pairs = [("The", " answer"), ("The answer", " is"), ("", "the"), ("The", " the")]
    answers = lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    assert seen[0] == 0 and seen[-1] > 0
    assert sorted(lm.cache_hook.partial) == sorted(("loglikelihood", *one) for one in zip(pairs, answers, strict=True))


def test_the_cache_gets_every_kind_with_the_arguments_of_the_request(make_lm, instances):
    lm = make_lm()
    lm.set_cache_hook(Noted())
    settings = {"max_gen_toks": 2, "until": ["x"]}
    (text,) = lm.generate_until(instances("generate_until", ("The", settings)), disable_tqdm=True)
    (total,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", ("The",)), disable_tqdm=True)
    assert lm.cache_hook.partial == [
        ("generate_until", ("The", settings), text),
        ("loglikelihood_rolling", ("The",), total),
    ]


def test_a_request_that_fails_is_told_when_the_others_are_done(make_lm, instances):
    lm = make_lm()
    lm.set_cache_hook(Noted())
    requests = instances("loglikelihood", ("The", " answer"), ("The", ""), ("lone \ud83d", "x"))
    with pytest.raises(
        RequestError, match=r"2 of 3 loglikelihood requests failed, the first .* number 1 \(task task\)"
    ):
        lm.loglikelihood(requests, disable_tqdm=True)
    assert [arguments for _, arguments, _ in lm.cache_hook.partial] == [("The", " answer")]
    assert lm._llm.stats()["running"] == lm._llm.stats()["waiting"] == 0


# ---- chat templates


def test_a_conversation_is_rendered_by_the_models_template(make_lm):
    lm = make_lm()
    history = [{"role": "user", "content": "The?"}]
    assert lm.apply_chat_template(history) == "<|im_start|>user\nThe?<|im_end|>\n<|im_start|>assistant\n"
    opened = [*history, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(opened, add_generation_prompt=False).endswith("<|im_start|>assistant\nIt is")
    assert lm.chat_template(True).startswith("{% for message in messages %}")
    assert lm.chat_template(False) is None
    assert lm.tokenizer_name.startswith("llama-f32__")


def test_a_system_message_that_the_template_refuses_is_left_out(make_lm, edited_model, caplog):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}|{% endfor %}"
    )
    lm = make_lm(edited_model("llama-f32", tokenizer_config={"chat_template": template}))
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The?"}]
    with caplog.at_level(logging.WARNING, "lm_eval.models.nanovllm"):
        assert lm.apply_chat_template(history) == "The?|"
    assert "no system" in caplog.text


def test_the_model_is_known_by_its_name_and_by_the_harnesss_arguments(models_dir):
    from lm_eval.api.registry import get_model

    from jobs.lm_eval_adapter import NanovllmLM

    assert get_model("nanovllm") is NanovllmLM
    lm = NanovllmLM.create_from_arg_obj(
        {"pretrained": str(models_dir / "llama-f32"), "dtype": "float32", "max_length": 64, "threads": 1},
        {"batch_size": 8, "max_batch_size": None, "device": "cuda:0"},
    )
    assert (lm.max_length, lm.get_model_info()["model_dtype"], lm.rank, lm.world_size) == (64, "float32", 0, 1)
    with pytest.raises(ConfigError, match="unknown engine setting 'dtypo'; did you mean 'dtype'"):
        NanovllmLM(str(models_dir / "llama-f32"), dtypo="float32")
    with pytest.raises(ConfigError, match="expected pretrained=DIR"):
        NanovllmLM()
