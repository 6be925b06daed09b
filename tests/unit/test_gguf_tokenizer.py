"""Tokenizer files made from GGUF metadata: pre-tokenizers, sentencepiece vocabularies, special tokens, templates."""

import json

import pytest
from gguf_builder import metadata, stored_tensors, write_case, write_gguf
from tokenizers import Tokenizer

from nanovllm.checkpoint.gguf import convert_gguf
from nanovllm.checkpoint.gguf_file import GgufFile
from nanovllm.checkpoint.gguf_tokenizer import TokenizerReader
from nanovllm.errors import TokenizerError

#: Sentencepiece pieces and their scores. "lo" comes after "ll" and has the better score.
PIECES = {
    "▁": -20.0, "h": -21.0, "e": -22.0, "l": -23.0, "o": -24.0, "ll": -6.0, "▁h": -1.0, "el": -2.0, "lo": -3.0,
    "▁hel": -4.0, "▁hello": -5.0,
}  # fmt: skip
PIECE_IDS = {piece: 259 + index for index, piece in enumerate(PIECES)}
TOOL_ID, END_ID = 270, 271


def sentencepiece(**changes):
    values = metadata("llama-f32", "llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<▁tool>", "<|end|>"]
    values |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + list(PIECES.values()) + [-1000.0, -1000.0],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [4, 3],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_bos_token": None,
    }
    return values | {key.replace("__", "."): value for key, value in changes.items()}


def files(tmp_path, values):
    path = write_gguf(tmp_path / "model.gguf", values, {})
    return TokenizerReader(GgufFile(path), 500).files(512)


def pieces(*names):
    return [PIECE_IDS[name] for name in names]


def test_sentencepiece_merges_follow_the_scores(tmp_path):
    tokenizer = Tokenizer.from_str(files(tmp_path, sentencepiece())["tokenizer.json"])

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    assert encode("hello") == pieces("▁hello")
    assert encode("hell") == pieces("▁hel", "l")
    assert encode("llo") == pieces("▁", "l", "lo")
    assert encode("hello  hell") == pieces("▁hello", "▁", "▁hel", "l")
    # No piece for these: their UTF-8 bytes, C3 A9 and 0A.
    assert encode("é") == [*pieces("▁"), 3 + 0xC3, 3 + 0xA9]
    assert encode("o\n") == [*pieces("▁", "o"), 3 + 0x0A]
    for text in ("hello", "hello  hell", "é\n ☃ hello", "  ohe"):
        assert tokenizer.decode(encode(text)) == text


