"""Beam search: the completions with the largest scores that a beam of a given width finds.

Owns which beams live on. Each step of a beam is a request for one token's best continuations, so beams of all prompts
share batches, and what they have in common comes from the prefix cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanovllm.errors import ConfigError, RequestError
from nanovllm.in_flight import refused
from nanovllm.outputs import CompletionOutput, Request, RequestOutput
from nanovllm.progress import progress
from nanovllm.prompts import as_prompt_list, read_prompt
from nanovllm.sampling_fields import shown
from nanovllm.sampling_params import MAX_LOGPROBS, SamplingParams

if TYPE_CHECKING:
    from nanovllm.llm import LLM

MAX_LENGTH_PENALTY = 32
"""The length of any context to this power is a float."""


@dataclass(frozen=True, slots=True)
class BeamSettings:
    """What a caller decides; checked here.

    Attributes:
        stop_ids: ids that end a beam.
    """

    width: int
    max_tokens: int
    length_penalty: float
    early_stopping: bool
    stop_ids: frozenset[int]

    def __post_init__(self):
        for name in ("width", "max_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a whole number from 1 up, found {value!r}")
        if self.width > MAX_LOGPROBS // 2:
            raise ConfigError(f"width: expected at most {MAX_LOGPROBS // 2}, found {self.width}")
        penalty, most = self.length_penalty, MAX_LENGTH_PENALTY
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not -most <= penalty <= most:
            raise ConfigError(f"length_penalty: expected a number from -{most} to {most}, found {shown(penalty)}")
        if not isinstance(self.early_stopping, bool):
            raise ConfigError(f"early_stopping: expected true or false, found {self.early_stopping!r}")

    def score(self, logprob: float, num_tokens: int) -> float:
        """Return what beams are compared by at the end."""
        return logprob / num_tokens**self.length_penalty


@dataclass(slots=True)
class _Beam:
    token_ids: list[int]
    logprob: float
    finish_reason: str = "length"


@dataclass(slots=True, eq=False)
class _Search:
    """One prompt's beams. `best` holds, for each beam of this step, its best next ids once they have come."""

    index: int
    prompt: str | None
    ids: list[int]
    settings: BeamSettings
    max_tokens: int
    beams: list[_Beam] = field(default_factory=lambda: [_Beam([], 0.0)])
    done: list[_Beam] = field(default_factory=list)
    best: dict[int, dict[int, float]] = field(default_factory=dict)

    def requests(self) -> list[Request]:
        """Return this step's requests: the best next ids of each beam."""
        # Half of the best may end; the others still fill the beam.
        params = SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=2 * self.settings.width, ignore_eos=True, detokenize=False
        )
        return [Request(self.ids + beam.token_ids, params, data=(self, i)) for i, beam in enumerate(self.beams)]

    def advance(self) -> bool:
        """Choose the next beams; returns whether the search goes on."""
        width, stop_ids = self.settings.width, self.settings.stop_ids
        # Of equal ones the earlier beam and there the lower rank comes first: sorting is stable.
        candidates = [
            _Beam([*beam.token_ids, token_id], beam.logprob + logprob)
            for i, beam in enumerate(self.beams)
            for token_id, logprob in self.best[i].items()
        ]
        candidates = sorted(candidates, key=lambda beam: -beam.logprob)[: 2 * width]
        self.best, self.beams = {}, []
        for rank, beam in enumerate(candidates):
            if beam.token_ids[-1] in stop_ids:
                if rank < width:  # below that it would not have been a beam
                    beam.finish_reason = "stop"
                    self.done.append(beam)
            elif len(self.beams) < width:
                self.beams.append(beam)
        self._keep_best()
        if self._is_decided():
            return False
        if len(self.beams[0].token_ids) < self.max_tokens:
            return True
        self.done += self.beams
        self._keep_best()
        return False

    def _keep_best(self) -> None:
        self.done = sorted(self.done, key=lambda beam: -self._score(beam))[: self.settings.width]

    def _score(self, beam: _Beam) -> float:
        return self.settings.score(beam.logprob, len(beam.token_ids))

    def _is_decided(self) -> bool:
        if not self.beams:
            return True
        if len(self.done) < self.settings.width:
            return False
        return self.settings.early_stopping or self._score(self.beams[0]) <= self._score(self.done[-1])


def beam_search(llm: LLM, prompts: Any, settings: BeamSettings, use_tqdm: bool) -> list[RequestOutput]:
    """Search for every prompt; see `LLM.beam_search`."""
    prompts = as_prompt_list(prompts)
    results: list[Any] = [None] * len(prompts)
    fresh, todo, num_open = iter(enumerate(prompts)), deque(), 0

    def source() -> Iterator[Request | None]:
        """Give the next steps of searches under way before the first of new ones; ends when there is nothing left."""
        nonlocal num_open
        while True:
            if todo:
                yield todo.popleft()
                continue
            index, prompt = next(fresh, (None, None))
            if index is None:
                if not num_open:
                    return
                yield None
                continue
            search = _begin(llm, index, prompt, settings)
            if isinstance(search, RequestOutput):
                results[index] = search
                done()
            else:
                num_open += 1
                todo.extend(search.requests())

    with progress(len(prompts), use_tqdm) as done:
        for output in llm.generate_iter(source()):
            search, i = output.data
            if results[search.index] is not None:
                continue  # another beam of it failed
            if output.error is not None:
                request = Request(prompts[search.index], request_id=str(search.index))
                results[search.index] = refused(request, search.prompt, search.ids, output.error)
            else:
                search.best[i] = {token_id: one.logprob for token_id, one in output.outputs[0].logprobs[0].items()}
                if len(search.best) < len(search.beams):
                    continue
                if search.advance():
                    todo.extend(search.requests())
                    continue
                results[search.index] = _output(llm, search)
            num_open -= 1
            done()
    return results


def _begin(llm: LLM, index: int, prompt: Any, settings: BeamSettings) -> _Search | RequestOutput:
    text, ids = None, []
    try:
        text, ids = read_prompt(prompt, llm.tokenizer)
        llm.engine.check_prompt(ids)
    except RequestError as error:
        return refused(Request(prompt, request_id=str(index)), text, ids, error)
    return _Search(index, text, ids, settings, min(settings.max_tokens, llm.max_model_len - len(ids)))


def _output(llm: LLM, search: _Search) -> RequestOutput:
    completions = []
    for i, beam in enumerate(search.done):
        shown = beam.token_ids[:-1] if beam.finish_reason == "stop" else beam.token_ids
        detokenizer = llm.tokenizer.detokenizer(prompt_ids=search.ids)
        text = "".join([detokenizer.push(token_id) for token_id in shown]) + detokenizer.flush()
        completions.append(
            CompletionOutput(i, text, beam.token_ids, beam.finish_reason, cumulative_logprob=beam.logprob)
        )
    return RequestOutput(str(search.index), search.prompt, search.ids, completions)
