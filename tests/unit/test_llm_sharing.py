"""Work done once for several requests: equal requests in flight, shared prompts, samples; adding and cancelling."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm import LLM, Request, SamplingParams, dispatcher
from nanovllm.engine.limits import block_bytes
from nanovllm.models import load_spec

SHARED = [(7 * i) % 400 + 3 for i in range(512)]
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture
def llm(make_llm):
    made = make_llm()
    yield made
    assert not made.engine.has_unfinished, "a request was left behind"
    assert not made.dispatcher.states and not made.dispatcher.shared
    made.engine.block_manager.check([])


def greedy(**changes):
    return SamplingParams(**{"temperature": 0, "max_tokens": 6, "ignore_eos": True, **changes})


def sampled(**changes):
    return greedy(**{"temperature": 1.0, **changes})


def ids_of(output):
    return [completion.token_ids for completion in output.outputs]


# ---- equal requests


@pytest.mark.parametrize("params", [greedy(), sampled(seed=3), sampled(seed=3, n=2, logprobs=1, prompt_logprobs=0)])
def test_equal_requests_in_flight_are_computed_once(make_llm, llm, params):
    expected = make_llm().generate([PROMPT], params, use_tqdm=False)[0]
    outputs = llm.generate([PROMPT] * 5, params, use_tqdm=False)
    assert llm.stats()["deduplicated"] == 4
    assert llm.stats()["completion_tokens"] == 6 * params.n
    assert [output.request_id for output in outputs] == list("01234")
    for output in outputs:
        assert output.outputs == expected.outputs and output.prompt_logprobs == expected.prompt_logprobs
    outputs[0].outputs[0].token_ids.append(-1)
    outputs[0].prompt_token_ids.append(-1)
    assert (outputs[1].outputs[0].token_ids[-1:], outputs[1].prompt_token_ids) != ([-1], outputs[0].prompt_token_ids)


@pytest.mark.parametrize(
    "first, second",
    [
        ((PROMPT, sampled()), (PROMPT, sampled())),  # each has a seed of its own, derived from its key
        ((PROMPT, sampled(seed=3)), (PROMPT, sampled(seed=4))),
        ((PROMPT, greedy()), (PROMPT, greedy(max_tokens=7))),
        ((PROMPT, greedy()), (PROMPT, greedy(logprobs=0))),
        ((PROMPT, greedy()), ([*PROMPT, 5], greedy())),
    ],
)
def test_unequal_requests_are_not_one(llm, first, second):
    prompts, params = zip(first, second, strict=True)
    outputs = llm.generate(list(prompts), list(params), use_tqdm=False)
    assert llm.stats()["deduplicated"] == 0
    assert llm.stats()["completion_tokens"] == sum(len(ids_of(output)[0]) for output in outputs)


def test_only_requests_that_are_in_flight_together_are_one(llm):
    for _ in range(2):
        llm.generate([PROMPT], greedy(), use_tqdm=False)
    assert llm.stats()["deduplicated"] == 0


def test_text_and_ids_of_one_prompt_are_equal_requests(llm):
    ids = llm.tokenizer.encode("The answer")
    outputs = llm.generate(["The answer", {"prompt_token_ids": ids}], greedy(), use_tqdm=False)
    assert llm.stats()["deduplicated"] == 1
    assert [output.prompt for output in outputs] == ["The answer", None]


def test_who_joined_goes_on_when_the_first_leaves(llm):
    expected = ids_of(llm.generate([PROMPT], greedy(max_tokens=20), use_tqdm=False)[0])
    first = llm.generate_iter([Request([3], greedy(), "short"), Request(PROMPT, greedy(max_tokens=20), "left")])
    second = llm.generate_iter([Request([4], greedy(), "short"), Request(PROMPT, greedy(max_tokens=20), "stays")])
    assert next(first).request_id == "short"
    assert next(second).request_id == "short"
    assert llm.stats()["deduplicated"] == 1
    first.close()
    (output,) = second
    assert (output.request_id, ids_of(output)) == ("stays", expected)


def test_a_stream_is_for_itself(llm):
    iterator = llm.generate_iter([Request([3], greedy(), "short"), Request(PROMPT, greedy(max_tokens=20), "long")])
    next(iterator)
    text = "".join(llm.generate_stream(PROMPT, greedy(max_tokens=20)))
    (output,) = iterator
    assert text == output.outputs[0].text
    assert llm.stats()["deduplicated"] == 0


# ---- shared prompts


@pytest.mark.parametrize("settings", [{}, {"reorder": False}, {"max_num_batched_tokens": 100}, {"max_num_seqs": 4}])
def test_a_shared_beginning_is_computed_once(make_llm, edited_model, settings):
    prompts = [SHARED + [(i * 37 + j * 11) % 400 + 3 for j in range(32)] for i in range(64)]
    params = greedy(max_tokens=1)
    model = edited_model("llama-f32", config={"max_position_embeddings": 600})
    llm = make_llm(model, **{"max_model_len": 600, "max_num_seqs": 64, **settings})
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert llm.stats()["computed_tokens"] <= 512 + 64 * 48
    assert sum(output.num_cached_tokens for output in outputs) == 63 * 512 == llm.stats()["cached_tokens"]
    plain = make_llm(model, max_model_len=600, enable_prefix_caching=False)
    some = plain.generate(prompts[::9], params, use_tqdm=False)
    assert [ids_of(output) for output in outputs[::9]] == [ids_of(output) for output in some]


def test_mixed_beginnings_meet_in_a_small_cache(make_llm):
    """Four beginnings in turn, and room for about two of them: in the order of arrival each is computed anew."""
    starts = [[(i * 53 + j * 7) % 400 + 3 for j in range(128)] for i in range(4)]
    prompts = [starts[i % 4] + [(i * 37 + j * 11) % 400 + 3 for j in range(20)] for i in range(24)]
    computed, found = {}, {}
    for reorder in (True, False):
        llm = make_llm(max_num_seqs=2, reorder=reorder)
        size = llm.engine.limits.kv_cache_bytes // llm.engine.limits.num_blocks
        llm = make_llm(max_num_seqs=2, reorder=reorder, kv_cache_memory=10 * size)
        found[reorder] = [ids_of(o) for o in llm.generate(prompts, greedy(max_tokens=1), use_tqdm=False)]
        computed[reorder] = llm.stats()["computed_tokens"]
    assert found[True] == found[False]
    # Windows are 8 requests, so a beginning may be needed again in the next one; in order it always is.
    assert computed[True] <= 24 * 20 + 3 * 4 * 128 < 24 * 20 + 20 * 128 <= computed[False]


def test_samples_share_their_prompt(llm):
    output = llm.generate([SHARED[:100]], sampled(n=5, seed=7, max_tokens=4), use_tqdm=False)[0]
    assert llm.stats()["computed_tokens"] == 100 + 4 * (100 - 96) + 5 * 3
    assert len({tuple(ids) for ids in ids_of(output)}) == 5


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 4])
def test_samples_share_less_than_a_block_and_do_without_the_prefix_cache(make_llm, caching, max_tokens):
    llm = make_llm(enable_prefix_caching=caching)
    llm.generate([SHARED[:60]], sampled(n=5, seed=7, max_tokens=max_tokens), use_tqdm=False)
    assert llm.stats()["computed_tokens"] == 60 + 4 * 1 + 5 * (max_tokens - 1)
    assert not llm.engine.scheduler.kept
    llm.engine.block_manager.check([])


@given(
    samples=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=4),
    num_blocks=st.integers(3, 9),
    max_num_seqs=st.integers(1, 5),
    chunk=st.sampled_from([5, 32, 64]),
    caching=st.booleans(),
)
@settings(max_examples=25)
def test_samples_that_fork_are_those_that_compute_their_prompt(
    models_dir, samples, num_blocks, max_num_seqs, chunk, caching
):
    size = block_bytes(load_spec(models_dir / "llama-f32"))
    llm = LLM(
        models_dir / "llama-f32", dtype="float32", threads=1, max_model_len=96, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=chunk, kv_cache_memory=num_blocks * size, enable_prefix_caching=caching,
    )  # fmt: skip
    prompts = [SHARED[:length] for length, _, _ in samples]
    params = [sampled(n=n, seed=i, max_tokens=most, logprobs=0) for i, (_, n, most) in enumerate(samples)]
    forked = llm.generate(prompts, params, use_tqdm=False)
    llm.engine.block_manager.check([])
    assert not llm.engine.scheduler.kept and not llm.engine.has_unfinished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "FORK_TOKENS", 1000)
        for output, prompt, one in zip(forked, prompts, params, strict=True):
            assert output.outputs == llm.generate([prompt], one, use_tqdm=False)[0].outputs


def test_cancelling_before_the_samples_fork_ends_them_all(make_llm):
    llm = make_llm(max_num_batched_tokens=16)

    def source():
        yield Request(SHARED[:90], sampled(n=4), "many")
        yield None  # a step: 16 of 90 tokens
        assert (llm.stats()["running"], llm.stats()["waiting"]) == (1, 0)
        assert llm.cancel("many") == 1

    (output,) = llm.generate_iter(source())
    assert [(one.finish_reason, one.token_ids, one.text) for one in output.outputs] == [("abort", [], "")] * 4
    assert not llm.engine.has_unfinished and not llm.dispatcher.states
    llm.engine.block_manager.check([])


def test_the_samples_of_a_request_count_in_the_window(make_llm):
    pulled = []

    def source():
        for i in range(20):
            pulled.append(i)
            yield Request([i + 3, 7, 9], sampled(n=8), str(i))

    iterator = make_llm(max_num_seqs=4).generate_iter(source())
    next(iterator)
    assert len(pulled) <= 3  # of two requests in flight, the first may have gone
    assert len(list(iterator)) == 19


# ---- adding and cancelling


def test_requests_are_added_while_others_run(llm):
    todo, served = [Request(PROMPT, greedy(), "0")], []

    def source():
        while len(served) < 4:
            yield todo.pop() if todo else None

    for output in llm.generate_iter(source()):
        served.append((output.request_id, output.prompt_token_ids, ids_of(output)[0]))
        todo.append(Request(served[-1][1] + served[-1][2], greedy(), str(len(served))))
    whole = llm.generate([PROMPT], greedy(max_tokens=24), use_tqdm=False)[0]
    assert [name for name, _, _ in served] == ["0", "1", "2", "3"]
    assert [i for _, _, ids in served for i in ids] == ids_of(whole)[0]


def test_a_cancelled_request_comes_back_with_what_it_has(llm):
    whole = ids_of(llm.generate([PROMPT], greedy(max_tokens=40), use_tqdm=False)[0])[0]
    requests = [Request(PROMPT, greedy(max_tokens=40), "long", data=1), Request([3], greedy(), "short")]
    iterator = llm.generate_iter(requests)
    assert next(iterator).request_id == "short"
    assert (llm.cancel("nobody"), llm.cancel("long"), llm.cancel("long")) == (0, 1, 0)
    (output,) = iterator
    assert (output.request_id, output.data, output.error) == ("long", 1, None)
    completion = output.outputs[0]
    assert (completion.finish_reason, completion.token_ids) == ("abort", whole[:6])
    assert completion.text == llm.tokenizer.decode(PROMPT + whole[:6])[len(llm.tokenizer.decode(PROMPT)) :]


def test_cancelling_one_of_two_equal_requests_leaves_the_other(llm):
    requests = [Request(PROMPT, greedy(max_tokens=20), "a"), Request(PROMPT, greedy(max_tokens=20), "b")]
    iterator = llm.generate_iter([*requests, Request([3], greedy(), "short")])
    next(iterator)
    assert llm.cancel("a") == 1
    outputs = {output.request_id: output.outputs[0] for output in iterator}
    assert (outputs["a"].finish_reason, outputs["b"].finish_reason) == ("abort", "length")
    assert outputs["b"].token_ids[:6] == outputs["a"].token_ids
    assert len(outputs["b"].token_ids) == 20


# ---- text as it comes


def test_text_comes_in_pieces_while_requests_run(llm):
    heard, pieces = [], {}

    def hear(name):
        def on_text(index, piece):
            heard.append(name)
            pieces.setdefault((name, index), []).append(piece)

        return on_text

    requests = [
        Request(PROMPT, sampled(n=2, seed=1, max_tokens=20), "a", on_text=hear("a")),
        Request([3, 4], greedy(max_tokens=20), "b", on_text=hear("b")),
        Request([3, 4], greedy(max_tokens=20), "equal", on_text=hear("equal")),
        Request([3, 4], greedy(max_tokens=20), "silent"),
        Request([], greedy(), "refused", on_text=hear("refused")),
    ]
    outputs = {output.request_id: output for output in llm.generate_iter(requests)}
    assert llm.stats()["deduplicated"] == 2
    for name, count in (("a", 2), ("b", 1), ("equal", 1)):
        for one in outputs[name].outputs:
            assert len(pieces[name, one.index]) > 5
            assert "".join(pieces[name, one.index]) == one.text
        assert len(outputs[name].outputs) == count
    assert set(heard) == {"a", "b", "equal"}
    assert heard.index("b") < len(heard) - 1 - heard[::-1].index("a")  # in turns


def test_no_piece_holds_what_a_stop_string_takes_away(llm):
    whole = llm.generate([PROMPT], greedy(max_tokens=12), use_tqdm=False)[0].outputs[0].text
    stop, pieces = whole[4:7], []
    request = Request(PROMPT, greedy(max_tokens=12, stop=stop), on_text=lambda index, piece: pieces.append(piece))
    (output,) = llm.generate_iter([request])
    assert "".join(pieces) == output.outputs[0].text == whole[: whole.index(stop)]


def test_a_failing_listener_ends_its_iterator_and_nothing_else(llm):
    alone = ids_of(llm.generate([[3, 4]], greedy(max_tokens=9), use_tqdm=False)[0])

    def fail(index, piece):
        raise OSError("nobody listens")

    other = llm.generate_iter([Request([5], greedy(max_tokens=1), "x"), Request([3, 4], greedy(max_tokens=9), "y")])
    next(other)
    with pytest.raises(OSError, match="nobody listens"):
        list(llm.generate_iter([Request(PROMPT, greedy(), on_text=fail)]))
    (output,) = other
    assert ids_of(output) == alone


def test_a_listener_may_cancel(llm):
    request = Request(PROMPT, greedy(max_tokens=30), "x", on_text=lambda index, piece: llm.cancel("x"))
    (output,) = llm.generate_iter([request])
    assert (output.outputs[0].finish_reason, len(output.outputs[0].token_ids) < 30) == ("abort", True)
