"""LLM's ways in and out: forms of prompts, refusals one by one, order, laziness, early ends, interleaving, seeds."""

import json

import pytest

from nanovllm import ConfigError, Request, RequestError, SamplingParams, TokenizerError

CASE = "llama-f32"
GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def recorded(models_dir):
    return json.loads((models_dir / CASE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def llm(make_llm):
    made = make_llm()
    yield made
    assert not made.engine.has_unfinished, "a request was left behind"
    assert not made.dispatcher.states
    made.engine.block_manager.check([])


def greedy(**changes):
    return SamplingParams(**{**GREEDY, **changes})


def ids_of(outputs):
    return [output.outputs[0].token_ids for output in outputs]


# ---- prompts and results


def test_every_form_of_a_prompt(llm, recorded):
    text = recorded["text"]["encode"][0]
    forms = [
        text["text"], {"prompt": text["text"]}, {"prompt_token_ids": text["ids"]}, text["ids"], tuple(text["ids"]),
        {"prompt": "shown, not encoded", "prompt_token_ids": text["ids"]},
    ]  # fmt: skip
    outputs = llm.generate(forms, greedy(), use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [text["ids_add_special_tokens"]] * len(forms)
    assert [output.prompt for output in outputs] == [text["text"]] * 2 + [None] * 3 + ["shown, not encoded"]
    assert len({tuple(ids) for ids in ids_of(outputs)}) == 1


@pytest.mark.parametrize("form", ["text", "dict", "ids"])
def test_a_single_prompt_is_a_list_of_one(llm, form):
    prompt = {"text": "Hello", "dict": {"prompt": "Hello"}, "ids": [42, 298]}[form]
    assert len(llm.generate(prompt, greedy(), use_tqdm=False)) == 1


def test_no_prompts_no_results(llm):
    assert llm.generate([], use_tqdm=False) == []
    assert llm.chat([], use_tqdm=False) == []


def test_results_are_in_the_order_of_the_prompts(llm, recorded):
    rows = recorded["prompts"]
    params = [greedy(max_tokens=n) for n in (9, 1, 5, 12, 2, 7)]  # the first to arrive is not the first to finish
    outputs = llm.generate([{"prompt_token_ids": row["ids"]} for row in rows], params, use_tqdm=False)
    assert [output.request_id for output in outputs] == ["0", "1", "2", "3", "4", "5"]
    assert ids_of(outputs) == [row["greedy_ids"][: p.max_tokens] for row, p in zip(rows, params, strict=True)]
    assert all(output.finished and output.error is None and output.data is None for output in outputs)
    assert [output.outputs[0].finished() for output in outputs] == [True] * 6


def test_many_more_prompts_than_sequences(make_llm, recorded):
    llm = make_llm(max_num_seqs=2)
    rows = recorded["prompts"][:3] * 10
    outputs = llm.generate([row["ids"] for row in rows], greedy(max_tokens=3), use_tqdm=False)
    assert ids_of(outputs) == [row["greedy_ids"][:3] for row in rows]


@pytest.mark.parametrize(
    "prompts, params, message",
    [
        (5, None, "prompts: expected a prompt or a list of prompts, found int"),
        (None, None, "found NoneType"),
        (["a", "b"], [SamplingParams()], "1 given for 2 prompts; give one for each"),
        (["a"], {"temperature": 0}, "sampling_params: expected a SamplingParams or a list of them"),
        (["a"], [None], "sampling_params: expected a SamplingParams or a list of them"),
    ],
)
def test_wrong_arguments_are_refused_at_once(llm, prompts, params, message):
    with pytest.raises(ConfigError, match=message):
        llm.generate(prompts, params, use_tqdm=False)


def test_a_refused_prompt_fails_alone(llm, recorded):
    rows = recorded["prompts"]
    long = [7] * 200
    prompts = [
        rows[1]["ids"], long, {"prompt_token_ids": []}, [500], [-1], {"prompt_token_ids": [3, 2.5]}, 5, None, {}, "",
        {"prompt": 7}, {"text": "x"}, {"prompt_token_ids": "12"}, {"prompt": None}, "lone \ud83d", rows[2]["ids"],
        [7] * 199,
    ]  # fmt: skip
    outputs = llm.generate(prompts, greedy(), use_tqdm=False)
    assert [output.error and output.error.code for output in outputs] == [
        None, "prompt_too_long", "empty_prompt", "invalid_token_id", "invalid_token_id", "invalid_prompt",
        "invalid_prompt", "invalid_prompt", "invalid_prompt", "empty_prompt", "invalid_prompt", "invalid_prompt",
        "invalid_prompt", "invalid_prompt", "invalid_text", None, None,
    ]  # fmt: skip
    messages = [str(output.error) for output in outputs]
    assert "the prompt has 200 tokens" in messages[1] and "the limit is 200 (max_model_len)" in messages[1]
    assert "token id 500 is outside the model's vocabulary of 500" in messages[3]
    assert "prompt_token_ids[1]: expected an int, found 2.5" in messages[5]
    assert "found the key 'text'" in messages[11]
    for output in outputs:
        if output.error is not None:
            assert (output.outputs[0].finish_reason, output.outputs[0].token_ids) == ("error", [])
            assert isinstance(output.error, RequestError) and output.finished
    assert outputs[0].outputs[0].token_ids == rows[1]["greedy_ids"][:6]
    assert outputs[15].outputs[0].token_ids == rows[2]["greedy_ids"][:6]
    assert (len(outputs[16].outputs[0].token_ids), outputs[16].outputs[0].finish_reason) == (1, "length")


def test_a_progress_bar_on_stderr(llm, capsys):
    llm.generate(["a", "b"], greedy(max_tokens=1), use_tqdm=True)
    captured = capsys.readouterr()
    assert "Processed prompts: 100%" in captured.err and "2/2" in captured.err
    assert captured.out == ""
    llm.generate(["a"], greedy(max_tokens=1), use_tqdm=False)
    assert capsys.readouterr() == ("", "")


# ---- chat


def test_chat_renders_and_answers(llm, recorded):
    row = recorded["text"]["chat"][0]
    single = llm.chat(row["messages"], greedy(), use_tqdm=False)
    several = llm.chat([row["messages"]] * 2, greedy(), use_tqdm=False)
    assert len(single) == 1
    assert ids_of(several) == ids_of(single) * 2
    assert [output.prompt_token_ids for output in several] == [single[0].prompt_token_ids] * 2
    assert single[0].prompt.endswith("<|im_start|>assistant\n")


def test_a_conversation_that_cannot_be_rendered_fails_alone(make_llm):
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    template = refusal + "{{ messages[0].content }}"
    llm = make_llm(chat_template=template)
    good = [{"role": "user", "content": "hi"}]
    rows = [good, [{"role": "system", "content": "x"}, *good], [], [{"content": "no role"}], None, "text", good]
    outputs = llm.chat(rows, greedy(), use_tqdm=False)
    assert [output.error and output.error.code for output in outputs] == [
        None, "template_error", "empty_messages", "template_error", "template_error", "template_error", None,
    ]  # fmt: skip
    assert "no system message" in str(outputs[1].error)
    assert outputs[0].outputs[0].token_ids == outputs[6].outputs[0].token_ids
    llm.engine.block_manager.check([])


def test_without_a_chat_template_chat_is_refused(make_llm, edited_model):
    llm = make_llm(edited_model(CASE, tokenizer_config={"chat_template": ...}))
    with pytest.raises(TokenizerError):
        llm.chat([{"role": "user", "content": "hi"}], use_tqdm=False)
    llm.engine.block_manager.check([])


# ---- the iterator


def requests(count, max_tokens=4, pulled=None):
    for i in range(count):
        if pulled is not None:
            pulled.append(i)
        yield Request([i + 3, 7, 9], greedy(max_tokens=max_tokens + i % 3), str(i), data=("row", i))


def test_every_request_comes_back_once_with_its_data(llm):
    outputs = list(llm.generate_iter(requests(20)))
    assert sorted(output.data for output in outputs) == [("row", i) for i in range(20)]
    assert all(output.request_id == str(output.data[1]) for output in outputs)


@pytest.mark.parametrize("window", [1, 3])
def test_no_more_than_a_window_is_pulled_ahead(llm, window):
    pulled, served = [], 0
    iterator = llm.generate_iter(requests(12, pulled=pulled), window=window)
    assert pulled == []
    for _ in iterator:
        assert len(pulled) <= served + window
        served += 1
    assert served == 12


def test_a_window_must_hold_a_request(llm):
    for window in (0, -1):
        with pytest.raises(ConfigError, match=f"window: expected at least 1 request in flight, found {window}"):
            next(llm.generate_iter(requests(1), window=window))


def test_settings_of_another_type_are_an_error_of_that_request(llm):
    given = [Request([5], {"temperature": 0}, "dict"), Request([5], {}, "empty"), Request([5], greedy(), "right")]
    outputs = {output.request_id: output for output in llm.generate_iter(given)}
    assert outputs["dict"].error.code == outputs["empty"].error.code == "invalid_sampling"
    assert "sampling_params: expected SamplingParams, found dict" in str(outputs["dict"].error)
    assert outputs["right"].error is None


def test_refused_requests_count_too(llm):
    pulled = []

    def source():
        for i in range(6):
            pulled.append(i)
            yield Request([], greedy(), str(i)) if i % 2 else Request([5], greedy(), str(i))

    outputs = []
    for output in llm.generate_iter(source(), window=2):
        assert len(pulled) <= len(outputs) + 3  # a refused one was never in flight
        outputs.append(output.request_id)
    assert sorted(outputs) == list("012345")


def test_closing_an_iterator_frees_everything(make_llm):
    llm = make_llm()
    iterator = llm.generate_iter(requests(10, max_tokens=30))
    first = next(iterator)
    assert first.finished
    assert llm.engine.has_unfinished
    iterator.close()
    assert not llm.engine.has_unfinished and not llm.dispatcher.states
    llm.engine.block_manager.check([])


def test_an_error_of_the_source_frees_everything(llm):
    def source():
        yield from requests(3)
        raise OSError("the file went away")

    with pytest.raises(OSError, match="went away"):
        list(llm.generate_iter(source(), window=2))


def test_a_failing_step_frees_everything_and_the_engine_goes_on(llm, recorded, monkeypatch):
    row = recorded["prompts"][4]  # two full blocks, which a broken step must not leave in the prefix cache

    def broken(batch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "run", broken)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([row["ids"]], greedy(), use_tqdm=False)
    assert not llm.engine.has_unfinished
    assert ids_of(llm.generate([row["ids"]], greedy(), use_tqdm=False)) == [row["greedy_ids"][:6]]


def test_two_iterators_take_turns(llm):
    alone = {o.request_id: o.outputs[0].token_ids for o in llm.generate_iter(requests(8))}
    left, right = llm.generate_iter(requests(8)), llm.generate_iter(requests(8, max_tokens=9))
    got = {"left": {}, "right": {}}
    for _ in range(8):
        for name, iterator in (("left", left), ("right", right)):
            output = next(iterator)
            got[name][output.request_id] = output.outputs[0].token_ids
    assert next(left, None) is None and next(right, None) is None
    assert got["left"] == alone
    assert {key: ids[: len(alone[key])] for key, ids in got["right"].items()} == alone
    assert len(got["right"]) == 8


def test_closing_one_iterator_leaves_the_other_alone(llm):
    left, right = llm.generate_iter(requests(4, max_tokens=20)), llm.generate_iter(requests(4))
    next(right)
    next(left)
    left.close()
    assert len(list(right)) == 3


def test_a_stream_that_another_iterator_finishes_loses_no_text(llm, recorded):
    row = recorded["prompts"][0]
    alone = "".join(llm.generate_stream(row["ids"], greedy(max_tokens=20)))
    stream = llm.generate_stream(row["ids"], greedy(max_tokens=20))
    pieces = [next(stream)]
    list(llm.generate_iter(requests(2, max_tokens=40)))  # its steps serve the stream's sequence too
    pieces += stream
    assert "".join(pieces) == alone


def test_leaving_a_stream_early_frees_it(llm, recorded):
    stream = llm.generate_stream(recorded["prompts"][0]["ids"], greedy(max_tokens=20))
    next(stream)
    assert llm.engine.has_unfinished
    stream.close()


def test_a_stream_refuses_by_raising(llm):
    with pytest.raises(RequestError, match="the prompt has no tokens") as caught:
        next(llm.generate_stream({"prompt_token_ids": []}))
    assert caught.value.code == "empty_prompt"


# ---- reports


def test_stats_count_tokens(llm, recorded):
    row = recorded["prompts"][4]
    for _ in range(2):
        llm.generate([row["ids"]], greedy(), use_tqdm=False)
    stats = llm.stats()
    assert (stats["prompt_tokens"], stats["completion_tokens"], stats["cached_tokens"]) == (128, 12, 32)
    assert (stats["running"], stats["waiting"], stats["preemptions"]) == (0, 0, 0)


def test_top_logits_are_sorted(llm, recorded):
    row = recorded["prompts"][2]
    best = llm.top_logits({"prompt_token_ids": row["ids"]}, 5)
    assert best[0][0] == row["greedy_ids"][0]
    assert [logit for _, logit, _ in best] == sorted((logit for _, logit, _ in best), reverse=True)
    assert best[0][1] - best[1][1] == pytest.approx(row["greedy_margins"][0], abs=1e-3)
    assert best[0][2] == llm.tokenizer.id_to_token(best[0][0])
    with pytest.raises(RequestError):
        llm.top_logits({"prompt_token_ids": []}, 5)
