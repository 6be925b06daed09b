"""The engine: token ids in, token ids out. It has never heard of text.

A step is five verbs: schedule, build the batch, run, append, finish. `load_engine` makes one from a model folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanovllm.checkpoint.loader import Checkpoint
from nanovllm.config import EngineConfig
from nanovllm.engine.batch import Batch
from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.limits import Limits, check_whole_vocabulary, decide_limits, resolve_cache_dtype, resolve_dtype
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.weights import load_weights
from nanovllm.errors import RequestError
from nanovllm.kernels.decoder import BLOCK_SIZE
from nanovllm.kernels.sampling_step import NOTHING_ALLOWED
from nanovllm.kernels.team import Team
from nanovllm.machine import available_memory, usable_cpus
from nanovllm.models import load_spec
from nanovllm.models.spec import ModelSpec
from nanovllm.sampling_params import SamplingParams


@dataclass(slots=True)
class EngineStats:
    """Totals since the engine was made."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0


class LLMEngine:
    """Scheduler, block manager and model runner behind `add`, `step` and `abort`."""

    def __init__(
        self,
        spec: ModelSpec,
        runner: ModelRunner,
        limits: Limits,
        enable_prefix_caching: bool = True,
        dtype: str = "float32",
        kv_cache_dtype: str = "float32",
        reorder: bool = True,
    ):
        self.spec = spec
        self.runner = runner
        self.limits = limits
        self.block_manager = BlockManager(limits.num_blocks, BLOCK_SIZE, enable_prefix_caching)
        self.scheduler = Scheduler(self.block_manager, limits.max_num_seqs, limits.max_num_batched_tokens, reorder)
        self.stats = EngineStats()
        self.dtype = dtype
        self.kv_cache_dtype = kv_cache_dtype

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def check_prompt(self, token_ids: list[int]) -> None:
        """Refuse a prompt that can never run.

        Raises:
            RequestError: codes empty_prompt, invalid_token_id, prompt_too_long.
        """
        if not token_ids:
            raise RequestError("empty_prompt", "the prompt has no tokens; give at least one")
        self._check_ids(token_ids)
        if len(token_ids) >= self.limits.max_model_len:
            raise RequestError(
                "prompt_too_long",
                f"the prompt has {len(token_ids)} tokens, and with at least one to generate the limit is "
                f"{self.limits.max_model_len} (max_model_len); shorten it or raise max_model_len",
            )

    def add(self, seq: Sequence) -> None:
        """Queue a sequence whose prompt passed `check_prompt`."""
        limit = self.limits.max_model_len
        if seq.params.max_tokens is not None:
            limit = min(limit, seq.num_prompt + seq.params.max_tokens)
        seq.max_total = limit
        self.stats.prompt_tokens += seq.num_prompt
        self.scheduler.add(seq)

    def step(self) -> list[Sequence]:
        """Run one step; returns the sequences that got a token or ended (error: their logits are not numbers)."""
        step = self.scheduler.schedule()
        if not step:
            return []
        try:
            batch = Batch.build(step, BLOCK_SIZE)
            batch.copies, self.block_manager.copies = self.block_manager.copies, []
            token_ids = self.runner.run(batch)
        except BaseException:  # Ctrl-C included: a notebook goes on with this engine
            self.scheduler.undo_step()
            raise
        self._keep_scores(batch)
        advanced = [part.seq for part in batch.samples]
        for i, (seq, token_id) in enumerate(zip(advanced, token_ids, strict=True)):
            if token_id < 0 or seq.finish_reason is not None:
                seq.finish_reason = "error"
                seq.nothing_allowed = token_id == -NOTHING_ALLOWED
                continue
            seq.append(token_id)
            if batch.logprobs and batch.logprobs[i] is not None:
                seq.logprobs.append(batch.logprobs[i])
            self.stats.completion_tokens += 1
        self.stats.cached_tokens += sum(seq.num_cached for seq in advanced if seq.num_completion == 1)
        ended = dict.fromkeys(part.seq for part in step if part.seq.finish_reason is not None)
        scored = [seq for seq in ended if not seq.samples_next]
        self.stats.cached_tokens += sum(seq.num_cached for seq in scored)
        self.stats.steps += 1
        self.stats.computed_tokens += len(batch.token_ids)
        self.scheduler.finish_step(step)
        return list(dict.fromkeys([*advanced, *ended]))

    def _keep_scores(self, batch: Batch) -> None:
        for (seq, _, position), row in zip(batch.scored, batch.prompt_logprobs, strict=True):
            seq.prompt_logprobs.append(row)
            seq.num_scored = position + 1
            if not row.is_finite:
                seq.finish_reason = "error"
            elif not seq.samples_next and seq.num_scored == len(seq.targets) and seq.finish_reason is None:
                seq.finish_reason = "stop"

    def check_scored(self, token_ids: list[int]) -> None:
        """Refuse tokens that can never be scored together; the last is a target only and takes no position.

        Raises:
            RequestError: codes invalid_token_id, prompt_too_long.
        """
        self._check_ids(token_ids)
        if len(token_ids) > self.limits.max_model_len + 1:
            raise RequestError(
                "prompt_too_long",
                f"prompt and continuation have {len(token_ids)} tokens, the limit is {self.limits.max_model_len + 1} "
                f"(max_model_len and one that is only scored); shorten them or raise max_model_len",
            )

    def _check_ids(self, token_ids: list[int]) -> None:
        if min(token_ids) < 0 or max(token_ids) >= self.spec.vocab_size:
            bad = next(i for i in token_ids if not 0 <= i < self.spec.vocab_size)
            raise RequestError(
                "invalid_token_id", f"token id {bad} is outside the model's vocabulary of {self.spec.vocab_size}"
            )

    def check_params(self, params: SamplingParams, num_prompt: int) -> None:
        """Refuse settings that name ids which the model does not have, or ask for too many log probabilities.

        Raises:
            RequestError: codes invalid_token_id, invalid_sampling.
        """
        check_whole_vocabulary(params, num_prompt, self.spec.vocab_size, self.limits.max_model_len)
        for token_id in params.logprob_token_ids:
            if token_id >= self.spec.vocab_size:
                raise RequestError(
                    "invalid_token_id",
                    f"logprob_token_ids: {token_id} is outside the model's vocabulary of {self.spec.vocab_size}",
                )

    def next_token_logits(self, token_ids: list[int]) -> np.ndarray:
        """Return the logits [vocab_size] after a prompt, float32; nothing else may be in flight."""
        self.check_prompt(token_ids)
        if self.has_unfinished:
            raise RuntimeError("next_token_logits needs an idle engine")
        seq = Sequence("", list(token_ids), SamplingParams(temperature=0.0, max_tokens=1))
        self.add(seq)
        try:
            while True:
                step = self.scheduler.schedule()
                logits = self.runner.next_logits(Batch.build(step, BLOCK_SIZE))
                self.scheduler.finish_step(step)
                if len(logits):
                    return logits[0]
        finally:
            self.abort(seq)

    def drop_kept(self, seq: Sequence) -> None:
        """Free the blocks that an ended sequence keeps, if it still does."""
        self.scheduler.drop_kept(seq)

    def abort(self, seq: Sequence, reason: str = "abort") -> None:
        """End a sequence between two steps; its blocks are free at once."""
        if seq.finish_reason is None:
            self.scheduler.abort(seq, reason)


