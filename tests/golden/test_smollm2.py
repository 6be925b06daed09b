"""A real model, SmolLM2-135M-Instruct in float32, against what transformers computed.

The folder is named by NANOVLLM_DEMO_MODEL: what `nanovllm fetch-demo` makes, weights kept in float32.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from nanovllm import LLM, SamplingParams
from nanovllm.engine.sequence import Sequence

DATA = Path(__file__).parent / "smollm2"
FOLDER = os.environ.get("NANOVLLM_DEMO_MODEL")
LOGITS_TOLERANCE = 5e-3  # of the oracle's README; float32 noise is 8e-5
PERPLEXITY_TOLERANCE = 1e-3

pytestmark = [
    pytest.mark.weights,
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="NANOVLLM_DEMO_MODEL does not name the demo model's folder"),
]


def read(name):
    return json.loads((DATA / name).read_text(encoding="utf-8"))


CHAT = read("chat.json")
ROWS = CHAT["prompts"] + CHAT["completions"]


@pytest.fixture(scope="module")
def llm():
    return LLM(FOLDER, dtype="float32", max_model_len=2048, kv_cache_memory="200MiB")


@pytest.fixture(scope="module")
def arrays():
    with np.load(DATA / "chat.npz") as stored:
        return {key: stored[key] for key in stored.files}


def test_rendered_prompts_and_their_ids(llm):
    assert len(CHAT["prompts"]) == 20
    for row in CHAT["prompts"]:
        assert llm.tokenizer.encode_chat(row["messages"]) == (row["rendered"], row["prompt_ids"]), row["name"]
    for row in CHAT["completions"]:
        assert llm.tokenizer.encode(row["prompt"]) == row["prompt_ids"], row["name"]


def test_greedy_ids_of_all_prompts_in_one_batch(llm):
    params = [SamplingParams(temperature=0, max_tokens=len(row["greedy_ids"]), ignore_eos=True) for row in ROWS]
    prompts = [{"prompt_token_ids": row["prompt_ids"]} for row in ROWS]
    for row, output in zip(ROWS, llm.generate(prompts, params, use_tqdm=False), strict=True):
        stop = row["first_near_tie_step"]
        assert output.outputs[0].token_ids[:stop] == row["greedy_ids"][:stop], row["name"]


def test_chat_answers_end_at_eos(llm):
    rows = [row for row in CHAT["prompts"] if row["first_eos_step"] is not None and row["first_near_tie_step"] is None]
    assert len(rows) >= 5
    outputs = llm.chat([row["messages"] for row in rows], SamplingParams(temperature=0, max_tokens=48), use_tqdm=False)
    for row, output in zip(rows, outputs, strict=True):
        answer = output.outputs[0]
        assert (output.prompt, answer.text) == (row["rendered"], row["text"]), row["name"]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
        assert answer.token_ids == row["greedy_ids"][: row["first_eos_step"] + 1]


def test_logits_after_each_prompt(llm, arrays):
    for index, row in enumerate(CHAT["prompts"]):
        logits = llm.engine.next_token_logits(row["prompt_ids"])
        best = arrays[f"top_ids_{index}"]
        np.testing.assert_allclose(logits[best], arrays[f"top_logits_{index}"], atol=LOGITS_TOLERANCE, rtol=0)
        if index < 4:
            np.testing.assert_allclose(logits, arrays[f"last_logits_{index}"], atol=LOGITS_TOLERANCE, rtol=0)
    assert llm.top_logits({"prompt_token_ids": CHAT["prompts"][0]["prompt_ids"]}, 1)[0][0] == arrays["top_ids_0"][0]


def token_logprobs(llm, ids):
    """Log probability of every token but the first, chunk by chunk."""
    engine, logprobs = llm.engine, []
    seq = Sequence("", list(ids), SamplingParams(temperature=0, max_tokens=1))
    engine.add(seq)
    begin = engine.stats.computed_tokens
    while engine.has_unfinished:
        start = engine.stats.computed_tokens - begin
        engine.step()
        end = min(engine.stats.computed_tokens - begin, seq.num_prompt - 1)
        logprobs.append(engine.runner.token_logprobs(np.arange(end - start), ids[start + 1 : end + 1]))
    return np.concatenate(logprobs)


def test_perplexity_of_the_passage(llm):
    with np.load(DATA / "passage.npz") as stored:
        ids, expected = stored["ids"].tolist(), stored["logprobs"]
    assert llm.tokenizer.encode((DATA / "passage.txt").read_text(encoding="utf-8")) == ids
    logprobs = token_logprobs(llm, ids)
    np.testing.assert_allclose(logprobs, expected, atol=LOGITS_TOLERANCE, rtol=0)
    recorded = read("passage.json")["f32_weights"]
    assert logprobs.shape == (recorded["predicted_tokens"],)
    perplexity = math.exp(-logprobs.astype(np.float64).mean())
    assert perplexity == pytest.approx(recorded["perplexity"], rel=PERPLEXITY_TOLERANCE)


def test_perplexity_is_that_of_the_recording(llm):
    with np.load(DATA / "passage.npz") as stored:
        expected = stored["logprobs"]
    recorded = read("passage.json")["f32_weights"]
    text = (DATA / "passage.txt").read_text(encoding="utf-8")
    (output,) = llm.perplexity(text, score_first=False, use_tqdm=False)
    np.testing.assert_allclose(output.logprobs, expected, atol=LOGITS_TOLERANCE, rtol=0)
    assert output.perplexity == pytest.approx(recorded["perplexity"], rel=PERPLEXITY_TOLERANCE)
    assert (output.num_tokens, output.num_bytes) == (recorded["predicted_tokens"], len(text.encode()))
    ids = llm.tokenizer.encode(text)
    ((scored,),) = llm.score(ids[:1000], [ids[1000:]], use_tqdm=False)
    np.testing.assert_allclose(scored.logprobs, expected[999:], atol=LOGITS_TOLERANCE, rtol=0)


def test_perplexity_rolls_over_a_text_longer_than_the_context(llm):
    with np.load(DATA / "passage.npz") as stored:
        ids, expected = stored["ids"].tolist(), stored["logprobs"]
    short = LLM(FOLDER, dtype="float32", max_model_len=1024, kv_cache_memory="200MiB")
    (output,) = short.perplexity([ids], score_first=False, use_tqdm=False)
    assert output.num_tokens == len(ids) - 1
    # The first window sees what the recording saw; the second has lost 765 tokens of context at its beginning.
    np.testing.assert_allclose(output.logprobs[:1024], expected[:1024], atol=LOGITS_TOLERANCE, rtol=0)
    ((last,),) = llm.score(ids[765:1025], [ids[1025:]], use_tqdm=False)
    np.testing.assert_allclose(output.logprobs[1024:], last.logprobs, atol=1e-4, rtol=0)


def test_logprobs_of_four_prompts(llm, arrays):
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, logprobs=20)
    prompts = [{"prompt_token_ids": row["prompt_ids"]} for row in CHAT["prompts"][:4]]
    for index, output in enumerate(llm.generate(prompts, params, use_tqdm=False)):
        ids = output.prompt_token_ids[1:]
        found = [row[i].logprob for row, i in zip(output.prompt_logprobs[1:], ids, strict=True)]
        np.testing.assert_allclose(found, arrays[f"prompt_logprobs_{index}"], atol=LOGITS_TOLERANCE, rtol=0)
        logits = arrays[f"last_logits_{index}"].astype(np.float64)
        logits -= logits.max()
        expected = logits - np.log(np.exp(logits).sum())
        for token_id, entry in output.outputs[0].logprobs[0].items():
            assert entry.logprob == pytest.approx(expected[token_id], abs=LOGITS_TOLERANCE)
