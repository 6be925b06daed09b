"""Log likelihoods of given tokens: continuations after prompts, and whole texts.

Owns where a pair of texts is cut into tokens and how a long text is cut into windows. Runs sequences through
`Dispatcher.run_scoring`; knows nothing of steps, and never applies sampling settings.
"""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanovllm.engine.sequence import Sequence
from nanovllm.errors import ConfigError, RequestError
from nanovllm.in_flight import invalid_logits
from nanovllm.outputs import PerplexityOutput, ScoredRequest, ScoreOutput, ScoreRequest
from nanovllm.prompts import as_prompt_list, is_id, read_prompt
from nanovllm.score_tree import Branch, scoring_sequence
from nanovllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanovllm.llm import LLM

_END = object()  # of an iterator of requests


def serve_scores(llm: LLM, requests: Iterable[ScoreRequest | None]) -> Iterator[ScoredRequest]:
    """Score requests as they come; see `LLM.score_iter`."""
    fresh = iter(requests)
    ready: deque[Sequence] = deque()
    owners: dict[Sequence, _Pairs | _Text] = {}
    in_flight: set[_Pairs | _Text] = set()

    def sequences() -> Iterator[Sequence | ScoredRequest | None]:
        while True:
            if ready:
                yield ready.popleft()
                continue
            request = next(fresh, _END)
            if request is _END and not in_flight:
                return
            if request is None or request is _END:
                yield None
                continue
            work = _Text(request, llm) if request.continuations is None else _Pairs(request, llm)
            if work.num_open == 0:
                yield work.result
            else:
                in_flight.add(work)
                queue(work, work.begin())

    def queue(work: _Pairs | _Text, seqs: list[Sequence]) -> None:
        owners.update(dict.fromkeys(seqs, work))
        ready.extend(seqs)

    try:
        with contextlib.closing(llm.dispatcher.run_scoring(sequences())) as ended:
            for item in ended:
                if isinstance(item, ScoredRequest):
                    yield item
                    continue
                work = owners.pop(item)
                queue(work, work.take(item))
                if work.num_open == 0:
                    in_flight.remove(work)
                    work.end()
                    yield work.result
    finally:
        for work in in_flight:
            work.end()


class _Pairs:
    """A request's prompt and its continuations, as trees of what is left to compute of each pair.

    Attributes:
        num_open: pairs that have not ended.
    """

    def __init__(self, request: ScoreRequest, llm: LLM):
        self.result = ScoredRequest(request)
        self._engine = llm.engine
        self._trees: list[Branch] = []
        self._running: dict[Sequence, Branch] = {}
        self.num_open = 0
        context: _Context | None = None
        for i, continuation in enumerate(_checked_group("ScoreRequest.continuations", request.continuations)):
            output = ScoreOutput()
            try:
                context = context or _Context.read(request.prompt, llm.tokenizer)
                ids, output.token_ids = context.pair(continuation, llm)
                if request.truncate:
                    output.num_truncated = _num_excess(len(ids), len(output.token_ids), llm.max_model_len)
                output.prompt_token_ids = ids[output.num_truncated :]
                self._plant(i, output.prompt_token_ids, output.token_ids)
            except RequestError as error:
                output = ScoreOutput(error=error)
            self.result.outputs.append(output)

    def _plant(self, i: int, context: list[int], ids: list[int]) -> None:
        """Put a pair into the first tree that it shares enough with."""
        self._engine.check_scored(context + ids)
        branch = Branch(i, context + ids, len(context))
        if not any(tree.graft(branch) for tree in self._trees):
            self._trees.append(branch)
        self.num_open += 1

    def begin(self) -> list[Sequence]:
        """Return the sequences that may run at once."""
        return [self._start(tree) for tree in self._trees]

    def _start(self, branch: Branch, parent: Branch | None = None) -> Sequence:
        seq = branch.start(parent)
        self._running[seq] = branch
        return seq

    def take(self, seq: Sequence) -> list[Sequence]:
        """Note what has ended, and return the sequences that may run now."""
        branch = self._running.pop(seq)
        if seq.finish_reason == "error":  # how far its numbers were good for others too is not worth finding out
            self.num_open -= 1
            self.result.outputs[branch.index] = ScoreOutput(error=invalid_logits())
            self._trees += (alone := branch.scatter())
            return [self._start(tree) for tree in alone]
        children = branch.finish()
        self._close(branch)
        for child in children:
            if not child.is_computed:
                self._close(child)
        return [self._start(child, branch) for child in children if child.is_computed]

    def _close(self, branch: Branch) -> None:
        self.num_open -= 1
        output = self.result.outputs[branch.index]
        output.logprobs = [value for value, _ in branch.own_scores]
        output.is_greedy = all(is_best for _, is_best in branch.own_scores)

    def end(self) -> None:
        """Give up the blocks that are kept for others."""
        pending = list(self._trees)
        while pending:
            branch = pending.pop()
            if branch.seq is not None:
                self._engine.drop_kept(branch.seq)
                pending += branch.children


