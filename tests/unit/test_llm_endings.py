"""How completions end: EOS ids of both files, min_tokens, stop ids, stop strings across tokens, lengths."""

import pytest
import tokenizers

from nanovllm import SamplingParams, model_info
from nanovllm.completion import CompletionText

# llama-f32, greedy, recorded by the oracle: the prompt of 64 tokens meets 168 at step 3 and 2 at step 4.
CASE, PROMPT = "llama-f32", 4
EOS = {0, 2, 168}


@pytest.fixture(scope="module")
def recorded(models_dir):
    import json

    rows = json.loads((models_dir / CASE / "expected.json").read_text(encoding="utf-8"))["prompts"]
    assert rows[PROMPT]["greedy_ids"][:6] == [356, 407, 245, 168, 2, 19]
    assert all(row["first_near_tie_step"] is None for row in rows)
    return rows


@pytest.fixture(scope="module")
def decode(models_dir):
    """The tokenizers library's own decoding, as the oracle for text."""
    backend = tokenizers.Tokenizer.from_file(str(models_dir / CASE / "tokenizer.json"))
    return lambda ids: backend.decode(ids, skip_special_tokens=True)


def complete(llm, prompt_ids, **params):
    params = SamplingParams(**{"temperature": 0, "max_tokens": 32, **params})
    output = llm.generate([{"prompt_token_ids": prompt_ids}], params, use_tqdm=False)[0]
    assert output.error is None
    return output.outputs[0]


# ---- EOS


def test_any_eos_id_of_either_file_ends_a_completion(make_llm, recorded):
    answer = complete(make_llm(), recorded[PROMPT]["ids"])
    assert (answer.token_ids, answer.finish_reason, answer.stop_reason) == ([356, 407, 245, 168], "stop", None)


def test_without_generation_config_only_the_id_of_config_json(make_llm, edited_model, recorded):
    answer = complete(make_llm(edited_model(CASE, generation_config=None)), recorded[PROMPT]["ids"])
    assert (answer.token_ids, answer.finish_reason) == ([356, 407, 245, 168, 2], "stop")


def test_without_any_eos_only_the_length_ends_it(make_llm, edited_model, recorded):
    folder = edited_model(CASE, config={"eos_token_id": None}, generation_config={"eos_token_id": None})
    llm = make_llm(folder)
    assert llm.engine.spec.eos_token_ids == ()
    assert model_info(folder)["eos_token_ids"] == "none: only max_tokens or a stop ends a completion"
    answer = complete(llm, recorded[PROMPT]["ids"])
    assert (answer.token_ids, answer.finish_reason) == (recorded[PROMPT]["greedy_ids"], "length")


def test_ignore_eos(make_llm, recorded, decode):
    answer = complete(make_llm(), recorded[PROMPT]["ids"], ignore_eos=True)
    assert (answer.token_ids, answer.finish_reason) == (recorded[PROMPT]["greedy_ids"], "length")
    assert answer.text == decode(recorded[PROMPT]["greedy_ids"])


@pytest.mark.parametrize("min_tokens", [4, 5, 12])
def test_no_eos_before_min_tokens(make_llm, recorded, min_tokens):
    answer = complete(make_llm(), recorded[PROMPT]["ids"], min_tokens=min_tokens)
    assert answer.token_ids[:3] == [356, 407, 245]
    assert not EOS & set(answer.token_ids[:min_tokens])
    assert len(answer.token_ids) >= min_tokens


def test_min_tokens_below_the_end_change_nothing(make_llm, recorded):
    assert complete(make_llm(), recorded[PROMPT]["ids"], min_tokens=3).token_ids == [356, 407, 245, 168]


def test_min_tokens_equal_to_max_tokens(make_llm, recorded):
    answer = complete(make_llm(), recorded[PROMPT]["ids"], min_tokens=8, max_tokens=8)
    assert (len(answer.token_ids), answer.finish_reason) == (8, "length")


# ---- stop ids


def test_a_stop_token_id_is_the_stop_reason(make_llm, recorded, decode):
    answer = complete(make_llm(), recorded[PROMPT]["ids"], stop_token_ids=[245])
    assert (answer.token_ids, answer.finish_reason, answer.stop_reason) == ([356, 407, 245], "stop", 245)
    assert answer.text == decode([356, 407])


def test_the_stop_token_is_in_the_text_when_asked_for(make_llm, recorded, decode):
    answer = complete(make_llm(), recorded[PROMPT]["ids"], stop_token_ids=[245], include_stop_str_in_output=True)
    assert answer.text == decode([356, 407, 245])


