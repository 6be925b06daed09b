"""What a caller gets back, with vLLM's names so that an import can be swapped.

Leaf module: knows nothing of engine or files.
"""

from __future__ import annotations

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
    """

    prompt: Any
    sampling_params: Any = None
    request_id: str | None = None
    data: Any = None


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: which of the `n` samples this is.
        text: decoded completion, without the stop string unless asked for.
        token_ids: generated ids, up to and including the one that ended the sequence.
        finish_reason: "stop", "length", "error", "abort", or None while unfinished.
        stop_reason: the stop string or stop token id that ended it; None for EOS and length.
        seed: the seed that this completion was drawn with; None when greedy.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None
    logprobs: list | None = None
    seed: int | None = None

    def finished(self) -> bool:
        """Whether the completion has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its completions.

    Attributes:
        error: why the request was refused; then every completion has finish_reason "error".
        num_cached_tokens: prompt tokens whose keys and values came from the prefix cache.
        data: what the caller put into `Request.data`.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    prompt_logprobs: list | None = None
    num_cached_tokens: int = 0
    error: RequestError | None = None
    data: Any = None
