"""A sequence: one completion in flight, as token ids and its place in the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from nanovllm.sampling_params import SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """One completion in flight.

    Attributes:
        request_id: the caller's key. sample_index: which of the request's samples this is.
        token_ids: prompt and completion so far.
        stop_ids: ids that end it (EOS and stop_token_ids), empty with ignore_eos and no stop ids.
        max_total: prompt plus completion may not exceed this.
        seed: of its random stream.
        num_computed: tokens whose keys and values are in the cache.
        num_cached: prompt tokens that the prefix cache supplied at the first admission.
        block_table: ids of its KV blocks. block_hashes: chained hashes of its full blocks, filled as needed.
        num_registered: full blocks that have been offered to the prefix cache.
    """

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    sample_index: int = 0
    stop_ids: frozenset[int] = frozenset()
    max_total: int = 0
    seed: int = 0
    num_prompt: int = field(init=False)
    num_computed: int = 0
    num_cached: int | None = None
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    num_preemptions: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def __post_init__(self):
        self.num_prompt = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and completion tokens."""
        return len(self.token_ids)

    @property
    def num_completion(self) -> int:
        """Completion tokens so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def completion_ids(self) -> list[int]:
        """Completion token ids so far."""
        return self.token_ids[self.num_prompt :]

    def append(self, token_id: int) -> None:
        """Take the next token and end the sequence if that token or the length says so."""
        self.token_ids.append(token_id)
        if token_id in self.stop_ids and self.num_completion >= self.params.min_tokens:
            self.finish_reason = "stop"
            if token_id in self.params.stop_token_ids:
                self.stop_reason = token_id
        elif self.num_tokens >= self.max_total:
            self.finish_reason = "length"