def test_stop_token_ids_work_beside_ignore_eos(make_llm, recorded):
    answer = complete(make_llm(), recorded[PROMPT]["ids"], stop_token_ids=[19], ignore_eos=True)
    assert (answer.token_ids, answer.stop_reason) == ([356, 407, 245, 168, 2, 19], 19)


def test_a_stop_token_id_beyond_the_vocabulary_never_ends_anything(make_llm, recorded):
    answer = complete(make_llm(), recorded[PROMPT]["ids"], stop_token_ids=[999_999], min_tokens=2)
    assert (answer.token_ids, answer.finish_reason) == ([356, 407, 245, 168], "stop")


# ---- lengths


@pytest.mark.parametrize("max_tokens", [1, 2, 32])
def test_max_tokens(make_llm, recorded, max_tokens):
    answer = complete(make_llm(), recorded[PROMPT]["ids"], max_tokens=max_tokens, ignore_eos=True)
    assert (answer.token_ids, answer.finish_reason) == (recorded[PROMPT]["greedy_ids"][:max_tokens], "length")


def test_max_tokens_none_goes_to_the_end_of_the_context(make_llm, recorded):
    answer = complete(make_llm(max_model_len=80), recorded[PROMPT]["ids"], max_tokens=None, ignore_eos=True)
    assert (answer.token_ids, answer.finish_reason) == (recorded[PROMPT]["greedy_ids"][:16], "length")


def test_max_model_len_ends_what_max_tokens_would_not(make_llm, recorded):
    answer = complete(make_llm(max_model_len=66), recorded[PROMPT]["ids"], ignore_eos=True)
    assert (answer.token_ids, answer.finish_reason) == (recorded[PROMPT]["greedy_ids"][:2], "length")


# ---- stop strings


def pieces_of(decode, ids):
    """Text after each token, for completions whose every beginning decodes to a beginning."""
    return [decode(ids[: i + 1]) for i in range(len(ids))]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("index", range(6))
def test_stop_strings_across_tokens(make_llm, recorded, decode, index, include):
    """For every place in a completion: a stop string of the characters around it, found by plain search."""
    ids = recorded[index]["greedy_ids"]
    texts = pieces_of(decode, ids)
    whole = texts[-1]
    wanted = {whole[at : at + size] for at in range(2, len(whole) - 8, 7) for size in (1, 2, 5)}
    stops = sorted(stop for stop in wanted if stop and "\ufffd" not in stop)
    assert len(stops) > 5
    llm = make_llm()
    params = [
        SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, stop=stop, include_stop_str_in_output=include)
        for stop in stops
    ]
    prompts = [{"prompt_token_ids": recorded[index]["ids"]}] * len(stops)
    for stop, output in zip(stops, llm.generate(prompts, params, use_tqdm=False), strict=True):
        answer = output.outputs[0]
        at = whole.find(stop)
        assert answer.text == whole[: at + len(stop) if include else at]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        num_tokens = len(answer.token_ids)
        assert answer.token_ids == ids[:num_tokens]
        assert stop in texts[num_tokens - 1] and stop not in (texts[num_tokens - 2] if num_tokens > 1 else "")
    llm.engine.block_manager.check([])


@pytest.mark.parametrize("include", [False, True])
def test_no_fragment_of_a_stop_string_is_ever_streamed(make_llm, recorded, decode, include):
    whole = decode(recorded[0]["greedy_ids"])
    stop = whole[10:16]
    params = SamplingParams(
        temperature=0, max_tokens=32, ignore_eos=True, stop=[stop, "never"], include_stop_str_in_output=include
    )
    llm = make_llm()
    pieces = list(llm.generate_stream({"prompt_token_ids": recorded[0]["ids"]}, params))
    expected = whole[: whole.find(stop) + (len(stop) if include else 0)]
    assert "".join(pieces) == expected
    assert all(pieces)
    assert not llm.engine.has_unfinished


def test_a_stream_without_stops_gives_the_whole_text(make_llm, recorded, decode):
    for row in recorded:
        params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
        pieces = list(make_llm().generate_stream({"prompt_token_ids": row["ids"]}, params))
        assert "".join(pieces) == decode(row["greedy_ids"])
        assert len(pieces) > 5


def test_a_stop_string_that_does_not_come_leaves_the_text_whole(make_llm, recorded, decode):
    answer = complete(make_llm(), recorded[0]["ids"], ignore_eos=True, stop="no such text")
    assert (answer.text, answer.finish_reason) == (decode(recorded[0]["greedy_ids"]), "length")


