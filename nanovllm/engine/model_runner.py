"""Runs one step: a batch of token ids in, sampled token ids out."""

from __future__ import annotations

import numpy as np

from nanovllm.engine.batch import Batch
from nanovllm.engine.grammar import StepMasks, allows_only
from nanovllm.engine.limits import Limits
from nanovllm.engine.logprobs import score_rows
from nanovllm.engine.processors import step_biases
from nanovllm.engine.sequence import Sequence
from nanovllm.engine.weights import Weights
from nanovllm.kernels.blas import single_threaded
from nanovllm.kernels.decoder import Decoder
from nanovllm.kernels.sampler import Sampler
from nanovllm.kernels.sampling_step import DRY_UNLIMITED, ROW_PARAMS_DTYPE, pack_row
from nanovllm.kernels.team import Team
from nanovllm.kernels.top_rows import MOST, TopRows
from nanovllm.models.spec import ModelSpec
from nanovllm.sampling_params import SamplingParams

# Rows whose full logits exist at once when only a few numbers of each are wanted (prompt logprobs).
LOGPROB_ROWS = 32
_GREEDY = SamplingParams(temperature=0.0)


class ModelRunner:
    """Owns the decoder and the scratch of sampling."""

    def __init__(self, spec: ModelSpec, weights: Weights, limits: Limits, team: Team, cache_dtype: str):
        self.spec = spec
        self.team = team
        self.decoder = Decoder(
            team, spec, spec.rope.inv_freq, spec.rope.attention_scaling, weights.embedding, weights.final_norm,
            weights.lm_head, weights.layers, limits.num_blocks, limits.max_num_batched_tokens, cache_dtype,
            weights.hadamard_block,
        )  # fmt: skip
        self.sampler = Sampler(team, spec.vocab_size)
        self._logits = np.empty((0, spec.vocab_size), np.float32)
        self._masks = StepMasks(spec.vocab_size)

    def run(self, batch: Batch) -> list[int]:
        """Compute the step and draw the next token of every part that reached its newest token.

        Log probabilities that are wanted are left in the batch.

        Returns:
            One token id for each of `batch.samples`; where none could be drawn, minus the status (a key of
            `STATUS_MESSAGES`).
        """
        for source, target in batch.copies:
            self.decoder.k_cache[:, target] = self.decoder.k_cache[:, source]
            self.decoder.v_cache[:, target] = self.decoder.v_cache[:, source]
        with single_threaded():
            self.decoder.forward(
                batch.token_ids, batch.positions, batch.slot_mapping, batch.cu_seqlens_q, batch.block_tables
            )
            self._score_prompts(batch)
            if not batch.samples:
                return []
            return self._next_tokens(batch)

    def _next_tokens(self, batch: Batch) -> list[int]:
        seqs = [part.seq for part in batch.samples]
        # Rows that only want their best id, or one of their largest logits, come first: their logits are never written
        # to memory.
        greedy, tops, others = [], [], []
        for i, seq in enumerate(seqs):
            chosen = others if self._wants_logits(seq) else greedy if seq.params.is_greedy else tops
            chosen.append(i)
        best_ids = np.empty(len(greedy), np.int32)
        ks = np.array([seqs[i].params.top_k for i in tops], np.int32)
        top = TopRows(self.team.num_threads, ks) if tops else None
        logits = self._logits_for(len(others))
        self.decoder.head(batch.sample_rows[greedy + tops + others], best_ids, logits, top)
        token_ids = [-1] * len(seqs)
        for i, token_id in zip(greedy, best_ids.tolist(), strict=True):
            token_ids[i] = token_id
        if tops:
            self._sample_top(batch.sample_rows, seqs, top, tops, token_ids)
        if others:
            self._sample_all(batch, seqs, logits, others, token_ids)
        return token_ids

    def _score_prompts(self, batch: Batch) -> None:
        for begin in range(0, len(batch.scored), LOGPROB_ROWS):
            chunk = batch.scored[begin : begin + LOGPROB_ROWS]
            logits = self._logits_for(len(chunk))
            self.decoder.logits(np.array([row for _, row, _ in chunk], np.int32), logits)
            wanted = []
            for i, (seq, _, position) in enumerate(chunk):
                asked = seq.asked.get(position, ())
                # The best one tells whether an id that is asked for is it.
                wanted.append((i, seq.targets[position], seq.params.prompt_logprobs or int(bool(asked)), asked))
            batch.prompt_logprobs += score_rows(self.team, logits, wanted)

    def next_logits(self, batch: Batch) -> np.ndarray:
        """Compute the step and return the logits [num_samples, vocab_size] of its newest tokens; nothing is drawn."""
        with single_threaded():
            self.decoder.forward(
                batch.token_ids, batch.positions, batch.slot_mapping, batch.cu_seqlens_q, batch.block_tables
            )
            logits = np.empty((len(batch.samples), self.spec.vocab_size), np.float32)
            self.decoder.logits(batch.sample_rows, logits)
        return logits

    def _wants_logits(self, seq: Sequence) -> bool:
        """Whether the next token depends on more than the largest logits as they come."""
        params = seq.params
        return (
            not self.decoder.can_take_best
            or seq.wants_logprobs
            or params.changes_logits
            or seq.num_completion < params.min_tokens
            or seq.must_end_thinking
            or not (params.is_greedy or self._draws_from_top(params))
        )

    def _draws_from_top(self, params: SamplingParams) -> bool:
        in_range = 0 < params.top_k <= min(MOST, self.spec.vocab_size - 1)
        return in_range and params.top_n_sigma <= 0 and params.typical_p >= 1

    def _sample_all(
        self, batch: Batch, seqs: list[Sequence], logits: np.ndarray, others: list[int], token_ids: list[int]
    ) -> None:
        """Draw the tokens of `others` from all their logits; keep the log probabilities that they want in the batch."""
        scored = [(row, i) for row, i in enumerate(others) if seqs[i].wants_logprobs]
        # Sampling may work in place, and log probabilities are those of the model.
        changed = [row for row, i in scored if _changes_logits(seqs[i])]
        raw = logits[changed]
        for i, token_id in zip(others, self._sample(logits, [seqs[i] for i in others]), strict=True):
            token_ids[i] = token_id
        logits[changed] = raw
        scored = [(row, i) for row, i in scored if token_ids[i] >= 0]
        wanted = [
            (row, token_ids[i], seqs[i].params.logprobs or 0, seqs[i].params.logprob_token_ids) for row, i in scored
        ]
        batch.logprobs = [None] * len(seqs)
        for (_, i), found in zip(scored, score_rows(self.team, logits, wanted), strict=True):
            batch.logprobs[i] = found

    def _sample_top(
        self, rows: np.ndarray, seqs: list[Sequence], top: TopRows, tops: list[int], token_ids: list[int]
    ) -> None:
        """Draw the tokens of `tops` from their largest logits; from all of them where these do not do."""
        drawn = self.sampler.sample_top(top, np.array([_pack(seqs[i]) for i in tops], ROW_PARAMS_DTYPE)).tolist()
        again = [i for i, token_id in zip(tops, drawn, strict=True) if token_id < 0]
        for i, token_id in zip(tops, drawn, strict=True):
            token_ids[i] = token_id
        if again:
            logits = np.empty((len(again), self.spec.vocab_size), np.float32)
            self.decoder.head(rows[again], np.empty(0, np.int32), logits)
            for i, token_id in zip(again, self._sample(logits, [seqs[i] for i in again]), strict=True):
                token_ids[i] = token_id

    def _logits_for(self, num_rows: int) -> np.ndarray:
        if self._logits.shape[0] < num_rows:
            self._logits = np.empty((num_rows, self.spec.vocab_size), np.float32)
        return self._logits[:num_rows]

    def _sample(self, logits: np.ndarray, seqs: list[Sequence]) -> list[int]:
        params = np.zeros(len(seqs), ROW_PARAMS_DTYPE)
        history: list[int] = []
        banned: list[int] = []
        cu_history, cu_banned = np.zeros(len(seqs) + 1, np.int32), np.zeros(len(seqs) + 1, np.int32)
        num_prompt = np.zeros(len(seqs), np.int32)
        rules = [seq.thinking.budget.end_rules if seq.must_end_thinking else seq.rules for seq in seqs]
        masks = self._masks.of(rules, [seq.grammar for seq in seqs])
        for i, seq in enumerate(seqs):
            if seq.must_end_thinking:  # its mask leaves one id, which no other setting may take
                params[i] = pack_row(_GREEDY)
            else:
                params[i] = _pack(seq)
                if seq.params.needs_history:
                    history += seq.token_ids
                    num_prompt[i] = seq.num_prompt
                if seq.rules is not None:
                    banned += seq.rules.banned_after(seq.token_ids, seq.num_prompt)
                # A complete grammar ends its text before min_tokens too: nothing else could come.
                if seq.num_completion < seq.params.min_tokens and not (
                    seq.grammar is not None and allows_only(masks["masks"][masks["mask_rows"][i]], seq.stop_ids)
                ):
                    banned += seq.stop_ids
            cu_history[i + 1], cu_banned[i + 1] = len(history), len(banned)
        ids, status = self.sampler.sample(
            logits, params, np.array(history, np.int32), cu_history, num_prompt, np.array(banned, np.int32), cu_banned,
            **masks, **step_biases(rules),
        )  # fmt: skip
        return np.where(status == 0, ids, -status).tolist()

    def token_logprobs(self, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return log p(targets[i]) after row rows[i] of the last step, in bounded memory."""
        out = np.empty(len(rows), np.float32)
        with single_threaded():
            self.decoder.token_logprobs(
                np.ascontiguousarray(rows, np.int32), np.ascontiguousarray(targets, np.int32), out,
                self._logits_for(min(LOGPROB_ROWS, max(1, len(rows)))),
            )  # fmt: skip
        return out


def _changes_logits(seq: Sequence) -> bool:
    """Whether sampling may write to the sequence's row of logits."""
    return seq.params.changes_logits or seq.rules is not None or seq.grammar is not None or seq.params.min_tokens > 0


def _pack(seq: Sequence) -> tuple:
    return pack_row(seq.params, seq.seed, seq.sample_index, seq.num_completion, _dry_limit(seq))


def _dry_limit(seq: Sequence) -> int:
    if seq.rules is None or not seq.params.uses_dry:
        return DRY_UNLIMITED
    return seq.rules.dry_limit(seq.token_ids, seq.params.dry_penalty_last_n)
