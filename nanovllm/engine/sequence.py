"""A sequence: one completion in flight, as token ids and its place in the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from nanovllm.engine.grammar import TokenGrammar
from nanovllm.engine.logprobs import RowLogprobs
from nanovllm.engine.processors import REPETITION, Thinking, TokenRules, ends_in_repetition
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
        targets: the token that follows each prompt position, where log probabilities of them are wanted; else empty.
        num_scored: prompt positions whose target needs no (more) scoring; may start beyond 0.
        asked: further ids that are scored beside the target, by prompt position.
        samples_next: False for a sequence that ends with its prompt: it is there for its scores.
        prompt_logprobs: of the targets scored so far. logprobs: of the completion's tokens, where wanted.
        rules: settings about single tokens, in ids; None without any.
        grammar: what the completion must conform to, with its place in it; None without any.
        thinking: where it stands with the budget of thinking in its rules; None without any.
        nothing_allowed: it ended with an error because its settings left no token to draw.
        num_forks: sequences that are still to fork from it; until they have, its blocks are kept after its end.
        fork_of: a sequence that runs, or has ended and keeps its blocks; this one takes over what both begin with, to
            the token.
        num_overtaken: how many later arrivals were put before it while it waited.
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
    targets: list[int] = field(default_factory=list)
    num_scored: int = 0
    asked: dict[int, list[int]] = field(default_factory=dict)
    samples_next: bool = True
    prompt_logprobs: list[RowLogprobs] = field(default_factory=list)
    logprobs: list[RowLogprobs] = field(default_factory=list)
    num_forks: int = 0
    fork_of: Sequence | None = None
    num_overtaken: int = 0
    rules: TokenRules | None = None
    grammar: TokenGrammar | None = None
    thinking: Thinking | None = field(init=False, default=None)
    nothing_allowed: bool = False
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def __post_init__(self):
        self.num_prompt = len(self.token_ids)
        if self.rules is not None and self.rules.thinking is not None:
            self.thinking = Thinking(self.rules.thinking, self.token_ids)

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

    @property
    def num_sharable(self) -> int:
        """How many tokens the prefix cache may supply: positions that are sampled from or scored are computed."""
        if self.num_scored < len(self.targets):
            return min(self.num_tokens - 1, self.num_scored)
        return self.num_tokens - 1

    @property
    def wants_logprobs(self) -> bool:
        """Whether the completion's log probabilities are to be kept."""
        return self.params.logprobs is not None or bool(self.params.logprob_token_ids)

    @property
    def must_end_thinking(self) -> bool:
        """Whether its next token can only be the one that closes a block of thinking."""
        return self.thinking is not None and self.thinking.must_end

    @property
    def ends_with_stop_id(self) -> bool:
        """Whether its last token is there only because it ended the sequence."""
        return self.finish_reason == "stop" and self.token_ids[-1] in self.stop_ids

    def append(self, token_id: int) -> None:
        """Take the next token and end the sequence if that token, the grammar or the length says so."""
        self.token_ids.append(token_id)
        if self.thinking is not None:
            self.thinking.accept(token_id)
        if self.grammar is not None:
            self.grammar.accept(token_id)
            if self.grammar.error is not None:
                self.finish_reason = "error"
                return
        if token_id in self.stop_ids and self.num_completion >= self.params.min_tokens:
            self.finish_reason = "stop"
            if token_id in self.params.stop_token_ids:
                self.stop_reason = token_id
        elif self.grammar is not None and self.grammar.is_done:
            self.finish_reason = "stop"
        elif self._loops():
            self.finish_reason, self.stop_reason = "stop", REPETITION
        elif self.num_tokens >= self.max_total:
            self.finish_reason = "length"

    def _loops(self) -> bool:
        detection = self.params.repetition_detection
        if detection is None or self.num_completion < self.params.min_tokens:
            return False
        return ends_in_repetition(self.token_ids, self.num_prompt, detection)
