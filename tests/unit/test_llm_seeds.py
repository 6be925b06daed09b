"""Sampling defaults of a model, and draws that depend on nothing but the seed, the sample and the position."""

import pytest

from nanovllm import SamplingParams

CASE = "llama-f32"


def ids_of(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def test_sampling_defaults_of_the_model(make_llm):
    with_file = make_llm().default_sampling_params()
    assert (with_file.temperature, with_file.top_p, with_file.top_k, with_file.max_tokens) == (0.6, 0.9, 0, 16)
    assert make_llm(generation_config="none").get_default_sampling_params() == SamplingParams()


def test_the_defaults_are_used_when_nothing_is_given(make_llm, edited_model):
    greedy_by_default = edited_model(CASE, generation_config={"temperature": 0.0, "repetition_penalty": 1.3})
    output = make_llm(greedy_by_default).generate("Hello", use_tqdm=False)[0].outputs[0]
    explicit = SamplingParams(temperature=0, repetition_penalty=1.3)
    assert output.token_ids == make_llm().generate("Hello", explicit, use_tqdm=False)[0].outputs[0].token_ids
    assert output.seed is None
    ignored = make_llm(greedy_by_default, generation_config="none").generate("Hello", use_tqdm=False)[0].outputs[0]
    assert ignored.seed is not None
    assert ignored.token_ids == make_llm().generate("Hello", SamplingParams(), use_tqdm=False)[0].outputs[0].token_ids


def sampled(**changes):
    return SamplingParams(**{"temperature": 1.0, "max_tokens": 12, "ignore_eos": True, **changes})


def test_samples_of_one_request_differ_and_do_not_depend_on_n(make_llm):
    llm = make_llm()
    three = llm.generate("Hello", sampled(n=3, seed=7), use_tqdm=False)[0].outputs
    five = llm.generate("Hello", sampled(n=5, seed=7), use_tqdm=False)[0].outputs
    assert [output.index for output in five] == [0, 1, 2, 3, 4]
    assert len({tuple(output.token_ids) for output in five}) == 5
    assert [output.token_ids for output in five[:3]] == [output.token_ids for output in three]
    assert {output.seed for output in five} == {7}


def test_equal_prompts_without_a_seed_differ_and_repeat(make_llm):
    llm = make_llm()
    prompts = ["Hello"] * 20
    first = llm.generate(prompts, sampled(), use_tqdm=False)
    assert len({tuple(ids) for ids in ids_of(first)}) > 15
    assert len({output.outputs[0].seed for output in first}) == 20
    assert ids_of(llm.generate(prompts, sampled(), use_tqdm=False)) == ids_of(first)
    assert ids_of(make_llm(seed=1).generate(prompts, sampled(), use_tqdm=False)) != ids_of(first)
    again = llm.generate(["Hello"], sampled(seed=first[3].outputs[0].seed), use_tqdm=False)
    assert ids_of(again) == [ids_of(first)[3]]  # the seed in the result repeats it


@pytest.mark.parametrize("seed", [0, -5, 2**64 - 1])
def test_any_seed_of_64_bits(make_llm, seed):
    outputs = make_llm().generate(["Hello"] * 2, sampled(seed=seed), use_tqdm=False)
    assert ids_of(outputs)[0] == ids_of(outputs)[1]
    assert outputs[0].outputs[0].seed == seed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_seeded_row_does_not_feel_its_neighbours(make_llm, dtype):
    row = ({"prompt_token_ids": [5, 6, 7, 8, 9]}, sampled(seed=11, max_tokens=20))
    neighbours = [
        ("no seed", sampled()), ("many", sampled(n=4, seed=3)), ("stops", sampled(stop=["e", " "])),
        ([9] * 70, SamplingParams(temperature=0, max_tokens=3)),
        ([5, 6, 7, 8, 9, 10], sampled(seed=11, repetition_penalty=1.5)),
    ]  # fmt: skip
    found = []
    for threads in (1, 2):
        llm = make_llm(threads=threads, dtype=dtype)
        for mix in ([row], [row, *neighbours], [*neighbours, row], [neighbours[2], row, neighbours[0]]):
            outputs = llm.generate([prompt for prompt, _ in mix], [params for _, params in mix], use_tqdm=False)
            found.append(outputs[mix.index(row)].outputs[0].token_ids)
    assert len(found[0]) == 20
    assert found == found[:1] * 8
