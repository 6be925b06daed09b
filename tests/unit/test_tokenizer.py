"""Encoding, special tokens and BOS, and what a checkpoint's tokenizer files may say."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from nanovllm.errors import RequestError, TokenizerError
from nanovllm.tokenizer import Tokenizer

PIECES = {"<s>": 0, "</s>": 1, "▁": 2, "h": 3, "i": 4, "▁h": 5, "▁hi": 6, "hi": 7}
MERGES = [("h", "i"), ("▁", "h"), ("▁", "hi"), ("▁h", "i")]
BOS_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


def small_backend(adds_bos=False, adds_eos=False, scheme="first"):
    tokenizer = Backend(models.BPE(vocab=PIECES, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    # As Llama and Mistral list them: matched before the text around them is normalized.
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")])
    single = ["<s>"] * adds_bos + ["$A"] + ["</s>"] * adds_eos
    if adds_bos or adds_eos:
        tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def write(folder, backend=None, config=None, **files):
    (folder / "tokenizer.json").write_text((backend or small_backend()).to_str(), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_jinja", ".jinja").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def load(folder, backend=None, config=None, chat_template=None, **files):
    return Tokenizer.from_pretrained(write(folder, backend, config, **files), chat_template)


NAMED = {"bos_token": "<s>", "eos_token": "</s>"}

# T01: exactly one BOS.


def test_never_two_bos(tmp_path):
    tokenizer = load(tmp_path, small_backend(adds_bos=True), {**NAMED, "chat_template": BOS_TEMPLATE})
    assert tokenizer.encode_chat([{"role": "user", "content": "hi"}]) == ("<s>hi", [0, 7])
    assert tokenizer.encode("hi") == [0, 6]
    assert tokenizer.encode("<s>hi") == [0, 7]
    assert tokenizer.encode_batch(["hi", "<s>hi"]) == [[0, 6], [0, 7]]
    assert [tokenizer.starts_with_bos(text) for text in ("hi", "<s>hi", " <s>hi", "hi<s>", "")] == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert tokenizer.adds_bos
    # A BOS further on is the text's own affair.
    assert tokenizer.encode("<s><s>hi") == [0, 0, 7]
    assert tokenizer.encode("hi", add_special_tokens=False) == [6]
    assert tokenizer.encode("") == [0]


def test_large_batches_follow_the_same_rule(tmp_path):
    tokenizer = load(tmp_path, small_backend(adds_bos=True), NAMED)
    texts = ["hi" * 300_000, "<s>hi", "hi" * 300_000]
    program = (
        "import sys; from nanovllm.tokenizer import Tokenizer\n"
        "ids = Tokenizer.from_pretrained(sys.argv[1]).encode_batch(['hi' * 300_000, '<s>hi', 'hi' * 300_000])\n"
        "print([row[:2] for row in ids], [len(row) for row in ids])"
    )
    # In a process of its own, so that the library's threads do not make later forks of this one warn.
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert done.stdout == f"[[0, 6], [0, 7], [0, 6]] {lengths}\n"
    assert lengths[0] == 300_001


def test_a_tokenizer_without_bos_keeps_the_texts_own(tmp_path):
    tokenizer = load(tmp_path, config=NAMED)
    assert tokenizer.encode("<s>hi") == [0, 7]
    assert tokenizer.encode("<s><s>hi") == [0, 0, 7]
    assert not tokenizer.adds_bos


# T02: one text is encoded as one text.


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("first", ["▁hi", "▁hi", "<s> hi", "▁hi </s> hi"]),
        ("always", ["▁hi", "▁hi", "<s> ▁hi", "▁hi </s> ▁hi"]),
        ("never", ["hi", "▁hi", "<s> hi", "hi </s> hi"]),
        ("normalizer", ["▁hi", "▁ ▁hi", "<s> ▁hi", "▁hi </s> ▁hi"]),
    ],
)
def test_space_signs(tmp_path, scheme, expected):
    if scheme == "normalizer":
        backend = small_backend()
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend = small_backend(scheme=scheme)
    tokenizer = load(tmp_path, backend, NAMED)
    texts = ["hi", " hi", "<s>hi", "hi</s>hi"]
    assert [" ".join(map(tokenizer.id_to_token, tokenizer.encode(text))) for text in texts] == expected


# What cannot be encoded.


def test_lone_surrogates_are_refused_by_position(tmp_path):
    tokenizer = load(tmp_path)
    with pytest.raises(RequestError, match="lone surrogate U\\+D83D at position 3") as caught:
        tokenizer.encode("abc\ud83d")
    assert caught.value.code == "invalid_text"
    with pytest.raises(RequestError, match="text 1 has a lone surrogate"):
        tokenizer.encode_batch(["hi", "\udc00"])


@pytest.mark.parametrize("value", [None, 5, b"hi", ["hi"]])
def test_only_strings_are_texts(tmp_path, value):
    with pytest.raises(RequestError, match="must be a string"):
        load(tmp_path).encode(value)


def test_text_outside_a_vocabulary_without_an_unknown_token(tmp_path):
    backend = Backend(models.WordLevel({"hi": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = load(tmp_path, backend)
    assert tokenizer.encode("hi hi") == [0, 0]
    with pytest.raises(RequestError, match="cannot encode"):
        tokenizer.encode("ho")


# Tokens and decoding.


def test_tokens_and_ids(tmp_path):
    tokenizer = load(tmp_path, config={**NAMED, "pad_token": {"content": "</s>"}, "unk_token": None})
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 1)
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("</s>", None)
    assert tokenizer.all_special_ids == {0, 1}
    assert tokenizer.vocab_size == 8
    assert (tokenizer.token_to_id("▁hi"), tokenizer.token_to_id("none")) == (6, None)
    assert [tokenizer.id_to_token(token_id) for token_id in (6, 8, -1, 2**40)] == ["▁hi", None, None, None]
    assert tokenizer.decode([0, 6, 500, 6, 1]) == "hi hi"
    assert tokenizer.decode([0, 6, 1], skip_special_tokens=False) == "<s> hi</s>"
    assert tokenizer.sha256 == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()


def test_vocab_size_counts_gaps(tmp_path):
    assert load(tmp_path, Backend(models.WordLevel({"a": 0, "b": 9}, unk_token="a"))).vocab_size == 10


def test_detokenizer_takes_the_prompt_into_account(tmp_path):
    tokenizer = load(tmp_path, small_backend(adds_bos=True), NAMED)
    assert tokenizer.detokenizer().push(6) == "hi"
    assert tokenizer.detokenizer(prompt_ids=tokenizer.encode("hi")).push(6) == " hi"
    assert tokenizer.detokenizer(skip_special_tokens=False).push(1) == "</s>"


# What the files say.


def test_tokenizer_json_alone(tmp_path):
    tokenizer = load(tmp_path, small_backend(adds_bos=True, adds_eos=True))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.adds_bos) == ("<s>", None, True)
    assert not tokenizer.has_chat_template
    assert tokenizer.chat_template_sha256 is None
    assert load(tmp_path).bos_token is None


def test_special_tokens_map_fills_what_the_config_leaves_out(tmp_path):
    tokens = json.dumps({"bos_token": "h", "eos_token": {"content": "</s>", "lstrip": False}})
    tokenizer = load(tmp_path, config={"bos_token": "<s>"}, special_tokens_map_json=tokens)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


@pytest.mark.parametrize(
    ("in_file", "in_config", "expected"),
    [
        ((False, False), {"add_bos_token": True}, [0, 6]),
        ((True, False), {"add_bos_token": False}, [6]),
        ((True, False), {"add_bos_token": True}, [0, 6]),
        ((True, True), {"add_eos_token": False}, [0, 6]),
        ((True, True), {"add_bos_token": False}, [6, 1]),
        ((False, False), {"add_bos_token": True, "add_eos_token": True}, [0, 6, 1]),
        ((False, False), {"add_bos_token": True, "bos_token": None}, [6]),
        ((True, True), {}, [0, 6, 1]),
        ((True, False), {"add_bos_token": None}, [0, 6]),
    ],
)
def test_explicit_settings_decide_what_is_added(tmp_path, in_file, in_config, expected):
    tokenizer = load(tmp_path, small_backend(*in_file), {**NAMED, **in_config})
    assert tokenizer.encode("hi") == expected
    assert tokenizer.adds_bos == (expected[0] == 0)


def test_truncation_and_padding_in_the_file_are_switched_off(tmp_path):
    backend = small_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    assert len(load(tmp_path, backend, NAMED).encode("hi hi hi hi hi hi")) == 6


def test_tokens_that_only_the_config_lists(tmp_path):
    listed = {
        "4": {"content": "i", "special": True},  # has this id already
        "8": {"content": "<new>", "special": False},  # the next free id
        "9": {"content": "<more>", "special": True},
        "77": {"content": "<far>", "special": True},  # no row of the model
        "3": {"content": "hi", "special": True},  # another id in tokenizer.json
    }
    tokenizer = load(tmp_path, config={**NAMED, "added_tokens_decoder": listed, "additional_special_tokens": ["h"]})
    assert tokenizer.all_special_ids == {0, 1, 3, 4, 9}
    assert tokenizer.encode("<new><more>") == [8, 9]
    assert tokenizer.vocab_size == 10
    assert tokenizer.decode([8, 9, 3]) == "<new>"


def test_split_special_tokens(tmp_path):
    assert load(tmp_path, config={**NAMED, "split_special_tokens": True}).encode("<s>hi") != [0, 7]


TEMPLATE = "{{ messages[0].content }}"


def test_chat_template_jinja_wins(tmp_path):
    tokenizer = load(tmp_path, config={"chat_template": "config"}, chat_template_jinja="file")
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "file"
    assert tokenizer.chat_template_sha256 == hashlib.sha256(b"file").hexdigest()


def test_named_templates_of_all_kinds(tmp_path):
    message = [{"role": "user", "content": "x"}]
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools | length if tools }}"}]
    tokenizer = load(
        tmp_path,
        config={"chat_template": named},
        additional_chat_templates__rag_jinja="R",
        chat_templates__more_jinja="M",
    )
    tool = [{"type": "function"}]
    assert [tokenizer.render_chat(message, **options) for options in ({}, {"tools": tool})] == ["D", "T1"]
    assert [tokenizer.render_chat(message, chat_template=name) for name in ("rag", "more")] == ["R", "M"]
    assert Tokenizer.from_pretrained(tmp_path, "tool_use").render_chat(message) == "T"


def test_a_template_given_by_text_or_path(tmp_path):
    message = [{"role": "user", "content": "x"}]
    assert load(tmp_path, chat_template=TEMPLATE + "!").render_chat(message) == "x!"
    path = tmp_path / "mine.txt"
    path.write_text(TEMPLATE + "?", encoding="utf-8")
    assert load(tmp_path, chat_template=str(path)).render_chat(message) == "x?"
    with pytest.raises(TokenizerError, match="'nowhere' is none of this model's templates \\(default\\)"):
        load(tmp_path, config={"chat_template": "D"}, chat_template="nowhere")


def test_template_variables(tmp_path):
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ image_token }}{{ mood }}"
    tokenizer = load(tmp_path, config={**NAMED, "image_token": "<i>", "pad_token": None, "chat_template": template})
    assert tokenizer.render_chat([{"role": "user", "content": ""}], mood="calm") == "<s></s><i>calm"


def test_broken_template_is_found_on_request(tmp_path):
    tokenizer = load(tmp_path, config={"chat_template": "{% for %}"})
    with pytest.raises(TokenizerError, match="'default' is not valid Jinja"):
        tokenizer.compile_chat_templates()


# Damaged files: one sentence each.

GOOD = small_backend().to_str().encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GOOD[: len(GOOD) // 2], "is not valid JSON"),
        (b"", "line 1 column 1 is not valid JSON"),
        (b"not json", "line 1 column 1 is not valid JSON"),
        (b"[]", "must hold a JSON object, found list"),
        (b"{}", "has no key model"),
        (b'{"model": 5}', "is not a tokenizer that can be loaded"),
        (b'{"model": {"type": "Telepathy"}}', "is not a tokenizer that can be loaded"),
        (b'{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}', "is not a tokenizer that can be loaded"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}', "out of vocabulary"),
        (b"\xff\xfe{", "is not UTF-8 text at byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git-LFS pointer"),
    ],
)
def test_damaged_tokenizer_json(tmp_path, data, words):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_pretrained(tmp_path)
    message = str(caught.value)
    assert words in message
    assert message.startswith(str(tmp_path / "tokenizer.json"))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"bos_token": ', "tokenizer_config.json line 1 column 15 is not valid JSON"),
        ("[1]", "tokenizer_config.json must hold a JSON object, found list"),
        ('{"bos_token": 5}', "tokenizer_config.json: bos_token must be a string"),
        ('{"eos_token": {"contents": "x"}}', "tokenizer_config.json: eos_token must be a string"),
        ('{"bos_token": "\\ud800"}', "tokenizer_config.json holds half of a surrogate pair"),
        ('{"chat_template": 5}', "tokenizer_config.json: chat_template must be"),
        ('{"chat_template": [{"name": "x"}]}', "tokenizer_config.json: chat_template must be"),
    ],
)
def test_damaged_tokenizer_config(tmp_path, config, words):
    with pytest.raises(TokenizerError) as caught:
        load(tmp_path, tokenizer_config_json=config)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "i"}, "-1": {}, "8": "text", "9": {"content": ""}}},
        {"additional_special_tokens": 5},
        {"additional_special_tokens": [5, None, {"content": 5}], "extra_special_tokens": {"a": "absent"}},
        {"add_bos_token": "yes", "bos_token": "absent"},
        {"num_image_token": 256},
    ],
)
def test_odd_settings_that_change_nothing(tmp_path, config):
    assert load(tmp_path, config=config).encode("hi") == [6]


def test_missing_files(tmp_path):
    with pytest.raises(TokenizerError, match=r"nothing is not a folder"):
        Tokenizer.from_pretrained(tmp_path / "nothing")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist \(no tokenizer\)"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match=r"only tokenizer\.model, which is not read"):
        Tokenizer.from_pretrained(tmp_path)


def test_template_file_that_is_no_text(tmp_path):
    write(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"ok \xff")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja is not UTF-8 text at byte 3"):
        Tokenizer.from_pretrained(tmp_path)


def test_import_sets_no_environment_variable():
    program = "import os; before = dict(os.environ); import nanovllm.tokenizer; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", program], check=True, env=dict(os.environ))
