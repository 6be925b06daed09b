"""Requests that are being computed, and what each becomes in the end.

Equal requests that are in flight together are one `Work` with several `Waiter`s. Knows sequences and texts; has never
heard of the scheduler or of steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from nanovllm.completion import CompletionText
from nanovllm.engine.logprobs import RowLogprobs
from nanovllm.engine.sequence import Sequence
from nanovllm.errors import RequestError
from nanovllm.outputs import CompletionOutput, Logprob, Request, RequestOutput
from nanovllm.sampling_params import SamplingParams

Decode = Callable[[int], str]


@dataclass(slots=True, eq=False)
class Work:
    """The sequences of one request, or of several equal ones.

    Attributes:
        key: what an equal request has too; None: it is shared with nobody.
        num_open: sequences that have not ended. waiters: who gets the result.
        later: sequences that fork from the first one, and run once that has computed their prompt.
    """

    key: Hashable
    prompt_token_ids: list[int]
    params: SamplingParams
    seqs: list[Sequence] = field(default_factory=list)
    texts: list[CompletionText] = field(default_factory=list)
    num_open: int = 0
    waiters: list[Waiter] = field(default_factory=list)
    later: list[Sequence] = field(default_factory=list)

    @property
    def has_listeners(self) -> bool:
        """Whether a request wants its text piece by piece."""
        return any(waiter.request.on_text is not None for waiter in self.waiters)


@dataclass(slots=True, eq=False)
class Waiter:
    """One request's interest in a work; it lands in `inbox` when the work is done or the request cancelled.

    Attributes:
        num_shown: for each sample, the characters that `on_text` has got.
    """

    request: Request
    prompt: str | None
    inbox: deque
    work: Work
    num_shown: list[int] = field(default_factory=list)

    def show(self) -> None:
        """Hand over the text that has become certain."""
        self.num_shown = self.num_shown or [0] * len(self.work.texts)
        for i, text in enumerate(self.work.texts):
            if piece := text.certain_after(self.num_shown[i]):
                self.num_shown[i] += len(piece)
                self.request.on_text(i, piece)


def sharing_key(token_ids: list[int], params: SamplingParams) -> Hashable:
    """Return what two requests have in common whose results must be equal, None where chance decides."""
    if params.is_greedy or params.seed is not None:
        return tuple(token_ids), repr(params)
    return None


def refused(request: Request, prompt: str | None, token_ids: list[int], error: RequestError) -> RequestOutput:
    """Return the result of a request that cannot run."""
    completion = CompletionOutput(0, "", [], finish_reason="error")
    return RequestOutput(request.request_id, prompt, token_ids, [completion], error=error, data=request.data)


def invalid_logits() -> RequestError:
    """Return the error of a request whose logits are not numbers."""
    return RequestError(
        "invalid_logits", "the model's logits for the next token were not finite numbers; its weights may be damaged"
    )


def failure_of(seqs: list[Sequence]) -> RequestError:
    """Return the error of a request of which a sequence has ended with one."""
    for seq in seqs:
        if seq.grammar is not None and seq.grammar.error is not None:
            return seq.grammar.error
    if any(seq.nothing_allowed for seq in seqs):
        return RequestError(
            "no_token_allowed",
            "the request's settings leave no token that could come next; loosen structured_outputs, allowed_token_ids, "
            "bad_words, no_repeat_ngram_size or min_tokens",
        )
    return invalid_logits()


def output_of(waiter: Waiter, decode: Decode) -> RequestOutput:
    """Return a request's result; a sequence that has not ended counts as aborted."""
    work, request = waiter.work, waiter.request
    outputs = [_completion(work, i, decode) for i in range(len(work.seqs))]
    failed = any(seq.finish_reason == "error" for seq in work.seqs)
    prompt_logprobs = None
    if work.params.prompt_logprobs is not None:
        prompt_logprobs = [None, *_dicts(work.seqs[0].prompt_logprobs, work.params, decode)]
    return RequestOutput(
        request.request_id, waiter.prompt, list(work.prompt_token_ids), outputs, prompt_logprobs=prompt_logprobs,
        num_cached_tokens=work.seqs[0].num_cached or 0, error=failure_of(work.seqs) if failed else None,
        data=request.data,
    )  # fmt: skip


def _completion(work: Work, index: int, decode: Decode) -> CompletionOutput:
    seq, logprobs, total = work.seqs[index], None, None
    if seq.wants_logprobs:
        logprobs = _dicts(seq.logprobs, work.params, decode)
        total = sum(row.logprobs[0] for row in seq.logprobs)
    return CompletionOutput(
        index, work.texts[index].text, seq.completion_ids, seq.finish_reason or "abort", seq.stop_reason,
        cumulative_logprob=total, logprobs=logprobs, seed=None if work.params.is_greedy else seq.seed,
    )  # fmt: skip


def _dicts(rows: list[RowLogprobs], params: SamplingParams, decode: Decode) -> list[dict[int, Logprob]]:
    return [
        {
            token_id: Logprob(logprob, rank, decode(token_id) if params.detokenize else None)
            for token_id, logprob, rank in zip(row.token_ids, row.logprobs, row.ranks, strict=True)
        }
        for row in rows
    ]
