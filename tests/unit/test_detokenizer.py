"""Decoding token by token: bytes, byte fallback, leading spaces, and what follows a prompt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel

from nanovllm.detokenizer import TextDecoder

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def backend(vocab, decoder, special=(), added=(), **options):
    ids = {token: index for index, token in enumerate(vocab)}
    tokenizer = Backend(models.BPE(vocab=ids, merges=[], **options))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in added])
    return tokenizer


def llama_like(strip=True):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    steps += [decoders.Strip(" ", 1, 0)] if strip else []
    vocab = ["<s>", "</s>", *BYTE_TOKENS, "▁", "▁hi", "hi", "▁▁x"]
    return backend(vocab, decoders.Sequence(steps), special=["<s>", "</s>"], byte_fallback=True)


def byte_level():
    # GPT-2's stand-ins: 0xC3 Ã, 0xA9 ©, 0xF0 ð, 0x9F Ł, 0x99 Ļ, 0x82 Ĥ, space Ġ; é itself stands for the byte 0xE9.
    return backend(["Ã", "©", "ð", "Ł", "Ļ", "Ĥ", "a", "Ġb"], decoders.ByteLevel(), special=["<s>"], added=["<语>"])


def ids_of(tokenizer, tokens):
    return [tokenizer.token_to_id(token) for token in tokens]


def stream(tokenizer, tokens, skip=True, spaces=True, prompt=()):
    detokenizer = TextDecoder(tokenizer).start(skip, spaces, ids_of(tokenizer, prompt))
    return [*map(detokenizer.push, ids_of(tokenizer, tokens)), detokenizer.flush()]


def whole(tokenizer, tokens, skip=True, spaces=True):
    return TextDecoder(tokenizer).decode(ids_of(tokenizer, tokens), skip, spaces)


FALLBACK = ["<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
STANDINS = ["Ã", "©", "ð", "Ł", "Ļ", "Ĥ"]

# T03: the single bytes of é🙂, whole and cut inside the emoji.


@pytest.mark.parametrize(("make", "tokens"), [(llama_like, FALLBACK), (byte_level, STANDINS)])
def test_characters_come_whole(make, tokens):
    assert stream(make(), tokens) == ["", "é", "", "", "", "🙂", ""]
    assert whole(make(), tokens) == "é🙂"


@pytest.mark.parametrize(("make", "tokens"), [(llama_like, FALLBACK), (byte_level, STANDINS)])
def test_text_cut_inside_a_character_ends_in_one_replacement(make, tokens):
    assert stream(make(), tokens[:5]) == ["", "é", "", "", "", "\ufffd"]
    assert whole(make(), tokens[:5]) == "é\ufffd"


@pytest.mark.parametrize(("make", "tokens"), [(llama_like, FALLBACK), (byte_level, STANDINS)])
def test_bytes_that_are_no_utf8_show_as_soon_as_that_is_certain(make, tokens):
    lead_2, tail, lead_4, *_ = tokens
    assert stream(make(), [lead_4, lead_2, tail, tail]) == ["", "\ufffd", "é", "\ufffd", ""]
    assert whole(make(), [lead_4, lead_2, tail, tail]) == "\ufffdé\ufffd"


def test_byte_fallback_run_ends_at_the_next_token():
    assert stream(llama_like(), ["<0xF0>", "▁hi", "<0xC3>", "<0xA9>", "hi"]) == ["", "\ufffd hi", "", "é", "hi", ""]


def test_special_tokens_skipped_or_kept():
    assert stream(byte_level(), ["<s>", "ð", "Ł", "<s>", "Ļ", "Ĥ", "a"]) == ["", "", "", "", "", "🙂", "a", ""]
    kept = stream(byte_level(), ["<s>", "ð", "<s>", "a"], skip=False)
    assert kept == ["<s>", "", "\ufffd<s>", "a", ""]
    assert stream(byte_level(), ["<语>", "Ġb"]) == ["<语>", " b", ""]


def test_ids_without_a_token_are_nothing():
    tokenizer = byte_level()
    decoder = TextDecoder(tokenizer)
    detokenizer = decoder.start(True)
    assert [detokenizer.push(token_id) for token_id in (6, 500, -1, 2**40, 6)] == ["a", "", "", "", "a"]
    assert decoder.decode([6, 500, -1, 2**40, 6], True) == "aa"


# Leading spaces.


def test_metaspace_drops_the_first_space_unless_it_never_added_one():
    vocab = ["▁hi", "▁x", "y"]
    for scheme, expected in (
        ("always", ["hi", " x", "y", ""]),
        ("first", ["hi", " x", "y", ""]),
        ("never", [" hi", " x", "y", ""]),
    ):
        tokenizer = backend(vocab, decoders.Metaspace(prepend_scheme=scheme))
        assert stream(tokenizer, vocab) == expected
        assert whole(tokenizer, vocab) == "".join(expected)


def test_metaspace_after_a_kept_or_a_skipped_special_token():
    tokenizer = backend(["▁hi"], decoders.Metaspace(), special=["<s>"])
    assert stream(tokenizer, ["<s>", "▁hi"]) == ["", "hi", ""]
    assert stream(tokenizer, ["<s>", "▁hi"], skip=False) == ["<s>", " hi", ""]


def test_strip_drops_one_space_of_the_whole_text():
    assert stream(llama_like(), ["<s>", "▁▁x", "▁hi"]) == ["", " x", " hi", ""]
    assert stream(llama_like(), ["▁", "▁hi"]) == ["", " hi", ""]
    assert stream(llama_like(strip=False), ["▁hi", "▁hi"]) == [" hi", " hi", ""]
    assert whole(llama_like(), ["<s>", "▁▁x", "▁hi"]) == " x hi"


@pytest.mark.parametrize(
    "make",
    [llama_like, lambda: backend(["▁hi", "hi"], decoders.Metaspace(), special=["<s>"])],
    ids=["strip", "metaspace"],
)
def test_a_continuation_keeps_its_leading_space(make):
    tokenizer = make()
    assert stream(tokenizer, ["▁hi"], prompt=["<s>", "hi"]) == [" hi", ""]
    assert stream(tokenizer, ["▁hi"], prompt=["<s>"]) == ["hi", ""]
    assert stream(tokenizer, ["▁hi"], prompt=["<s>"] + ["hi"] * 500 + ["<s>"] * 40) == [" hi", ""]


@pytest.mark.parametrize(("make", "tokens"), [(llama_like, FALLBACK), (byte_level, STANDINS)])
def test_a_character_that_the_prompt_began(make, tokens):
    begun, completing = tokens[:4], tokens[4:]
    plain = "hi" if make is llama_like else "a"
    assert stream(make(), [*completing, plain], prompt=begun) == ["", "🙂", plain, ""]
    # Left unfinished, its replacement character belongs to the prompt, not to the output.
    assert stream(make(), [plain], prompt=begun) == [plain, ""]
    assert stream(make(), [], prompt=begun) == [""]
    assert stream(make(), [completing[0]], prompt=begun) == ["", "\ufffd"]


# Other decoders.


def test_tokenizer_without_a_decoder_puts_spaces_between_tokens():
    tokenizer = backend(["a", "b"], None, special=["<s>"], added=["<t>"])
    tokens = ["<s>", "<t>", "a", "b", "<s>"]
    assert stream(tokenizer, tokens) == ["", "<t>", " a", " b", "", ""]
    assert stream(tokenizer, tokens, skip=False) == ["<s>", " <t>", " a", " b", " <s>", ""]
    assert stream(tokenizer, tokens, skip=False, spaces=False) == ["<s>", "<t>", " a", " b", " <s>", ""]
    assert whole(tokenizer, tokens, skip=False, spaces=False) == "<s><t> a b <s>"
    assert whole(tokenizer, tokens, skip=False) == "<s> <t> a b <s>"


@pytest.mark.parametrize(
    ("decoder", "vocab", "expected"),
    [
        (decoders.WordPiece(cleanup=False), ["play", "##ing", "the", "##m"], "playing them"),
        (decoders.BPEDecoder(), ["pla", "y</w>", "the", "m</w>", "x"], "play them x"),
        (decoders.Sequence([decoders.Replace(Regex("_+"), " "), decoders.Fuse()]), ["a__", "_b", "c"], "a  bc"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Replace("ab", "X")]), ["a", "Ġ", "c"], "a c"),
    ],
)
def test_unusual_decoders_go_through_a_window(decoder, vocab, expected):
    tokenizer = backend(vocab, decoder, special=["<s>"])
    pieces = stream(tokenizer, ["<s>", *vocab, "<s>"])
    assert "".join(pieces) == expected
    assert whole(tokenizer, ["<s>", *vocab, "<s>"]) == expected


def test_window_never_grows():
    tokenizer = backend(["a", "##b"], decoders.WordPiece(), special=["<s>"])
    detokenizer = TextDecoder(tokenizer).start(True)
    lengths = []
    original = detokenizer._decode
    detokenizer._decode = lambda ids: lengths.append(len(ids)) or original(ids)
    text = "".join(detokenizer.push(token_id) for token_id in [0, *[2] * 100, *[1] * 100]) + detokenizer.flush()
    assert text == "a" + "b" * 100
    assert max(lengths) <= 16


def test_sequence_of_steps_equals_the_library_where_all_bytes_are_valid():
    tokenizer = backend(
        ["▁a", "b", "<0x20>", "▁", "<0xE2>", "<0x82>", "<0xAC>"],
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]),
        special=["<s>"],
    )
    tokens = ["<0xE2>", "<0x82>", "<0xAC>", "▁a", "b", "<0x20>", "▁", "<s>", "▁a"]
    assert "".join(stream(tokenizer, tokens)) == tokenizer.decode(ids_of(tokenizer, tokens)) == "€ ab   a"


def all_bytes_level():
    return backend(
        [*ByteLevel.alphabet(), "ĠÃ", "ðŁ", "é"], decoders.ByteLevel(), special=["<s>"], added=["<语>", "ÿ語"]
    )


def space_signs():
    return backend(["▁", "a", "▁b", "▁▁", "语"], decoders.Metaspace(), special=["<s>"], added=["▁t"])


@pytest.mark.parametrize("make", [all_bytes_level, space_signs])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_join_to_what_the_library_decodes(make, data):
    tokenizer = make()
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 1), max_size=40))
    skip = data.draw(st.booleans())
    detokenizer = TextDecoder(tokenizer).start(skip)
    pieces = "".join([detokenizer.push(token_id) for token_id in ids]) + detokenizer.flush()
    assert pieces == tokenizer.decode(ids, skip_special_tokens=skip)
