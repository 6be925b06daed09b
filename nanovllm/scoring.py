"""Log likelihoods of given tokens: continuations after prompts, and whole texts.

Owns where a pair of texts is cut into tokens and how a long text is cut into windows. Runs sequences through
`Dispatcher.run_scoring`; knows nothing of steps, and never applies sampling settings.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanovllm.engine.sequence import Sequence
from nanovllm.errors import ConfigError, RequestError
from nanovllm.in_flight import invalid_logits
from nanovllm.outputs import PerplexityOutput, ScoreOutput
from nanovllm.progress import progress
from nanovllm.prompts import as_prompt_list, is_id, read_prompt
from nanovllm.sampling_params import SamplingParams
from nanovllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanovllm.llm import LLM

_NO_SAMPLING = SamplingParams(temperature=0.0, max_tokens=1)


# From so many tokens up that are in no full block, the first pair of a prompt is computed before the others.
FORK_TOKENS = 4


def score_pairs(llm: LLM, prompts: Any, continuations: Any, use_tqdm: bool) -> list[list[ScoreOutput]]:
    """Score every continuation after its prompt; see `LLM.score`."""
    prompts, groups = _grouped(prompts, continuations)
    results = [[ScoreOutput() for _ in group] for group in groups]
    places: dict[Sequence, tuple[int, int]] = {}
    families: dict[Sequence, _Family] = {}
    ready: deque[Sequence] = deque()
    fresh = iter(range(len(prompts)))

    def sequences() -> Iterator[Sequence | None]:
        while True:
            if ready:
                yield ready.popleft()
            elif (i := next(fresh, None)) is not None:
                ready.extend(begin(i))
            elif families:
                yield None
            else:
                return

    def begin(i: int) -> list[Sequence]:
        """Return what of a prompt's pairs may run at once."""
        seqs: list[Sequence] = []
        context: _Context | None = None
        for j, continuation in enumerate(groups[i]):
            output = results[i][j]
            try:
                context = context or _Context.read(prompts[i], llm.tokenizer)
                output.prompt_token_ids, output.token_ids = context.pair(continuation, llm)
                seqs.append(scoring_sequence(llm, output.prompt_token_ids, output.token_ids))
                places[seqs[-1]] = (i, j)
            except RequestError as error:
                results[i][j] = ScoreOutput(error=error)
                done()
        if len(seqs) < 2 or seqs[0].num_scored % llm.engine.block_manager.block_size < FORK_TOKENS:
            return seqs
        first, others = seqs[0], seqs[1:]
        first.keeps_blocks = True
        family = families[first] = _Family(first, others)
        for seq in others:
            seq.fork_of, families[seq] = first, family
        return [first]

    def settle(seq: Sequence) -> None:
        family = families.pop(seq, None)
        if family is None:
            return
        if seq is family.first:
            ready.extend(family.others)
        else:
            family.num_ended += 1
        if family.num_ended == len(family.others):
            llm.engine.drop_kept(family.first)

    with progress(sum(map(len, groups)), use_tqdm) as done:
        try:
            for seq in llm.dispatcher.run_scoring(sequences()):
                i, j = places.pop(seq)
                if seq.finish_reason == "error":
                    results[i][j] = ScoreOutput(error=invalid_logits())
                else:
                    output = results[i][j]
                    output.logprobs = [row.logprobs[0] for row in seq.prompt_logprobs]
                    output.is_greedy = all(row.is_best for row in seq.prompt_logprobs)
                settle(seq)
                done()
        finally:
            for family in families.values():
                llm.engine.drop_kept(family.first)
    return results


@dataclass(slots=True, eq=False)
class _Family:
    """The pairs of one prompt: the first is computed, and the others fork from it."""

    first: Sequence
    others: list[Sequence]
    num_ended: int = 0


def _grouped(prompts: Any, continuations: Any) -> tuple[list, list[list]]:
    """Return the prompts and, for each, the list of its continuations."""
    listed = as_prompt_list(prompts)
    if not isinstance(continuations, ListLike) or isinstance(continuations, str):
        raise ConfigError(f"continuations: expected a list, found {type(continuations).__name__}")
    if _is_single(prompts):
        return listed, [list(continuations)]
    if len(continuations) != len(listed):
        raise ConfigError(f"continuations: {len(continuations)} lists given for {len(listed)} prompts; give one each")
    for i, group in enumerate(continuations):
        if not isinstance(group, ListLike) or isinstance(group, str) or (group and all(map(is_id, group))):
            raise ConfigError(f"continuations[{i}]: expected a list of continuations, found {_kind(group)}")
    return listed, [list(group) for group in continuations]


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


def scoring_sequence(llm: LLM, context: list[int], ids: list[int]) -> Sequence:
    """Return the sequence that scores `ids` after `context`; the last id is scored but never computed itself.

    Raises:
        RequestError: codes invalid_token_id, prompt_too_long.
    """
    whole = context + ids
    llm.engine.check_scored(whole)
    return Sequence("", whole[:-1], _NO_SAMPLING, targets=whole[1:], num_scored=len(context) - 1, samples_next=False)


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


def text_perplexities(llm: LLM, texts: Any, score_first: bool, use_tqdm: bool) -> list[PerplexityOutput]:
    """Score texts of any length; see `LLM.perplexity`."""
    texts = as_prompt_list(texts)
    results = [PerplexityOutput() for _ in texts]
    places: dict[Sequence, tuple[int, int]] = {}
    scored: dict[int, dict[int, list[float]]] = {}  # for each text in flight: first token of a window, its scores
    num_open = [0] * len(texts)

    def sequences() -> Iterator[Sequence]:
        for i, text in enumerate(texts):
            try:
                results[i], ids = _read_text(text, llm, score_first)
                windows = list(rolling_windows(len(ids), llm.max_model_len))
                parts = [scoring_sequence(llm, ids[begin:first], ids[first:end]) for begin, first, end in windows]
            except RequestError as error:
                results[i] = PerplexityOutput(error=error)
                done()
                continue
            num_open[i], scored[i] = len(parts), {}
            for (_, first, _), seq in zip(windows, parts, strict=True):
                places[seq] = (i, first)
                yield seq

    with progress(len(texts), use_tqdm) as done:
        for seq in llm.dispatcher.run_scoring(sequences()):
            i, first = places.pop(seq)
            if seq.finish_reason == "error":
                results[i] = PerplexityOutput(error=invalid_logits())
            scored[i][first] = [row.logprobs[0] for row in seq.prompt_logprobs]
            num_open[i] -= 1
            if num_open[i] == 0:
                windows = scored.pop(i)
                if results[i].error is None:
                    results[i].logprobs = [value for at in sorted(windows) for value in windows[at]]
                done()
    return results


def _read_text(text: Any, llm: LLM, score_first: bool) -> tuple[PerplexityOutput, list[int]]:
    """Return an output that knows the text's sizes, and the ids of which all but the first are scored."""
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