class _Text:
    """A text that is scored by itself, each of its windows a sequence.

    Attributes:
        num_open: windows that have not ended.
    """

    def __init__(self, request: ScoreRequest, llm: LLM):
        self._places: dict[Sequence, int] = {}  # the first token that each window scores
        self._scores: dict[int, list[float]] = {}
        try:
            output, ids = _read_text(request.prompt, llm, request.score_first)
            for begin, first, end in rolling_windows(len(ids), llm.max_model_len):
                llm.engine.check_scored(ids[begin:end])
                self._places[scoring_sequence(ids[begin:end], first - begin - 1)] = first
        except RequestError as error:
            self._places.clear()
            output = PerplexityOutput(error=error)
        self.result = ScoredRequest(request, perplexity=output)
        self.num_open = len(self._places)

    def begin(self) -> list[Sequence]:
        """Return the sequences that may run at once: all of them."""
        return list(self._places)

    def take(self, seq: Sequence) -> list[Sequence]:
        """Note what has ended; no sequence waits for another."""
        self.num_open -= 1
        self._scores[self._places.pop(seq)] = [row.logprobs[0] for row in seq.prompt_logprobs]
        if seq.finish_reason == "error":
            self.result.perplexity = PerplexityOutput(error=invalid_logits())
        return []

    def end(self) -> None:
        """Put the windows' scores together in the order of the text."""
        if self.result.perplexity.error is None:
            self.result.perplexity.logprobs = [v for first in sorted(self._scores) for v in self._scores[first]]


def score_requests(prompts: Any, continuations: Any) -> list[ScoreRequest]:
    """Return a request for each prompt; `data` is its index.

    Raises:
        ConfigError: the two do not fit together.
    """
    listed = as_prompt_list(prompts)
    if not isinstance(continuations, ListLike) or isinstance(continuations, str):
        raise ConfigError(f"continuations: expected a list, found {type(continuations).__name__}")
    if _is_single(prompts):
        return [ScoreRequest(listed[0], list(continuations), 0)]
    if len(continuations) != len(listed):
        raise ConfigError(f"continuations: {len(continuations)} lists given for {len(listed)} prompts; give one each")
    groups = [_checked_group(f"continuations[{i}]", group) for i, group in enumerate(continuations)]
    return [ScoreRequest(prompt, group, i) for i, (prompt, group) in enumerate(zip(listed, groups, strict=True))]


def _checked_group(name: str, group: Any) -> list:
    if not isinstance(group, ListLike) or isinstance(group, str) or (group and all(map(is_id, group))):
        raise ConfigError(f"{name}: expected a list of continuations, found {_kind(group)}")
    return list(group)


def _is_single(prompts: Any) -> bool:
    return isinstance(prompts, (str, Mapping)) or (bool(prompts) and all(map(is_id, prompts)))


def _kind(value: Any) -> str:
    return "token ids" if isinstance(value, ListLike) and not isinstance(value, str) else type(value).__name__


