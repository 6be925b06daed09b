"""Read a tokenizer from the files of a checkpoint.

Owns tokenizer.json, tokenizer_config.json, special_tokens_map.json and the template files: finding and reading them,
telling what is wrong with a damaged one, and settling what they say differently. Must not encode anybody's text.

Where they disagree: tokenizer.json decides ids; tokenizer_config.json names the special tokens and, by an explicit
`add_bos_token` or `add_eos_token`, decides whether these are added, as in transformers; special_tokens_map.json fills
what the config leaves out; chat_template.jinja wins over the config's chat_template. The truncation and padding that
tokenizer.json may ask for are switched off: a prompt is never cut or filled silently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from nanovllm.chat_template import ChatTemplates, looks_like_template
from nanovllm.errors import TokenizerError

_TEMPLATE_FOLDERS = ("additional_chat_templates", "chat_templates")
_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")
_MAX_QUOTED = 300
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a checkpoint's files say about its tokenizer.

    Attributes:
        backend: the loaded tokenizer, ready for use.
        special_tokens: text of each special token by its key, such as `eos_token`.
        templates: the chat templates.
        sha256: hash of tokenizer.json's bytes.
    """

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    templates: ChatTemplates
    sha256: str


def read_tokenizer_files(folder: Path, chat_template: str | None = None) -> TokenizerFiles:
    """Read the tokenizer of a Hugging Face directory.

    Args:
        folder: the directory.
        chat_template: a template's name, a file's path, or template text, to use instead of the default one.

    Raises:
        TokenizerError: a file is missing or damaged, or `chat_template` names nothing.
    """
    data = _read_bytes(folder / "tokenizer.json", folder)
    config = _read_object(folder / "tokenizer_config.json")
    backend = _load_backend(data, folder / "tokenizer.json")
    special_tokens = _special_tokens(config, _read_object(folder / "special_tokens_map.json"), folder)
    _add_tokens(backend, config, special_tokens)
    _follow_config(backend, config, special_tokens)
    if "bos_token" not in special_tokens:
        special_tokens |= _implied_bos(backend, special_tokens)
    templates = _load_templates(folder, config, None if chat_template is None else str(chat_template))
    return TokenizerFiles(backend, special_tokens, templates, hashlib.sha256(data).hexdigest())


