"""Encoding, decoding, streaming and chat rendering against what transformers gives."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from nanovllm.tokenizer import Tokenizer

HERE = Path(__file__).parent
BIG_GOLDEN = Path(os.environ.get("NANOVLLM_GOLDEN", HERE.parents[1] / ".." / "shared" / "golden"))
TINY_CASES = sorted(path.parent.name for path in (HERE / "models").glob("*/expected.json"))


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def unpack_tokenizer(name, folder):
    packed = BIG_GOLDEN / "tokenizer" / name / "tokenizer.json.gz"
    if not packed.is_file():
        pytest.skip(f"{packed} is absent; name the folder with the big tokenizers by NANOVLLM_GOLDEN")
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))


@pytest.fixture(scope="module", params=["qwen3", "smollm2"])
def big(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    unpack_tokenizer(request.param, folder)
    shutil.copy(HERE / "tokenizer" / request.param / "tokenizer_config.json", folder)
    return Tokenizer.from_pretrained(folder), load(HERE / "tokenizer" / request.param / "expected.json")


def check_chat(tokenizer, row, **options):
    rendered, ids = tokenizer.encode_chat(row["messages"], **{"add_generation_prompt": False, **options})
    assert rendered == row["rendered"]
    assert ids == row["ids"]


def test_there_are_17_tiny_checkpoints():
    assert len(TINY_CASES) == 17


@pytest.mark.parametrize("case", TINY_CASES)
def test_tiny_checkpoint_text(case):
    tokenizer = Tokenizer.from_pretrained(HERE / "models" / case)
    text = load(HERE / "models" / case / "expected.json")["text"]
    for row in text["encode"]:
        with_special = row["ids_add_special_tokens"]
        assert tokenizer.encode(row["text"], add_special_tokens=False) == row["ids"]
        assert tokenizer.encode(row["text"]) == with_special
        assert tokenizer.decode(with_special, skip_special_tokens=False) == row["decoded"]
        assert tokenizer.decode(with_special) == row["decoded_skip_special"]
        for skip, expected in ((False, row["decoded"]), (True, row["decoded_skip_special"])):
            detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
            assert "".join(map(detokenizer.push, with_special)) + detokenizer.flush() == expected
    for row in text["chat"]:
        check_chat(tokenizer, row, add_generation_prompt=row["add_generation_prompt"])


def test_facts(big):
    tokenizer, expected = big
    assert tokenizer.sha256 == expected["tokenizer_json_sha256"]
    assert tokenizer.vocab_size == expected["vocab_size_with_added"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        expected["bos_token"],
        expected["eos_token"],
        expected["pad_token"],
    )
    assert not tokenizer.adds_bos
    special = {int(token_id) for token_id, token in expected["added_tokens"].items() if token["special"]}
    assert tokenizer.all_special_ids == special


def test_strings(big):
    tokenizer, expected = big
    assert len(expected["strings"]) == 84
    for row in expected["strings"]:
        assert tokenizer.encode(row["text"]) == row["ids"]
        assert [tokenizer.id_to_token(token_id) for token_id in row["ids"]] == row["tokens"]
        assert tokenizer.decode(row["ids"], skip_special_tokens=False) == row["decoded"]
        assert tokenizer.decode(row["ids"]) == row["decoded_skip_special"]
    batch = tokenizer.encode_batch([row["text"] for row in expected["strings"]])
    assert batch == [row["ids"] for row in expected["strings"]]


def test_incremental(big):
    tokenizer, expected = big
    for row in expected["incremental"]:
        for stream in row["streams"]:
            skip = stream["skip_special_tokens"]
            detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
            pieces = [detokenizer.push(token_id) for token_id in row["ids"]]
            last = detokenizer.flush()
            assert "".join(pieces) + last == stream["full_decode"], row["name"]
            assert tokenizer.decode(row["ids"], skip_special_tokens=skip) == stream["full_decode"]
            # The recorded reference emits each character, and each U+FFFD, as soon as it is certain.
            assert (pieces, last) == (stream["utf8_pieces"], stream["utf8_flush"]), row["name"]


def test_chat(big):
    tokenizer, expected = big
    assert len(expected["chat"]) >= 26
    for row in expected["chat"]:
        check_chat(tokenizer, row, **row["options"])


def test_plain_chatml_template(tmp_path):
    unpack_tokenizer("smollm2", tmp_path)
    expected = load(HERE / "tokenizer" / "chatml" / "expected.json")
    tokenizer = Tokenizer.from_pretrained(tmp_path, chat_template=expected["chat_template"])
    assert len(expected["chat"]) == 26
    for row in expected["chat"]:
        check_chat(tokenizer, row, **row["options"])


def test_recorded_prompts_of_smollm2(tmp_path):
    unpack_tokenizer("smollm2", tmp_path)
    shutil.copy(HERE / "smollm2" / "tokenizer_config.json", tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    recorded = load(HERE / "smollm2" / "chat.json")
    assert (len(recorded["prompts"]), len(recorded["completions"])) == (20, 4)
    for row in recorded["prompts"]:
        assert tokenizer.encode_chat(row["messages"]) == (row["rendered"], row["prompt_ids"])
    for row in recorded["completions"]:
        assert tokenizer.encode(row["prompt"]) == row["prompt_ids"]
    passage = (HERE / "smollm2" / "passage.txt").read_text(encoding="utf-8")
    assert tokenizer.encode(passage) == np.load(HERE / "smollm2" / "passage.npz")["ids"].tolist()
