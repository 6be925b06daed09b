"""Beam search against exhaustive search and a plain search over whole distributions; ends, penalties, refusals."""

import math

import numpy as np
import pytest

from nanovllm import ConfigError, SamplingParams

PROMPT = [5, 6, 7, 8, 9]
EOS = {2, 0, 168}


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def next_logprobs(llm, ids):
    return log_softmax(llm.engine.next_token_logits(ids))


def plain_search(llm, prompt, width, max_tokens, stop_ids, length_penalty, early_stopping):
    """Beam search as the textbook has it, one forward pass for each beam, over the whole vocabulary."""

    def score(beam):
        return beam[1] / len(beam[0]) ** length_penalty

    beams, ended = [([], 0.0)], []
    for _ in range(max_tokens):
        rows = [(ids, total, next_logprobs(llm, prompt + ids)) for ids, total in beams]
        grown = [([*ids, i], total + row[i]) for ids, total, row in rows for i in range(len(row))]
        grown.sort(key=lambda beam: -beam[1])
        ended += [beam for beam in grown[:width] if beam[0][-1] in stop_ids]
        ended = sorted(ended, key=score, reverse=True)[:width]
        beams = [beam for beam in grown[: 2 * width] if beam[0][-1] not in stop_ids][:width]
        if len(ended) == width and (early_stopping or score(beams[0]) <= score(ended[-1])):
            return ended
    return sorted(ended + beams, key=score, reverse=True)[:width]


def ids_of(output):
    return [completion.token_ids for completion in output.outputs]


def test_a_beam_of_one_is_greedy(make_llm):
    llm = make_llm()
    greedy = llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), use_tqdm=False)[0]
    (output,) = llm.beam_search(PROMPT, 1, 12, ignore_eos=True, use_tqdm=False)
    assert ids_of(output) == ids_of(greedy)
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == (greedy.outputs[0].text, "length")


def test_a_wide_beam_finds_the_best_of_all_pairs(make_llm):
    llm = make_llm()
    first = next_logprobs(llm, PROMPT)
    totals = np.stack([first[i] + next_logprobs(llm, [*PROMPT, i]) for i in range(500)])
    best = [divmod(int(at), 500) for at in np.argsort(-totals, axis=None)[:3]]
    (output,) = llm.beam_search(PROMPT, 250, 2, ignore_eos=True, use_tqdm=False)
    assert [tuple(ids) for ids in ids_of(output)[:3]] == best
    for (i, j), completion in zip(best, output.outputs[:3], strict=True):
        assert completion.cumulative_logprob == pytest.approx(totals[i, j], abs=1e-4)


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.5, -1.0])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("stop_ids", [EOS, {2, *range(0, 500, 3)}], ids=["eos", "many"])  # 2 is in config.json
def test_the_textbook_search(make_llm, edited_model, length_penalty, early_stopping, stop_ids):
    model = edited_model("llama-f32", generation_config={"eos_token_id": sorted(stop_ids)})
    llm = make_llm(model)
    prompts = [PROMPT, [3], list(range(20, 60))]
    outputs = llm.beam_search(prompts, 3, 8, length_penalty, early_stopping, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = plain_search(llm, prompt, 3, 8, stop_ids, length_penalty, early_stopping)
        assert ids_of(output) == [ids for ids, _ in expected]
        for completion, (ids, total) in zip(output.outputs, expected, strict=True):
            assert completion.cumulative_logprob == pytest.approx(total, abs=1e-4)
            assert completion.finish_reason == ("stop" if ids[-1] in stop_ids else "length")
            shown = ids[:-1] if ids[-1] in stop_ids else ids
            whole, begin = llm.tokenizer.decode(prompt + shown), llm.tokenizer.decode(prompt)
            assert whole == begin + completion.text or "\ufffd" in begin
    assert not llm.engine.has_unfinished and not llm.dispatcher.states
    llm.engine.block_manager.check([])


def test_beams_share_the_blocks_of_their_prompt(make_llm):
    llm = make_llm()
    prompt = [(7 * i) % 400 + 3 for i in range(97)]
    llm.beam_search(prompt, 4, 6, ignore_eos=True, use_tqdm=False)
    # 96 tokens are three full blocks, computed once; then the 97th and what each beam has beyond it.
    assert llm.stats()["computed_tokens"] == 97 + 4 * sum(1 + done for done in range(1, 6))


def test_the_length_of_the_model_ends_a_search(make_llm):
    (output,) = make_llm(max_model_len=8).beam_search(PROMPT, 2, 50, ignore_eos=True, use_tqdm=False)
    assert [len(ids) for ids in ids_of(output)] == [3, 3]


def test_many_prompts_in_a_small_engine(make_llm):
    prompts = [[i + 3, 7] for i in range(20)]
    alone = [make_llm().beam_search(prompt, 2, 3, use_tqdm=False)[0] for prompt in prompts[:3]]
    outputs = make_llm(max_num_seqs=2).beam_search(prompts, 2, 3, use_tqdm=False)
    assert [output.request_id for output in outputs] == [str(i) for i in range(20)]
    assert [ids_of(output) for output in outputs[:3]] == [ids_of(output) for output in alone]


def test_a_refused_prompt_fails_alone(make_llm):
    outputs = make_llm().beam_search([[], PROMPT, [500]], 2, 3, use_tqdm=False)
    assert [output.error and output.error.code for output in outputs] == ["empty_prompt", None, "invalid_token_id"]
    assert len(outputs[1].outputs) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 0}, {"width": 501}, {"max_tokens": True}, {"length_penalty": "1"}, {"early_stopping": 1},
        {"length_penalty": math.nan}, {"length_penalty": -1e308}, {"length_penalty": 10**400},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_at_once(make_llm, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        make_llm().beam_search(PROMPT, use_tqdm=False, **settings)
