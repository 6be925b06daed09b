"""LLM: the one place where tokenizer and engine meet.

Prompts become token ids on the way in; tokens become text, stop strings and `RequestOutput`s on the way out. Several
iterators may run on one LLM at once: every step serves them all, and each gets its own results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanovllm.checkpoint.hub import resolve_model
from nanovllm.completion import CompletionText
from nanovllm.config import EngineConfig
from nanovllm.engine.llm_engine import load_engine
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import ConfigError, RequestError
from nanovllm.outputs import CompletionOutput, Request, RequestOutput
from nanovllm.prompts import as_conversations, as_prompt_list, per_prompt, read_prompt
from nanovllm.sampling_params import SamplingParams, derive_seed
from nanovllm.tokenizer import Tokenizer

# Requests taken in ahead of the running ones, so that the scheduler always finds work; bounds memory for huge inputs.
WINDOW_STEPS = 4

_END = object()  # of an iterator of requests


@dataclass(slots=True, eq=False)
class _State:
    """A request in flight."""

    request: Request
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    inbox: deque  # of the iterator that waits for it
    seqs: list[Sequence] = field(default_factory=list)
    texts: list[CompletionText] = field(default_factory=list)
    num_open: int = 0


class LLM:
    """A model that answers prompts.

    Args:
        model: a Hugging Face directory, or a hub id such as "org/name" or "org/name@revision".
        tokenizer: another directory for the tokenizer; default is the model's.
        **settings: the fields of `EngineConfig`.

    Raises:
        UsageError: the model or a setting cannot be used; the message says why and what to do.
    """

    def __init__(self, model, *, tokenizer=None, load_progress=None, **settings):
        self.config = EngineConfig.from_dict(settings)
        self.model_dir = resolve_model(model)
        self.tokenizer = Tokenizer.from_pretrained(
            self.model_dir if tokenizer is None else resolve_model(tokenizer), self.config.chat_template
        )
        self._defaults: SamplingParams | None = None
        self._num_unnamed = 0
        self.engine, self.model_identity = load_engine(self.model_dir, self.config, load_progress)
        self._states: dict[Sequence, tuple[_State, int]] = {}
        self.default_sampling_params()  # so that an impossible default is said now and not at the first prompt

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self.engine.limits.max_model_len

    def get_tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """Return the built-in defaults with those of generation_config.json on top (unless switched off)."""
        if self._defaults is None:
            self._defaults = SamplingParams()
            if self.config.generation_config == "auto":
                self._defaults = self._model_defaults()
        return self._defaults.clone()

    def _model_defaults(self) -> SamplingParams:
        try:
            return SamplingParams.from_dict(self.engine.spec.generation_defaults)
        except ConfigError as error:
            raise ConfigError(
                f"{self.model_dir / 'generation_config.json'}: {error}; mend the file, or ignore it with "
                f'generation_config: "none"'
            ) from None

    get_default_sampling_params = default_sampling_params

    def generate(self, prompts, sampling_params=None, use_tqdm: bool = True) -> list[RequestOutput]:
        """Complete prompts; results come in the order of the prompts.

        Args:
            prompts: one prompt or a list: str, {"prompt": str}, {"prompt_token_ids": [int]} or a list of ints.
            sampling_params: one `SamplingParams` for all, a list with one each, or None for the model's defaults.
            use_tqdm: show a progress bar on stderr.

        Returns:
            One `RequestOutput` for each prompt. A prompt that cannot be served has `error` set and finish_reason
            "error"; the others are not affected.
        """
        prompts = as_prompt_list(prompts)
        params = per_prompt(sampling_params, len(prompts))
        requests = (Request(p, s, str(i), data=i) for i, (p, s) in enumerate(zip(prompts, params, strict=True)))
        return self._collect(requests, len(prompts), use_tqdm)

    def chat(
        self, messages, sampling_params=None, use_tqdm: bool = True, *, chat_template=None, tools=None,
        add_generation_prompt: bool = True, continue_final_message: bool = False, chat_template_kwargs=None,
    ) -> list[RequestOutput]:  # fmt: skip
        """Answer one conversation or a list of them, rendered by the model's chat template.

        Args:
            messages: a list of {"role": str, "content": str}, or a list of such lists.
            sampling_params: as in `generate`.
            use_tqdm: show a progress bar on stderr.
            chat_template: name or text of another template.
            tools: JSON schemas for the template.
            add_generation_prompt: end with the header of the assistant's turn.
            continue_final_message: leave the last message open, to be continued.
            chat_template_kwargs: more variables for the template.
        """
        conversations = as_conversations(messages)
        params = per_prompt(sampling_params, len(conversations))
        options = dict(
            chat_template_kwargs or {}, tools=tools, chat_template=chat_template,
            add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message,
        )  # fmt: skip

        def render() -> Iterator[Request]:
            for i, (conversation, one) in enumerate(zip(conversations, params, strict=True)):
                try:
                    text, ids = self.tokenizer.encode_chat(conversation, **options)
                    prompt = {"prompt": text, "prompt_token_ids": ids}
                except RequestError as error:
                    prompt = error
                yield Request(prompt, one, str(i), data=i)

        return self._collect(render(), len(conversations), use_tqdm)

    def _collect(self, requests: Iterable[Request], total: int, use_tqdm: bool) -> list[RequestOutput]:
        results: list[Any] = [None] * total
        bar = _progress_bar(total) if use_tqdm else None
        try:
            for output in self.generate_iter(requests):
                results[output.data] = output
                output.data = None
                if bar is not None:
                    bar.update()
        finally:
            if bar is not None:
                bar.close()
        return results

    def generate_iter(self, requests: Iterable[Request], window: int | None = None) -> Iterator[RequestOutput]:
        """Serve requests as they come and yield each result as it finishes, in any order.

        Args:
            requests: pulled lazily, at most `window` ahead of the results; a prompt may also be a `RequestError`,
                which comes back as a refused request.
            window: most requests in flight; default is a few times max_num_seqs.

        Yields:
            RequestOutput; `request_id` and `data` are those of the request.
        """
        if window is None:
            window = WINDOW_STEPS * self.engine.limits.max_num_seqs
        if window < 1:
            raise ConfigError(f"window: expected at least 1 request in flight, found {window}")
        source, inbox, in_flight, exhausted = iter(requests), deque(), set(), False
        try:
            while True:
                while not exhausted and len(in_flight) < window:
                    request = next(source, _END)
                    if request is _END:
                        exhausted = True
                    elif isinstance(state := self._start(request, inbox), RequestOutput):
                        yield state
                    else:
                        in_flight.add(state)
                while inbox:
                    state = inbox.popleft()
                    in_flight.discard(state)
                    yield self._output(state)
                if not in_flight and exhausted:
                    return
                self._step()
        finally:
            for state in in_flight:
                self._drop(state)

    def generate_stream(self, prompt, sampling_params: SamplingParams | None = None) -> Iterator[str]:
        """Yield the text of one completion in pieces, as soon as each is certain.

        Raises:
            RequestError: the prompt cannot be served.
        """
        state = self._start(Request(prompt, sampling_params, "0"), deque())
        if isinstance(state, RequestOutput):
            raise state.error
        try:
            while state.num_open:
                self._step()
                if piece := state.texts[0].take_new():
                    yield piece
            # Between two pieces another iterator's steps may have ended this completion.
            if piece := state.texts[0].take_new():
                yield piece
        finally:
            self._drop(state)
        if state.seqs[0].finish_reason == "error":
            raise _not_numbers()

    def top_logits(self, prompt, n: int) -> list[tuple[int, float, str]]:
        """Return the n best next tokens after a prompt: (id, logit, token), best first, lower ids first in a tie."""
        _, ids = read_prompt(prompt, self.tokenizer)
        logits = self.engine.next_token_logits(ids)
        best = np.argsort(-logits, kind="stable")[:n].tolist()
        return [(i, float(logits[i]), self.tokenizer.id_to_token(i) or "") for i in best]

    def stats(self) -> dict[str, int]:
        """Return counts for progress displays: running, waiting, prompt_tokens, cached_tokens, completion_tokens."""
        scheduler, totals = self.engine.scheduler, self.engine.stats
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "prompt_tokens": totals.prompt_tokens,
            "cached_tokens": totals.cached_tokens,
            "completion_tokens": totals.completion_tokens,
            "steps": totals.steps,
            "preemptions": scheduler.num_preemptions,
        }

    def facts(self) -> dict[str, Any]:
        """Return what a reader needs to know to repeat a run: model, settings in force, kernels, machine, versions."""
        from nanovllm.info import engine_facts

        return engine_facts(self)

    def _start(self, request: Request, inbox: deque) -> _State | RequestOutput:
        """Queue a request's sequences, or return why it is refused."""
        ids: list[int] = []
        text = None
        try:
            if isinstance(request.prompt, RequestError):
                raise request.prompt
            params = request.sampling_params or self.default_sampling_params()
            text, ids = read_prompt(request.prompt, self.tokenizer)
            self.engine.check_prompt(ids)
        except RequestError as error:
            refused = CompletionOutput(0, "", [], finish_reason="error")
            return RequestOutput(request.request_id, text, ids, [refused], error=error, data=request.data)
        state = _State(request, text, ids, params, inbox, num_open=params.n)
        # An id that the model cannot produce ends nothing, and banning it until min_tokens would be an error.
        stop_ids = frozenset(i for i in params.stop_token_ids if i < self.engine.spec.vocab_size)
        if not params.ignore_eos:
            stop_ids |= frozenset(self.engine.spec.eos_token_ids)
        key = request.request_id
        if key is None:  # requests without a key still must not all draw alike
            key, self._num_unnamed = f"unnamed-{self._num_unnamed}", self._num_unnamed + 1
        seed = derive_seed(self.config.seed, key) if params.seed is None else params.seed
        for i in range(params.n):
            seq = Sequence(key, list(ids), params, i, stop_ids, seed=seed)
            state.seqs.append(seq)
            state.texts.append(CompletionText(self.tokenizer, params, ids))
            self._states[seq] = (state, i)
            self.engine.add(seq)
        return state

    def _step(self) -> None:
        for seq in self.engine.step():
            state, i = self._states[seq]
            text = state.texts[i]
            by_token = seq.finish_reason == "stop"
            if seq.finish_reason != "error" and not (by_token and not state.params.include_stop_str_in_output):
                stop = text.push(seq.token_ids[-1], seq.num_completion)
                if stop is not None and not by_token:
                    self.engine.abort(seq, "stop")
                    seq.finish_reason, seq.stop_reason = "stop", stop
            if seq.finish_reason is not None:
                text.finish()
                del self._states[seq]
                state.num_open -= 1
                if state.num_open == 0:
                    state.inbox.append(state)

    def _drop(self, state: _State) -> None:
        for seq in state.seqs:
            if self._states.pop(seq, None) is not None:
                self.engine.abort(seq)

    def _output(self, state: _State) -> RequestOutput:
        outputs = [
            CompletionOutput(
                i, text.text, seq.completion_ids, seq.finish_reason, seq.stop_reason,
                seed=None if state.params.is_greedy else seq.seed,
            )
            for i, (seq, text) in enumerate(zip(state.seqs, state.texts, strict=True))
        ]  # fmt: skip
        failed = any(seq.finish_reason == "error" for seq in state.seqs)
        return RequestOutput(
            state.request.request_id, state.prompt, state.prompt_token_ids, outputs,
            num_cached_tokens=state.seqs[0].num_cached or 0, error=_not_numbers() if failed else None,
            data=state.request.data,
        )  # fmt: skip


def _not_numbers() -> RequestError:
    return RequestError(
        "invalid_logits", "the model's logits for the next token were not finite numbers; its weights may be damaged"
    )


def _progress_bar(total: int):
    from tqdm import tqdm

    return tqdm(total=total, desc="Processed prompts", unit="prompt", dynamic_ncols=True)
