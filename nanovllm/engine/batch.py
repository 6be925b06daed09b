"""A step's plain arrays, passed explicitly from the scheduler's choice to the kernels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nanovllm.engine.logprobs import RowLogprobs
from nanovllm.engine.scheduler import Scheduled
from nanovllm.engine.sequence import Sequence


@dataclass(slots=True)
class Batch:
    """One step.

    Attributes:
        token_ids, positions: [num_rows] int32. slot_mapping: [num_rows] int64, block id * block_size + offset.
        cu_seqlens_q: [num_parts + 1] int32, rows before each part.
        block_tables: [num_parts, max_blocks] int32.
        sample_rows: [num_samples] int32, the rows whose next token is sampled; samples: their parts.
        scored: (sequence, row, position) of each prompt position whose target is to be scored.
        copies: (from, to) KV blocks to copy first.
        logprobs: for each of `samples`, where it wants any; prompt_logprobs: for each of `scored`. Filled by the run.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    slot_mapping: np.ndarray
    cu_seqlens_q: np.ndarray
    block_tables: np.ndarray
    sample_rows: np.ndarray
    samples: list[Scheduled]
    scored: list[tuple[Sequence, int, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    logprobs: list[RowLogprobs | None] = field(default_factory=list)
    prompt_logprobs: list[RowLogprobs] = field(default_factory=list)

    @classmethod
    def build(cls, step: list[Scheduled], block_size: int) -> Batch:
        """Lay the scheduled parts out one after another."""
        counts = np.fromiter((part.count for part in step), np.int32, len(step))
        cu_seqlens_q = np.zeros(len(step) + 1, np.int32)
        np.cumsum(counts, out=cu_seqlens_q[1:])
        num_rows = int(cu_seqlens_q[-1])
        token_ids, positions = np.empty(num_rows, np.int32), np.empty(num_rows, np.int32)
        block_tables = np.zeros((len(step), max(len(part.seq.block_table) for part in step)), np.int32)
        for i, part in enumerate(step):
            begin, end = cu_seqlens_q[i], cu_seqlens_q[i + 1]
            if part.count == 1:
                token_ids[begin], positions[begin] = part.seq.token_ids[part.start], part.start
            else:
                token_ids[begin:end] = part.seq.token_ids[part.start : part.start + part.count]
                positions[begin:end] = np.arange(part.start, part.start + part.count)
            block_tables[i, : len(part.seq.block_table)] = part.seq.block_table
        owner = np.repeat(np.arange(len(step)), counts)
        slots = block_tables[owner, positions // block_size].astype(np.int64) * block_size + positions % block_size
        samples = [(i, part) for i, part in enumerate(step) if part.is_last_chunk and part.seq.samples_next]
        sample_rows = cu_seqlens_q[[i + 1 for i, _ in samples]] - 1 if samples else np.empty(0, np.int32)
        scored = [
            (part.seq, int(cu_seqlens_q[i]) + position - part.start, position)
            for i, part in enumerate(step)
            for position in range(
                max(part.start, part.seq.num_scored), min(part.start + part.count, len(part.seq.targets))
            )
        ]
        parts = [part for _, part in samples]
        return cls(token_ids, positions, slots, cu_seqlens_q, block_tables, sample_rows, parts, scored)