@dataclass(slots=True)
class _Context:
    """A prompt that continuations are scored after: as text where it came as text, and its ids."""

    text: str | None
    blanks: str
    ids: list[int]

    @classmethod
    def read(cls, prompt: Any, tokenizer: Tokenizer) -> _Context:
        if isinstance(prompt, RequestError):
            raise prompt
        if isinstance(prompt, Mapping) and prompt.get("prompt_token_ids") is None and "prompt" in prompt:
            prompt = prompt["prompt"]
        if not isinstance(prompt, str):
            return cls(None, "", read_prompt(prompt, tokenizer)[1])
        text = prompt.rstrip()
        return cls(text, prompt[len(text) :], tokenizer.encode(text) if text else [])

    def pair(self, continuation: Any, llm: LLM) -> tuple[list[int], list[int]]:
        """Return the ids to condition on, at least one, and the ids to score, at least one."""
        if isinstance(continuation, str):
            if not continuation:
                raise _empty_continuation()
            context, ids = self._join(continuation, llm.tokenizer)
        else:
            context, ids = list(self.ids), read_prompt(continuation, llm.tokenizer)[1]
        if not context:
            context, ids = _after_prefix(ids, llm)
        if not ids:
            raise _empty_continuation()
        return context, ids

    def _join(self, continuation: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        if not self.text:
            # Ids without text: there is nothing to encode the continuation together with.
            return list(self.ids), tokenizer.encode(self.blanks + continuation, add_special_tokens=False)
        whole = tokenizer.encode(self.text + self.blanks + continuation)
        cut = len(self.ids)
        if cut >= len(whole):
            same = (a == b for a, b in zip(self.ids, whole, strict=False))
            cut = next((i for i, equal in enumerate(same) if not equal), len(whole))
        return whole[:cut], whole[cut:]


def _empty_continuation() -> RequestError:
    return RequestError("empty_continuation", "the continuation has no tokens to score; give at least one")


def prefix_id(llm: LLM) -> int | None:
    """Return the id that stands for an empty beginning: BOS, else EOS, None where the model knows neither."""
    eos = llm.engine.spec.eos_token_ids
    candidates = [llm.tokenizer.bos_token_id, llm.tokenizer.eos_token_id, *(sorted(eos) if eos else [])]
    return next((i for i in candidates if i is not None and i < llm.engine.spec.vocab_size), None)


def _after_prefix(ids: list[int], llm: LLM) -> tuple[list[int], list[int]]:
    prefix = prefix_id(llm)
    if prefix is None:
        raise RequestError("empty_prompt", "the prompt has no tokens, and the model has neither BOS nor EOS for it")
    return [prefix], ids[1:] if ids[:1] == [prefix] else ids


def _num_excess(num_context: int, num_scored: int, max_model_len: int) -> int:
    """Return how many tokens of a context must go; one stays, and the last token that is scored takes no position."""
    return max(0, min(num_context + num_scored - max_model_len - 1, num_context - 1))


def rolling_windows(num_tokens: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a text so that each token but the first is scored once, by windows that compute `size` tokens at most.

    Yields:
        (begin, first, end): tokens [first, end) are scored, given [begin, first).
    """
    first = 1
    while first < num_tokens:
        end = min(first + size, num_tokens)
        yield max(0, end - 1 - size), first, end
        first = end


def _read_text(text: Any, llm: LLM, score_first: bool) -> tuple[PerplexityOutput, list[int]]:
    """Return an output that knows the text's sizes, and the ids of which all but the first are scored."""
    if isinstance(text, RequestError):
        raise text
    if isinstance(text, str):
        output = PerplexityOutput(num_bytes=len(text.encode("utf-8", "replace")), num_words=len(re.split(r"\s+", text)))
        ids = llm.tokenizer.encode(text, add_special_tokens=False)
    else:
        output, ids = PerplexityOutput(), read_prompt(text, llm.tokenizer)[1]
    if score_first and ids:
        prefix, ids = _after_prefix(ids, llm)
        ids = prefix + ids
    if len(ids) < 2:
        raise RequestError("empty_prompt", "the text has no token to score; give a longer one")
    return output, ids