def load_engine(
    model_dir: Path, config: EngineConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[LLMEngine, str]:
    """Load a model folder.

    Returns:
        The engine, and the identity hash of the weights.

    Raises:
        ConfigError, CheckpointError, MemoryBudgetError: the model or the settings cannot be used.
    """
    wanted = None if config.max_model_len == "auto" else config.max_model_len
    spec = load_spec(model_dir, wanted)
    for text in spec.warnings:
        warnings.warn(text, stacklevel=2)
    dtype = resolve_dtype(config)
    cache_dtype = resolve_cache_dtype(config, dtype)
    team = Team(usable_cpus() if config.threads == "auto" else config.threads)
    with Checkpoint(model_dir) as checkpoint:
        identity = checkpoint.identity()
        weights = load_weights(checkpoint, spec, team, "blas" if config.gemm == "blas" else dtype, progress)
    if weights.unexpected:
        shown = ", ".join(weights.unexpected[:5]) + (", …" if len(weights.unexpected) > 5 else "")
        warnings.warn(
            f"{model_dir}: {len(weights.unexpected)} tensors that a {spec.model_type} model does not use were ignored: "
            f"{shown}",
            stacklevel=2,
        )
    limits = decide_limits(config, spec, cache_dtype, available_memory())
    runner = ModelRunner(spec, weights, limits, team, cache_dtype)
    engine = LLMEngine(spec, runner, limits, config.enable_prefix_caching, dtype, cache_dtype, config.reorder)
    return engine, identity
