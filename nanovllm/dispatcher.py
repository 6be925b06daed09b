"""Serves requests over one engine: equal ones are joined, every step serves all, each result finds who waits for it.

Several iterators may run at once: a step's results land in the inbox of the iterator that started them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from nanovllm.completion import CompletionText
from nanovllm.engine.llm_engine import LLMEngine
from nanovllm.engine.processors import TokenRules
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import RequestError
from nanovllm.in_flight import Waiter, Work, output_of, refused, sharing_key
from nanovllm.outputs import Request, RequestOutput, ScoredRequest
from nanovllm.prompts import read_prompt
from nanovllm.sampling_params import SamplingParams, derive_seed
from nanovllm.structured import Grammar, GrammarMaker
from nanovllm.token_rules import RuleMaker
from nanovllm.tokenizer import Tokenizer

# Requests taken in ahead of the running ones, so that the scheduler always finds work; bounds memory for huge inputs.
WINDOW_STEPS = 4

# From so many tokens up that the prefix cache cannot share, the first sample computes the prompt for the others.
FORK_TOKENS = 4

_END = object()  # of an iterator of requests


def _one(handle: Any) -> int:
    return 1


class Dispatcher:
    """Everything in flight on one engine.

    Attributes:
        states: the work and the sample index of each sequence of a request. shared: works that an equal request may
            join, by their key. scoring: the inbox for each sequence that is only scored.
        num_deduplicated: requests that joined another.
    """

    def __init__(
        self, engine: LLMEngine, tokenizer: Tokenizer, rules: RuleMaker,
        default_params: Callable[[], SamplingParams], seed: int,
    ):  # fmt: skip
        self._engine, self._tokenizer, self._default_params, self._seed = engine, tokenizer, default_params, seed
        self._rules = rules
        spec = engine.spec
        self._grammars = GrammarMaker(
            tokenizer, spec.vocab_size, spec.eos_token_ids, num_threads=engine.runner.team.num_threads
        )
        self.states: dict[Sequence, tuple[Work, int]] = {}
        self.shared: dict[Hashable, Work] = {}
        self.scoring: dict[Sequence, deque] = {}
        self.num_deduplicated = 0
        self._num_unnamed = 0
        self._decoded: dict[int, str] = {}

    def serve(self, requests: Iterable[Request | None], window: int | None = None) -> Iterator[RequestOutput]:
        """Serve requests as they come; see `LLM.generate_iter`."""
        size = (lambda waiter: waiter.work.params.n) if window is None else _one
        return self._serve(
            requests, window, self.start, self.drop, lambda waiter: output_of(waiter, self._decode), size
        )

    def run_scoring(self, sequences: Iterable[Sequence | ScoredRequest | None]) -> Iterator[Sequence | ScoredRequest]:
        """Run sequences that end with their prompt; yields each when its targets are scored, in any order.

        What is a result already passes through, so that it need not wait for a sequence.
        """

        def start(item: Sequence | ScoredRequest, inbox: deque) -> Sequence | ScoredRequest:
            if isinstance(item, Sequence):
                self.scoring[item] = inbox
                self._engine.add(item)
            return item

        def drop(seq: Sequence) -> None:
            self.scoring.pop(seq, None)
            self._engine.abort(seq)

        return self._serve(sequences, None, start, drop, lambda seq: seq, _one)

    def _serve(
        self, items: Iterable, window: int | None, start: Callable[[Any, deque], Any], drop: Callable[[Any], None],
        finish: Callable[[Any], Any], size: Callable[[Any], int],
    ) -> Iterator:  # fmt: skip
        """Pull items, at most `window` ahead, and yield what becomes of each; a None says that there is none now.

        `start` begins an item, given the inbox where it is to land, and returns what will land there, or at once a
        result. `drop` ends what has not landed, `finish` turns what has landed into what is yielded, `size` says how
        much of the window it takes.
        """
        if window is None:
            window = WINDOW_STEPS * self._engine.limits.max_num_seqs
        source, inbox, in_flight, exhausted, total = iter(items), deque(), set(), False, 0
        try:
            while True:
                while not exhausted and total < window:
                    item = next(source, _END)
                    if item is None:
                        break
                    if item is _END:
                        exhausted = True
                    elif isinstance(handle := start(item, inbox), (RequestOutput, ScoredRequest)):
                        yield handle
                    else:
                        in_flight.add(handle)
                        total += size(handle)
                while inbox:
                    handle = inbox.popleft()
                    in_flight.discard(handle)
                    total -= size(handle)
                    yield finish(handle)
                if not in_flight and exhausted:
                    return
                self.step()
        finally:
            for handle in in_flight:
                drop(handle)

    def cancel(self, request_id: str) -> int:
        """End the requests in flight that have this id; see `LLM.cancel`."""
        works = dict.fromkeys(work for work, _ in self.states.values())
        found = [waiter for work in works for waiter in work.waiters if waiter.request.request_id == request_id]
        for waiter in found:
            self.drop(waiter)
            waiter.inbox.append(waiter)
        return len(found)

    def start(self, request: Request, inbox: deque, shares: bool = True) -> Waiter | RequestOutput:
        """Queue a request's sequences or join an equal request's, or return why it is refused."""
        ids: list[int] = []
        text = None
        try:
            if isinstance(request.prompt, RequestError):
                raise request.prompt
            params = self._default_params() if request.sampling_params is None else request.sampling_params
            if not isinstance(params, SamplingParams):
                raise RequestError(
                    "invalid_sampling", f"sampling_params: expected SamplingParams, found {type(params).__name__}"
                )
            text, ids = read_prompt(request.prompt, self._tokenizer)
            self._engine.check_prompt(ids)
            self._engine.check_params(params, len(ids))
            rules = self._rules.make(params)
            grammar = self._grammars.make(params)
        except RequestError as error:
            return refused(request, text, ids, error)
        key = sharing_key(ids, params) if shares else None
        work = self.shared.get(key)
        if work is None:
            work = self._queue(key, ids, params, rules, grammar, request.request_id)
        else:
            self.num_deduplicated += 1
        waiter = Waiter(request, text, inbox, work)
        work.waiters.append(waiter)
        return waiter

    def _queue(
        self, key: Hashable, ids: list[int], params: SamplingParams, rules: TokenRules | None,
        grammar: Grammar | None, name: str | None,
    ) -> Work:  # fmt: skip
        work = Work(key, ids, params, num_open=params.n)
        # An id that the model cannot produce ends nothing, and banning it until min_tokens would be an error.
        stop_ids = frozenset(i for i in params.stop_token_ids if i < self._engine.spec.vocab_size)
        if not params.ignore_eos:
            stop_ids |= frozenset(self._engine.spec.eos_token_ids)
        if name is None:  # requests without a key still must not all draw alike
            name, self._num_unnamed = f"unnamed-{self._num_unnamed}", self._num_unnamed + 1
        seed = derive_seed(self._seed, name) if params.seed is None else params.seed
        for i in range(params.n):
            targets = ids[1:] if params.prompt_logprobs is not None and i == 0 else []
            seq = Sequence(name, list(ids), params, i, stop_ids, seed=seed, targets=targets, rules=rules)
            seq.grammar = None if grammar is None else grammar.copy()
            work.seqs.append(seq)
            work.texts.append(CompletionText(self._tokenizer, params, ids))
            self.states[seq] = (work, i)
        if params.n > 1 and self._tail(len(ids)) >= FORK_TOKENS:
            work.later = work.seqs[1:]
            work.seqs[0].num_forks = len(work.later)
            for seq in work.later:
                seq.fork_of = work.seqs[0]
        for seq in work.seqs[: params.n - len(work.later)]:
            self._engine.add(seq)
        if key is not None:
            self.shared[key] = work
        return work

    def _tail(self, num_tokens: int) -> int:
        """Return how many tokens of a prompt the prefix cache cannot share; the last one is always computed."""
        blocks = self._engine.block_manager
        return (num_tokens - 1) % blocks.block_size if blocks.enable_prefix_caching else num_tokens - 1

    def step(self) -> None:
        """Run one step of the engine and hand over what has ended."""
        listened: dict[Work, None] = {}
        for seq in self._engine.step():
            if (inbox := self.scoring.pop(seq, None)) is not None:
                inbox.append(seq)
                continue
            work, i = self.states[seq]
            text = work.texts[i]
            by_token = seq.ends_with_stop_id
            if seq.finish_reason != "error" and not (by_token and not work.params.include_stop_str_in_output):
                stop = text.push(seq.token_ids[-1], seq.num_completion)
                if stop is not None and not by_token:
                    self._engine.abort(seq, "stop")
                    seq.finish_reason, seq.stop_reason = "stop", stop
            if work.has_listeners:
                listened[work] = None
            while work.later:  # forks go to the front of the queue: in the end the first is first
                self._engine.add(work.later.pop())
            if seq.finish_reason is not None:
                text.finish()
                del self.states[seq]
                work.num_open -= 1
                if work.num_open == 0:
                    self._end(work)
        for waiter in [waiter for work in listened for waiter in work.waiters if waiter.request.on_text is not None]:
            waiter.show()

    def _end(self, work: Work) -> None:
        self._engine.drop_kept(work.seqs[0])
        self.shared.pop(work.key, None)
        for waiter in work.waiters:
            waiter.inbox.append(waiter)

    def drop(self, waiter: Waiter) -> None:
        """End a request; what it computes ends too unless an equal request waits for it."""
        work = waiter.work
        if waiter in work.waiters:
            work.waiters.remove(waiter)
        if work.waiters or not work.num_open:
            return
        work.num_open = 0
        if self.shared.get(work.key) is work:
            del self.shared[work.key]
        for seq, text in zip(work.seqs, work.texts, strict=True):
            if self.states.pop(seq, None) is not None:
                self._engine.abort(seq)
                text.finish()
        self._engine.drop_kept(work.seqs[0])

    def _decode(self, token_id: int) -> str:
        if token_id not in self._decoded:
            self._decoded[token_id] = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return self._decoded[token_id]