def test_a_stop_string_at_the_last_token_counts_as_stop(make_llm, recorded, decode):
    texts = pieces_of(decode, recorded[0]["greedy_ids"])
    stop = texts[5][len(texts[4]) :]
    assert stop and stop not in texts[4]
    answer = complete(make_llm(), recorded[0]["ids"], ignore_eos=True, stop=stop, max_tokens=6)
    assert (answer.finish_reason, answer.stop_reason, answer.text) == ("stop", stop, texts[4])


def test_stop_strings_do_not_count_before_min_tokens(make_llm, recorded, decode):
    whole = decode(recorded[0]["greedy_ids"])
    assert whole.startswith("\ufffd fin L to\ufffd one")  # the tokens: one broken byte, " fin", " L", " to", ...
    answer = complete(make_llm(), recorded[0]["ids"], ignore_eos=True, stop=" fin", min_tokens=4)
    assert answer.text == whole[: whole.index(" fin", 5)]  # the second time it comes
    answer = complete(make_llm(), recorded[0]["ids"], ignore_eos=True, stop=" one", min_tokens=4)
    assert (answer.stop_reason, answer.text) == (" one", "\ufffd fin L to\ufffd")
    # Begun before, completed after: it counts when it is complete.
    answer = complete(make_llm(), recorded[0]["ids"], ignore_eos=True, stop="L to\ufffd one", min_tokens=4)
    assert answer.text == "\ufffd fin "


# ---- the text side alone


class Pieces:
    """Stands for a tokenizer whose ids are indices into a list of texts."""

    def __init__(self, *texts, flushed=""):
        self.texts, self.flushed = texts, flushed

    def detokenizer(self, *args):
        return self

    def push(self, token_id):
        return self.texts[token_id]

    def flush(self):
        return self.flushed


def push_all(texts, flushed="", **params):
    """(text, stop reason, tokens used, what was shown after each token)."""
    completion, shown = CompletionText(Pieces(*texts, flushed=flushed), SamplingParams(**params), []), []
    for i in range(len(texts)):
        stop = completion.push(i, i + 1)
        if stop is not None:
            break
        shown.append(completion.take_new())
    completion.finish()
    shown.append(completion.take_new())
    return completion.text, stop, i + 1, shown


@pytest.mark.parametrize(
    "include, text, shown", [(False, "a,", ["a"[:0], "a", ","]), (True, "a,b,c", ["", "a", ",b,c"])]
)
def test_a_stop_string_over_three_tokens(include, text, shown):
    found = push_all(["a", ",b", ",c!"], stop=["b,c"], include_stop_str_in_output=include)
    assert found == (text, "b,c", 3, shown)


def test_the_stop_string_that_is_complete_first_wins():
    assert push_all(["xabcd"], stop=["abcd", "bc"])[:2] == ("xa", "bc")
    assert push_all(["xabcd"], stop=["bcd", "abcd"])[:2] == ("xa", "bcd")  # complete at the same place: the first named
    assert push_all(["xabcd"], stop=["abcd", "bcd"])[:2] == ("x", "abcd")


def test_a_stop_string_counts_from_the_token_after_min_tokens():
    pieces = ["a", "b", "c", "b", "d"]
    assert push_all(pieces, stop=["b"], min_tokens=1)[:3] == ("a", "b", 2)
    assert push_all(pieces, stop=["b"], min_tokens=2)[:3] == ("abc", "b", 4)
    assert push_all(pieces, stop=["bc"], min_tokens=2)[:3] == ("a", "bc", 3)
    assert push_all(pieces, stop=["bc"], min_tokens=3)[:2] == ("abcbd", None)


def test_what_was_held_back_is_shown_at_the_end():
    assert push_all(["one ", "STO"], stop=["STOP"]) == ("one STO", None, 2, ["o", "ne ", "STO"])


def test_an_unfinished_character_is_shown_at_the_end_alone():
    assert push_all(["a", ""], flushed="\ufffd") == ("a\ufffd", None, 2, ["a", "", "\ufffd"])
    assert push_all(["a", "b"], flushed="\ufffd", stop=["b"])[0] == "a"


def test_empty_pieces_and_repeated_beginnings():
    assert push_all(["", "aa", "", "a", "b"], stop=["aab"])[:3] == ("a", "aab", 5)


def test_without_detokenizing_there_is_no_text():
    completion = CompletionText(Pieces("a"), SamplingParams(detokenize=False), [])
    assert completion.push(0, 1) is None
    completion.finish()
    assert (completion.text, completion.take_new()) == ("", "")
