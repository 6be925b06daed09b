"""What a caller gets back, with vLLM's names so that an import can be swapped.

Leaf module: knows nothing of engine or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nanovllm.errors import RequestError


@dataclass(slots=True)
class Request:
    """One prompt on its way into `LLM.generate_iter`.

    Attributes:
        prompt: str, {"prompt": str}, {"prompt_token_ids": [int]} or a list of ints.
        sampling_params: a `SamplingParams`, or None for the model's defaults.
        request_id: the caller's key; a request without a seed derives its seed from the engine's seed and this key.
        data: anything of the caller's; comes back as `RequestOutput.data`.
        on_text: called with a sample's index and the next piece of its text, as soon as that is certain. The pieces of
            a sample that ends by itself are its text. What it raises ends the iterator that runs at the time.
    """

    prompt: Any
    sampling_params: Any = None
    request_id: str | None = None
    data: Any = None
    on_text: Callable[[int, str], None] | None = None


@dataclass(slots=True)
class Logprob:
    """A token's log probability at one position, from the model's raw distribution.

    Attributes:
        rank: 1 + the number of ids that are more likely there.
        decoded_token: the token by itself as text; None where the request wants no text.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: which of the `n` samples this is.
        text: decoded completion, without the stop string unless asked for.
        token_ids: generated ids, up to and including the one that ended the sequence.
        finish_reason: "stop", "length", "error", "abort", or None while unfinished.
        stop_reason: the stop string or stop token id that ended it; None for EOS and length.
        cumulative_logprob: sum over token_ids; None unless log probabilities were asked for.
        logprobs: one {token id: Logprob} for each of token_ids, the token itself first; None unless asked for.
        seed: the seed that this completion was drawn with; None when greedy.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    seed: int | None = None

    def finished(self) -> bool:
        """Whether the completion has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its completions.

    Attributes:
        error: why the request was refused or has failed; then a completion, of a refused request the only one, has
            finish_reason "error".
        prompt_logprobs: None for the first token, then {token id: Logprob} for each; None unless asked for.
        num_cached_tokens: prompt tokens whose keys and values came from the prefix cache.
        data: what the caller put into `Request.data`.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    error: RequestError | None = None
    data: Any = None


@dataclass(slots=True)
class ScoreOutput:
    """How likely a continuation is after a prompt.

    Attributes:
        prompt_token_ids: what the continuation was conditioned on.
        token_ids: the continuation's tokens. logprobs: one for each, from the model's raw distribution.
        is_greedy: whether greedy decoding would have produced it.
        num_truncated: tokens that were cut from the prompt's beginning to make the pair fit.
        error: why this pair was refused; then the other fields say nothing.
    """

    prompt_token_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_greedy: bool = False
    num_truncated: int = 0
    error: RequestError | None = None

    @property
    def logprob(self) -> float:
        """Log probability of the whole continuation."""
        return math.fsum(self.logprobs)


@dataclass(slots=True)
class PerplexityOutput:
    """How well a model predicts a text.

    Attributes:
        logprobs: of each scored token, in order.
        num_bytes, num_words: of the text, words as lm-eval counts them; None for a text given as token ids.
        error: why this text was refused; then the other fields say nothing.
    """

    logprobs: list[float] = field(default_factory=list)
    num_bytes: int | None = None
    num_words: int | None = None
    error: RequestError | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that were scored."""
        return len(self.logprobs)

    @property
    def logprob(self) -> float:
        """Log probability of the whole text."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """Perplexity for each token."""
        return self._per(self.num_tokens)

    @property
    def byte_perplexity(self) -> float | None:
        """Perplexity for each byte, comparable between tokenizers."""
        return None if self.num_bytes is None else self._per(self.num_bytes)

    @property
    def word_perplexity(self) -> float | None:
        """Perplexity for each word."""
        return None if self.num_words is None else self._per(self.num_words)

    def _per(self, count: int) -> float:
        try:
            return math.exp(-self.logprob / count) if self.logprobs else math.nan
        except OverflowError:
            return math.inf


@dataclass(slots=True)
class ScoreRequest:
    """A prompt and its continuations, or a text, on their way into `LLM.score_iter`.

    Attributes:
        prompt: str, {"prompt": str}, {"prompt_token_ids": [int]} or a list of ints.
        continuations: texts or lists of token ids, each scored after the prompt; None: the prompt is a text that is
            scored by itself.
        data: anything of the caller's; comes back with the request.
        score_first: of a text, score the first token too, after BOS (EOS without BOS); else it is only context.
        truncate: cut tokens from the prompt's beginning where a pair is too long, instead of refusing the pair.
    """

    prompt: Any
    continuations: list[Any] | None = None
    data: Any = None
    score_first: bool = True
    truncate: bool = False


@dataclass(slots=True)
class ScoredRequest:
    """What became of a `ScoreRequest`.

    Attributes:
        request: the one that was given.
        outputs: one for each continuation, in their order.
        perplexity: of the text; None where continuations were scored.
    """

    request: ScoreRequest
    outputs: list[ScoreOutput] = field(default_factory=list)
    perplexity: PerplexityOutput | None = None