def test_sentencepiece_special_tokens(tmp_path):
    made = files(tmp_path, sentencepiece())
    tokenizer = Tokenizer.from_str(made["tokenizer.json"])
    assert tokenizer.encode("hello").ids == [1, *pieces("▁hello")]
    assert tokenizer.encode("hello", "hello").ids == [1, *pieces("▁hello"), 1, *pieces("▁hello")]
    # A user-defined token is found in the text as it is written there; only control tokens are special.
    ids = tokenizer.encode("hello< tool>hell<|end|></s>", add_special_tokens=False).ids
    assert ids == [*pieces("▁hello"), TOOL_ID, *pieces("▁hel", "l"), END_ID, 2]
    assert "<|end|>" not in tokenizer.decode(ids)
    assert "< tool>" in tokenizer.decode(ids)
    config = json.loads(made["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert "pad_token" not in config
    assert json.loads(made["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": 2}


def test_sentencepiece_options(tmp_path):
    changes = {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True}
    changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    tokenizer = Tokenizer.from_str(files(tmp_path, sentencepiece(**changes))["tokenizer.json"])
    assert tokenizer.encode("hello").ids == [*pieces("h", "el", "lo"), 2]
    assert tokenizer.decode(pieces("▁hello")) == " hello"


def test_sentencepiece_needs_scores(tmp_path):
    with pytest.raises(TokenizerError, match=r"'tokenizer\.ggml\.scores' has 3 items, expected 272"):
        files(tmp_path, sentencepiece(tokenizer__ggml__scores=[0.0, 1.0, 2.0]))


#: What each pre-tokenizer must cut; pieces as the original tokenizers cut them.
SPLITS = [
    ("gpt-2", "It's 12345 déjà\n\n x", ["It", "'s", "Ġ12345", "ĠdÃ©jÃł", "ĊĊ", "Ġx"]),
    ("smollm", "a 123", ["a", "Ġ", "1", "2", "3"]),
    ("llama-bpe", "IT'S 12345!\n\n x", ["IT", "'S", "Ġ", "123", "45", "!ĊĊ", "Ġx"]),
    ("qwen2", "IT'S 12345!\n\n x", ["IT", "'S", "Ġ", "1", "2", "3", "4", "5", "!ĊĊ", "Ġx"]),
    ("tekken", "HelloWorld's 12/\n x", ["Hello", "World", "'s", "Ġ", "1", "2", "/Ċ", "Ġx"]),
]


@pytest.mark.parametrize(("tag", "text", "expected"), SPLITS)
def test_pre_tokenizers_cut_as_the_originals(tmp_path, tag, text, expected):
    path = write_case(tmp_path / "model.gguf", "llama-f32", "llama", tokenizer__ggml__pre=tag)
    tokenizer = Tokenizer.from_str(TokenizerReader(GgufFile(path), 500).files(512)["tokenizer.json"])
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == expected


@pytest.mark.parametrize(
    ("tag", "adds_bos"), [("gpt-2", False), ("qwen2", False), ("llama-bpe", True), ("tekken", True)]
)
@pytest.mark.parametrize("declared", [None, True, False])
def test_bos_follows_the_metadata_and_else_the_pre_tokenizer(tmp_path, tag, adds_bos, declared):
    changes = {"tokenizer__ggml__pre": tag, "tokenizer__ggml__add_bos_token": declared}
    path = write_case(tmp_path / "model.gguf", "llama-f32", "llama", **changes)
    tokenizer = Tokenizer.from_str(TokenizerReader(GgufFile(path), 500).files(512)["tokenizer.json"])
    expected = adds_bos if declared is None else declared
    # <|endoftext|>, id 0, is the BOS of this checkpoint.
    assert (tokenizer.encode("Hello").ids[0] == 0) == expected


@pytest.mark.parametrize(("tag", "composes"), [("qwen2", True), ("gpt-2", False), ("llama-bpe", False)])
def test_only_qwen_composes_accents(tmp_path, tag, composes):
    path = write_case(tmp_path / "model.gguf", "llama-f32", "llama", tokenizer__ggml__pre=tag)
    tokenizer = Tokenizer.from_str(TokenizerReader(GgufFile(path), 500).files(512)["tokenizer.json"])
    written_apart, composed = (tokenizer.encode(text).ids for text in ("cafe\u0301", "caf\u00e9"))
    assert (written_apart == composed) == composes


@pytest.mark.parametrize(
    ("changes", "eos"),
    [
        # In this checkpoint <|endoftext|> is 0, <|im_start|> 1, <|im_end|> 2.
        ({}, 2),
        ({"tokenizer.ggml.eot_token_id": 2}, 2),
        ({"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2}, [0, 2]),
        ({"tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 0}, [2, 1, 0]),
        # Not declared, but the chat template ends turns with it.
        ({"tokenizer.ggml.eos_token_id": 0}, [0, 2]),
        ({"tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": None}, 0),
        ({"tokenizer.ggml.eos_token_id": 0xFFFFFFFF, "tokenizer.chat_template": None}, None),
    ],
)
def test_every_declared_end_of_turn_stops(tmp_path, changes, eos):
    path = write_gguf(
        tmp_path / "m.gguf", metadata("llama-f32", "llama") | changes, stored_tensors("llama-f32", "llama")
    )
    convert_gguf(path, tmp_path / "out", progress=False)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation.get("eos_token_id") == eos
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == eos


def test_named_chat_templates_become_a_list(tmp_path):
    changes = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ tools }}"}
    values = metadata("llama-f32", "llama") | changes | {"tokenizer.chat_template": "{{ messages }}"}
    config = json.loads(files(tmp_path, values)["tokenizer_config.json"])
    assert config["chat_template"] == [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]


def test_files_without_token_types_keep_the_named_tokens_special(tmp_path):
    values = metadata("llama-f32", "llama") | {"tokenizer.ggml.token_type": None}
    tokenizer = Tokenizer.from_str(files(tmp_path, values)["tokenizer.json"])
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False).ids == [2]
    assert tokenizer.decode([2]) == ""
