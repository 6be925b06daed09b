"""A GGUF file's tokenizer as Hugging Face files: tokenizer.json, tokenizer_config.json and generation_config.json.

Owns the mapping of llama.cpp's vocabulary description to a tokenizers pipeline. It must not know tensors. A GGUF file
only names its pre-tokenizer; the patterns behind the names are here, and a name that is not known is refused, since a
wrong split gives wrong token ids without any error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import tokenizers

from nanovllm.checkpoint.files import quote
from nanovllm.checkpoint.gguf_file import GgufFile
from nanovllm.errors import TokenizerError

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
_SPACE = "\u2581"  # sentencepiece writes a space as this sign

#: Ends of a turn that old files do not declare as `eot_token_id`; taken only where the chat template writes them.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>")

# The patterns of the original tokenizer.json files.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_SYMBOLS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_PATTERN = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _SYMBOLS_AND_SPACE
_QWEN2_PATTERN = _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _SYMBOLS_AND_SPACE
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split_by(pattern: str) -> dict:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


@dataclass(frozen=True)
class _Flavour:
    """A byte-level pre-tokenizer and what goes with it."""

    pre_tokenizer: dict
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


_GPT2 = _Flavour(_byte_level(use_regex=True))
_SINGLE_DIGITS = _Flavour(
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)]}
)
_LLAMA3 = _Flavour(_split_by(_LLAMA3_PATTERN), ignore_merges=True, adds_bos=True)

#: By the value of tokenizer.ggml.pre.
PRE_TOKENIZERS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _Flavour(_split_by(_QWEN2_PATTERN), nfc=True),
    "tekken": _Flavour(_split_by(_TEKKEN_PATTERN), ignore_merges=True, adds_bos=True),
}


@dataclass(frozen=True)
class TokenIds:
    """The token ids that config.json and generation_config.json name; None and empty where the file names none."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    unk: int | None


