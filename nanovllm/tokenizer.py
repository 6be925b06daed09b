"""Text to token ids and back.

Owns encoding, decoding and the rule that no text ever gets two BOS. A prompt is always encoded as one text, never in
pieces, and decoded text is never "cleaned up". Must not know models, sampling or requests' lives, nor the files of a
checkpoint, which `tokenizer_files` reads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers

from nanovllm.chat_template import ChatTemplates
from nanovllm.detokenizer import IncrementalDetokenizer, TextDecoder
from nanovllm.errors import RequestError
from nanovllm.tokenizer_files import added_ids, read_tokenizer_files

# Smaller batches are encoded in a loop: threads of the `tokenizers` library make a later fork() warn on stderr.
_PARALLEL_CHARS = 1_000_000


class Tokenizer:
    """A checkpoint's tokenizer with its special tokens and chat templates.

    Attributes:
        bos_token, eos_token, pad_token, unk_token: texts of the special tokens, None where there is none.
        bos_token_id, eos_token_id: their ids, None also when the vocabulary lacks the text.
        all_special_ids: ids that `skip_special_tokens` drops.
        adds_bos: whether `encode` puts BOS first.
        sha256: hash of tokenizer.json's bytes.
        chat_template_sha256: hash of the chat template, None without one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        templates: ChatTemplates,
        sha256: str,
    ):
        self._backend = backend
        self._special_tokens = dict(special_tokens)
        self._templates = templates
        self.sha256 = sha256
        self.chat_template_sha256 = templates.sha256
        self.has_chat_template = bool(templates)
        self.bos_token = special_tokens.get("bos_token")
        self.eos_token = special_tokens.get("eos_token")
        self.pad_token = special_tokens.get("pad_token")
        self.unk_token = special_tokens.get("unk_token")
        self.bos_token_id = None if self.bos_token is None else self.token_to_id(self.bos_token)
        self.eos_token_id = None if self.eos_token is None else self.token_to_id(self.eos_token)
        added = backend.get_added_tokens_decoder()
        self.all_special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.adds_bos = self.bos_token_id is not None and added_ids(backend)[0][:1] == [self.bos_token_id]
        self._decoder = TextDecoder(backend)

    @classmethod
    def from_pretrained(cls, model_dir: str | Path, chat_template: str | None = None) -> Tokenizer:
        """Read the tokenizer of a Hugging Face directory.

        Args:
            model_dir: folder with tokenizer.json and, optionally, tokenizer_config.json, special_tokens_map.json,
                chat_template.jinja and additional_chat_templates/NAME.jinja.
            chat_template: a template's name, a file's path, or template text, to use instead of the default one.

        Raises:
            TokenizerError: a file is missing or damaged, or `chat_template` names nothing.
        """
        files = read_tokenizer_files(Path(model_dir), chat_template)
        return cls(files.backend, files.special_tokens, files.templates, files.sha256)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids, added tokens and gaps included: the highest id plus one."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text.

        A text that begins with BOS by itself gets no second one.

        Raises:
            RequestError: `invalid_text`, for what is no text or has a lone surrogate.
        """
        _check_text(text)
        try:
            ids = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the library raises plain Exception, and a panic is not even that
            raise RequestError("invalid_text", f"the tokenizer cannot encode this text: {error}") from error
        return self._without_second_bos(ids) if add_special_tokens else ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Return the ids of each text, as `encode` gives them.

        Raises:
            RequestError: `invalid_text`, for the first text that cannot be encoded.
        """
        texts = list(texts)
        for index, text in enumerate(texts):
            _check_text(text, f"text {index}")
        if sum(map(len, texts)) < _PARALLEL_CHARS:
            return [self.encode(text, add_special_tokens) for text in texts]
        try:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # as in encode
            raise RequestError("invalid_text", f"the tokenizer cannot encode these texts: {error}") from error
        rows = [encoding.ids for encoding in encodings]
        return [self._without_second_bos(ids) for ids in rows] if add_special_tokens else rows

    def starts_with_bos(self, text: str) -> bool:
        """Return whether a text begins with BOS by itself, before any is added."""
        if self.bos_token_id is None or not text.lstrip().startswith(self.bos_token):
            return False
        head = text[: text.index(self.bos_token) + len(self.bos_token)]
        return self.encode(head, add_special_tokens=False)[:1] == [self.bos_token_id]

    def decode(
        self, ids: Iterable[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Return the text of ids; those without a token give nothing.

        Args:
            ids: token ids.
            skip_special_tokens: whether to leave special tokens out.
            spaces_between_special_tokens: whether neighbouring added tokens keep the space between them, for
                tokenizers that put one between all tokens (those without a decoder).
        """
        return self._decoder.decode(ids, skip_special_tokens, spaces_between_special_tokens)

    def detokenizer(
        self,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
    ) -> IncrementalDetokenizer:
        """Return a detokenizer for one sequence.

        Without `prompt_ids` its pieces join to `decode(ids)`. With them the text is what `ids` add to the decoded
        prompt, so that a continuation keeps its leading space.
        """
        return self._decoder.start(skip_special_tokens, spaces_between_special_tokens, prompt_ids)

    def to_json(self) -> str:
        """Return the text of a tokenizer.json that has all of this tokenizer, the config's additions included."""
        return self._backend.to_str()

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token's text as the vocabulary spells it."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it, None for an id without one."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def compile_chat_templates(self) -> None:
        """Compile all chat templates now, to find a broken one before any work.

        Raises:
            TokenizerError: a template is not valid Jinja.
        """
        self._templates.compile()

    def chat_template_text(self, name: str | None = None) -> str:
        """Return a chat template by its name, or the one that `render_chat` uses unless told otherwise.

        Raises:
            TokenizerError: the checkpoint has none.
        """
        return self._templates.text(name)

    def render_chat(
        self,
        messages: Sequence[Mapping],
        *,
        tools: Sequence[Mapping] | None = None,
        documents: Sequence[Mapping] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        **template_kwargs: object,
    ) -> str:
        """Return a conversation as prompt text; arguments as in `ChatTemplates.render`.

        Raises:
            RequestError: `empty_messages` or `template_error`.
            TokenizerError: there is no chat template, or it is not valid Jinja.
        """
        return self._templates.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            variables={**self._special_tokens, **template_kwargs},
        )

    def encode_chat(self, messages: Sequence[Mapping], **options: object) -> tuple[str, list[int]]:
        """Return a conversation as prompt text and as ids.

        The template has written every special token the model wants, so none is added. Options as in `render_chat`.
        """
        text = self.render_chat(messages, **options)
        return text, self.encode(text, add_special_tokens=False)

    def _without_second_bos(self, ids: list[int]) -> list[int]:
        if self.adds_bos and ids[1:2] == [self.bos_token_id]:
            return ids[1:]
        return ids


def _check_text(text: object, name: str = "the text") -> None:
    if not isinstance(text, str):
        raise RequestError("invalid_text", f"{name} must be a string, found {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            "invalid_text",
            f"{name} has a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which is no "
            "character; remove it or write the whole pair",
        ) from None