def added_ids(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text."""
    added_texts = [token.content for token in backend.get_added_tokens_decoder().values()]
    ids: list[int] = []
    for probe in ("a", *added_texts[:4], ""):
        try:
            encoding = backend.encode(probe)
        except Exception:  # a vocabulary without "a" and without an unknown token
            continue
        ids, mask = encoding.ids, encoding.special_tokens_mask
        if 0 in mask:
            first, last = mask.index(0), len(mask) - 1 - mask[::-1].index(0)
            return ids[:first], ids[last + 1 :]
    return ids, []


def _read_bytes(path: Path, folder: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder; give a Hugging Face model directory")
    others = [name for name in ("tokenizer.model", "tekken.json", "vocab.json") if (folder / name).is_file()]
    found = f"only {', '.join(others)}, which is not read" if others else "no tokenizer"
    raise TokenizerError(f"{path} does not exist ({found}); save it with transformers' AutoTokenizer.save_pretrained")


def _read_object(path: Path) -> dict:
    """Return a JSON file's object; an absent file is an empty one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    return _parse_object(data, path)


def _parse_object(data: bytes, path: Path) -> dict:
    if data.startswith(_LFS_POINTER):
        raise TokenizerError(f"{path} is a Git-LFS pointer, not the file itself; fetch it with git lfs pull")
    try:
        value = json.loads(data.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise TokenizerError(
            f"{path} line {error.lineno} column {error.colno} is not valid JSON ({error.msg}); "
            "the file is damaged or cut off, copy it again"
        ) from None
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text at byte {error.start}; copy it again") from None
    except UnicodeEncodeError:
        # The tokenizers library raises this error itself at each text it is given.
        raise TokenizerError(f"{path} holds half of a surrogate pair, which is no character; copy it again") from None
    except (RecursionError, ValueError):
        raise TokenizerError(f"{path} is not usable JSON: nested too deeply or a number too long") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def _load_backend(data: bytes, path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
        backend.no_truncation()
        backend.no_padding()
        added_ids(backend)  # some faults only show in use
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in the library's Rust code is not an Exception
        content = _parse_object(data, path)
        if "model" not in content:
            raise TokenizerError(f"{path} has no key model; it is not a tokenizer of the tokenizers library") from None
        # The library quotes what it does not expect, however long.
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")[:_MAX_QUOTED]
        raise TokenizerError(f"{path} is not a tokenizer that can be loaded: {reason}") from None
    return backend


def _special_tokens(config: dict, tokens_map: dict, folder: Path) -> dict[str, str]:
    """Return the text of each special token that is named, by its key, such as `eos_token`."""
    result = {}
    for content, file in ((tokens_map, "special_tokens_map.json"), (config, "tokenizer_config.json")):
        for key, value in content.items():
            if not key.endswith("_token") or isinstance(value, bool):
                continue
            text = value.get("content") if _is_dict(value) else value
            if isinstance(text, str):
                result[key] = text
            elif value is not None and key in _NAMED_TOKENS:
                raise TokenizerError(
                    f"{folder / file}: {key} must be a string, null or an object with content, found {value!r:.60}"
                )
    return result


def _add_tokens(backend: tokenizers.Tokenizer, config: dict, special_tokens: Mapping[str, str]) -> None:
    """Let the tokenizer know the tokens that only the config lists.

    Only such that have an id already, or whose listed id is the next free one: a token may not shift others, nor get
    an id that the model has no row for.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder")
    for key, spec in sorted(listed.items(), key=lambda item: (len(item[0]), item[0])) if _is_dict(listed) else ():
        text = spec.get("content") if _is_dict(spec) else None
        if not isinstance(text, str) or not text or text in known or not key.isdecimal():
            continue
        token_id = backend.token_to_id(text)
        if int(key) == (backend.get_vocab_size() if token_id is None else token_id):
            flags = {
                flag: bool(spec.get(flag)) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            backend.add_tokens([AddedToken(text, **flags)])
            known.add(text)
    named = list(special_tokens.values())
    for key in _TOKEN_LISTS:
        tokens = config.get(key)
        named += tokens if isinstance(tokens, list) else tokens.values() if _is_dict(tokens) else ()
    texts = [token.get("content") if _is_dict(token) else token for token in named]
    missing = [t for t in texts if isinstance(t, str) and t not in known and backend.token_to_id(t) is not None]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _follow_config(backend: tokenizers.Tokenizer, config: dict, special_tokens: Mapping[str, str]) -> None:
    """Make the tokenizer add BOS and EOS as an explicit add_bos_token or add_eos_token says."""
    if config.get("split_special_tokens") is True:
        backend.encode_special_tokens = True
    before, after = added_ids(backend)
    wanted = []
    changed = False
    for name, position, added in (("bos", before, bool(before)), ("eos", after, bool(after))):
        asked = config.get(f"add_{name}_token")
        text = special_tokens.get(f"{name}_token")
        token_id = None if text is None else backend.token_to_id(text)
        adds = asked if isinstance(asked, bool) and (token_id is not None or not asked) else added
        changed |= adds != added
        wanted.append([(text, token_id)] if adds and asked else [(backend.id_to_token(i), i) for i in position if adds])
    if changed:
        starts, ends = wanted
        single = [text for text, _ in starts] + ["$A"] + [text for text, _ in ends]
        backend.post_processor = TemplateProcessing(single=single, special_tokens=starts + ends)


def _implied_bos(backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> dict[str, str]:
    """Return the BOS of a tokenizer whose config names none: the one token it puts first."""
    before, _ = added_ids(backend)
    if len(before) != 1:
        return {}
    text = backend.id_to_token(before[0])
    return {} if text == special_tokens.get("eos_token") else {"bos_token": text}


def _load_templates(folder: Path, config: dict, chosen: str | None) -> ChatTemplates:
    texts = _config_templates(config.get("chat_template"), folder / "tokenizer_config.json")
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        texts = {"default": _read_text(own_file)}
    for name in _TEMPLATE_FOLDERS:
        for path in sorted((folder / name).glob("*.jinja")):
            texts[path.stem] = _read_text(path)
    if chosen is None or chosen in texts:
        return ChatTemplates(texts, chosen)
    if looks_like_template(chosen):
        return ChatTemplates({"given": chosen}, "given")
    try:
        is_file = Path(chosen).is_file()
    except OSError:  # such as a name that is too long
        is_file = False
    if not is_file:
        names = ", ".join(sorted(texts)) or "it has none"
        raise TokenizerError(
            f"chat_template {chosen!r} is none of this model's templates ({names}), no file and no template text"
        )
    return ChatTemplates({"given": _read_text(Path(chosen))}, "given")


def _config_templates(value: object, path: Path) -> dict[str, str]:
    """Return the templates of tokenizer_config.json: a text, or a list of named ones."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    items = value if isinstance(value, list) else [value]
    texts = {}
    for item in items:
        name, text = (item.get("name"), item.get("template")) if _is_dict(item) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise TokenizerError(f"{path}: chat_template must be a string or a list of objects with name and template")
        texts[name] = text
    return texts


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