class TokenizerReader:
    """Reads one file's tokenizer.

    Attributes:
        tokens: token texts by id, without the filler at the end.
        ids: the special ids.

    Raises:
        TokenizerError: naming the key and what is missing, unknown or contradictory.
    """

    def __init__(self, gguf: GgufFile, vocab_size: int):
        self.gguf = gguf
        self.model = gguf.get("tokenizer.ggml.model", str)
        if self.model not in ("gpt2", "llama"):
            raise self._error("tokenizer.ggml.model", f"is {quote(self.model)}, expected gpt2 or llama")
        self.tokens = list(gguf.get_list("tokenizer.ggml.tokens", str))
        if not 0 < len(self.tokens) <= vocab_size:
            raise self._error(
                "tokenizer.ggml.tokens",
                f"has {len(self.tokens)} items, expected 1 to {vocab_size}, the embedding's rows",
            )
        self.chat_template = gguf.get("tokenizer.chat_template", str, None)
        self.types = self._read_types()
        self._tidy_tokens()
        self.ids = self._read_ids()

    def files(self, max_length: int) -> dict[str, str]:
        """Give the contents of the three files by name."""
        generation = {
            "bos_token_id": self.ids.bos,
            "eos_token_id": self.ids.eos[0] if len(self.ids.eos) == 1 else list(self.ids.eos) or None,
            "pad_token_id": self.ids.pad,
        }
        return {
            "tokenizer.json": self._tokenizer_json(),
            "tokenizer_config.json": _dump(self._tokenizer_config(max_length)),
            "generation_config.json": _dump({key: value for key, value in generation.items() if value is not None}),
        }

    def _error(self, key: str, text: str) -> TokenizerError:
        return TokenizerError(f"{self.gguf.path}: {key!r} {text}")

    def _read_types(self) -> list[int]:
        key = "tokenizer.ggml.token_type"
        types = self.gguf.get_list(key, int, None)
        if types is None:
            # Very old files: nothing tells which tokens are special but the ids named in the metadata.
            named = {self._id(name) for name in ("bos", "eos", "padding", "unknown", "eot")}
            return [_CONTROL if index in named else 1 for index in range(len(self.tokens))]
        if len(types) != len(self.tokens):
            raise self._error(key, f"has {len(types)} items, expected {len(self.tokens)}, one for each token")
        return list(types)

    def _tidy_tokens(self) -> None:
        """Drop the filler that pads the vocabulary to the embedding's size, and check that texts are unique."""
        while self.types[-1] == _UNUSED and self.tokens[-1] == f"[PAD{len(self.tokens) - 1}]" and len(self.tokens) > 1:
            self.tokens.pop()
            self.types.pop()
        for index, token in enumerate(self.tokens):
            if not token:
                self.tokens[index] = f"[EMPTY_{index}]"
            elif self.model == "llama" and self.types[index] == _USER_DEFINED:
                # Matched in the text before it is normalized, so written as in the text.
                self.tokens[index] = token.replace(_SPACE, " ")
        seen: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if seen.setdefault(token, index) != index:
                raise self._error(
                    "tokenizer.ggml.tokens", f"gives {quote(token)} the ids {seen[token]} and {index}, expected one"
                )

    def _id(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.gguf.get(key, int, None)
        # The largest integer stands for "none" in some files.
        if value is None or value == 0xFFFFFFFF:
            return None
        if not 0 <= value < len(self.tokens):
            raise self._error(key, f"is {value}, expected an id below {len(self.tokens)}")
        return value

    def _read_ids(self) -> TokenIds:
        ends = [self._id(name) for name in ("eos", "eot", "eom")]
        if ends[1] is None and self.chat_template:
            turn_ends = [
                index
                for index, token in enumerate(self.tokens)
                if self.types[index] == _CONTROL and token in _TURN_ENDS and token in self.chat_template
            ]
            ends += turn_ends
        eos = tuple(dict.fromkeys(index for index in ends if index is not None))
        return TokenIds(bos=self._id("bos"), eos=eos, pad=self._id("padding"), unk=self._id("unknown"))

    def _tokenizer_config(self, max_length: int) -> dict:
        ids = self.ids
        named = {
            "bos_token": ids.bos,
            "eos_token": ids.eos[0] if ids.eos else None,
            "pad_token": ids.pad,
            "unk_token": ids.unk,
        }
        config: dict = {"add_prefix_space": False}
        config |= {key: self.tokens[index] for key, index in named.items() if index is not None}
        config |= {
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        template = self._chat_template()
        if template:
            config["chat_template"] = template
        return config

    def _chat_template(self) -> str | list[dict[str, str]] | None:
        names = self.gguf.get_list("tokenizer.chat_templates", str, None)
        if not names:
            return self.chat_template
        named = {"default": self.chat_template} if self.chat_template else {}
        named |= {name: self.gguf.get(f"tokenizer.chat_template.{name}", str) for name in names}
        return [{"name": name, "template": template} for name, template in named.items()]

    def _tokenizer_json(self) -> str:
        parts = self._byte_level_parts() if self.model == "gpt2" else self._sentencepiece_parts()
        special = (_CONTROL,) if self.model == "gpt2" else (_CONTROL, _UNKNOWN)
        added = [
            {"id": index, "content": self.tokens[index], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": kind in special}
            for index, kind in enumerate(self.types)
            if kind in special or kind == _USER_DEFINED
        ]  # fmt: skip
        spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}
        try:
            # Reading it back checks it, and the library then writes it in its own form.
            return tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False)).to_str(pretty=True)
        except Exception as cause:  # the library raises bare Exception
            raise TokenizerError(f"{self.gguf.path}: the tokenizer cannot be built: {cause}") from None

    def _byte_level_parts(self) -> dict:
        key = "tokenizer.ggml.pre"
        tag = self.gguf.get(key, str, None)
        if tag is None:
            raise self._error(
                key,
                "is absent: the file is older than llama.cpp's record of pre-tokenizers; convert the model "
                "to GGUF again",
            )
        if tag not in PRE_TOKENIZERS:
            raise self._error(key, f"is {quote(tag)}, expected one of {', '.join(PRE_TOKENIZERS)}")
        flavour = PRE_TOKENIZERS[tag]
        merges = [merge.split(" ", 1) for merge in self.gguf.get_list("tokenizer.ggml.merges", str)]
        for index, merge in enumerate(merges):
            if len(merge) != 2:
                raise self._error(
                    "tokenizer.ggml.merges", f"has {quote(merge[0])} as item {index}, expected two pieces"
                )
        byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
        template = self._template(flavour.adds_bos)
        return {
            "normalizer": {"type": "NFC"} if flavour.nfc else None,
            "pre_tokenizer": flavour.pre_tokenizer,
            "post_processor": {"type": "Sequence", "processors": [byte_level, template]} if template else byte_level,
            "decoder": {**byte_level, "trim_offsets": True},
            "model": self._bpe(merges, unk_token=None, byte_fallback=False, ignore_merges=flavour.ignore_merges),
        }

    def _sentencepiece_parts(self) -> dict:
        to_sign = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        decoders: list[dict] = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        normalizer = to_sign
        if self.gguf.get("tokenizer.ggml.add_space_prefix", bool, True):
            normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, to_sign]}
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        unk_token = None if self.ids.unk is None else self.tokens[self.ids.unk]
        return {
            "normalizer": normalizer,
            "pre_tokenizer": None,
            "post_processor": self._template(adds_bos=True),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": self._bpe(
                self._merges_from_scores(), unk_token=unk_token, byte_fallback=True, ignore_merges=False
            ),
        }

    def _bpe(self, merges: list, *, unk_token: str | None, byte_fallback: bool, ignore_merges: bool) -> dict:
        return {
            "type": "BPE", "dropout": None, "unk_token": unk_token, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": byte_fallback, "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges,
            "vocab": {token: index for index, token in enumerate(self.tokens)}, "merges": merges,
        }  # fmt: skip

    def _merges_from_scores(self) -> list[tuple[str, str]]:
        """List the merges that sentencepiece's scores stand for, best first.

        Sentencepiece joins the two neighbours whose union has the best score. So every way to cut a piece into two
        pieces is a merge, ranked by the piece's score and then by the length of its parts, longer ones first.
        """
        key = "tokenizer.ggml.scores"
        scores = self.gguf.get_list(key, float)
        if len(scores) < len(self.tokens):
            raise self._error(key, f"has {len(scores)} items, expected {len(self.tokens)}, one for each token")
        ids = {token: index for index, token in enumerate(self.tokens) if self.types[index] == 1}
        ranked = []
        for piece, index in ids.items():
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in ids and right in ids:
                    ranked.append((-scores[index], -len(left), -len(right), ids[left], ids[right], left, right))
        return [(left, right) for *_, left, right in sorted(ranked)]

    def _template(self, adds_bos: bool) -> dict | None:
        """Make the post-processor that writes BOS and EOS; None when neither is written."""
        ids = self.ids
        bos = ids.bos if self.gguf.get("tokenizer.ggml.add_bos_token", bool, adds_bos) else None
        eos = ids.eos[0] if ids.eos and self.gguf.get("tokenizer.ggml.add_eos_token", bool, False) else None
        if bos is None and eos is None:
            return None

        def wrap(sequence: str, type_id: int) -> list[dict]:
            items = [{"Sequence": {"id": sequence, "type_id": type_id}}]
            before = [] if bos is None else [{"SpecialToken": {"id": self.tokens[bos], "type_id": type_id}}]
            after = [] if eos is None else [{"SpecialToken": {"id": self.tokens[eos], "type_id": type_id}}]
            return before + items + after

        used = {self.tokens[index]: index for index in (bos, eos) if index is not None}
        return {
            "type": "TemplateProcessing",
            "single": wrap("A", 0),
            "pair": wrap("A", 0) + wrap("B", 1),
            "special_tokens": {
                token: {"id": token, "ids": [index], "tokens": [token]} for token, index in used.items()
            },
        }  # fmt: skip


def _dump(value: dict) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
