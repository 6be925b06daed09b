"""Which sequences run in the next step, and how many tokens of each.

Only this module moves a sequence between waiting and running. Every step is filled up to a token budget: the running
sequences first (one token each, or the next chunk of a prompt), then new ones as far as budget, sequence slots and
blocks allow. Out of blocks, the youngest sequence is preempted: its blocks are taken back and it is recomputed later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence

# How far a sequence may be put forward to others with its beginning, and how often one may be overtaken that way.
REORDER_WINDOW = 256


@dataclass(slots=True)
class Scheduled:
    """A sequence's part of a step: tokens [start, start + count)."""

    seq: Sequence
    start: int
    count: int

    @property
    def is_last_chunk(self) -> bool:
        """Whether the step reaches the sequence's newest token, so that the next one can be sampled."""
        return self.start + self.count == self.seq.num_tokens


class Scheduler:
    """Continuous batching with chunked prefill and preemption by recompute.

    With `reorder`, sequences wait beside those that begin with the same blocks; else in the order of arrival.
    """

    def __init__(
        self, block_manager: BlockManager, max_num_seqs: int, max_num_batched_tokens: int, reorder: bool = True
    ):
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.reorder = reorder
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of admission: the last is the youngest
        self.kept: list[Sequence] = []  # ended ones whose blocks others fork from
        self.num_preemptions = 0

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence; one that forks goes first, since blocks are kept for it."""
        if seq.fork_of is not None:
            self.waiting.appendleft(seq)
            return
        place = self._place(seq) if self.reorder else len(self.waiting)
        for overtaken in islice(self.waiting, place, None):
            overtaken.num_overtaken += 1
        self.waiting.insert(place, seq)

    def _place(self, seq: Sequence) -> int:
        """Return the place right after the waiting sequence that shares the most leading blocks, or the end."""
        hashes = self.block_manager.leading_hashes(seq)
        place, most = len(self.waiting), 0
        for back, other in enumerate(islice(reversed(self.waiting), REORDER_WINDOW if hashes else 0)):
            # Hashes are chained: equal ones mean that everything before is equal too.
            shared = most
            while shared < min(len(hashes), len(other.block_hashes)) and hashes[shared] == other.block_hashes[shared]:
                shared += 1
            if shared > most:
                place, most = len(self.waiting) - back, shared
            if other.num_overtaken >= REORDER_WINDOW or other.num_preemptions:
                break
        return place

    def schedule(self) -> list[Scheduled]:
        """Choose the next step. Empty only when nothing is waiting or running."""
        step, budget, preempted = self._continue_running()
        # Before any admission: who joins in this very step finds the blocks that it computes.
        for part in step:
            self.block_manager.register(part.seq, part.start + part.count)
        if not preempted:  # blocks are scarce: admitting more now would only preempt again
            self._admit(step, budget)
        return step

    def _continue_running(self) -> tuple[list[Scheduled], int, bool]:
        step: list[Scheduled] = []
        budget, preempted, i = self.max_num_batched_tokens, False, 0
        while i < len(self.running) and budget > 0:
            seq = self.running[i]
            count = min(seq.num_tokens - seq.num_computed, budget)
            while not self.block_manager.grow(seq, seq.num_computed + count):
                if self.drop_kept():
                    continue
                preempted = True
                victim = self.running.pop()
                self._preempt(victim)
                if victim is seq:
                    return step, budget, True
            step.append(Scheduled(seq, seq.num_computed, count))
            budget -= count
            i += 1
        return step, budget, preempted

    def _admit(self, step: list[Scheduled], budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            seq = self.waiting[0]
            cached = self.block_manager.admit(seq, budget)
            if cached is None:
                # Only when nothing else would ever free a block; until then those who fork are about to come.
                if not self.running and self.drop_kept():
                    continue
                return
            if seq.num_cached is None:
                seq.num_cached = cached
                self._count_fork(seq.fork_of)
            self.waiting.popleft()
            self.running.append(seq)
            count = min(seq.num_tokens - cached, budget)
            step.append(Scheduled(seq, cached, count))
            budget -= count
            self.block_manager.register(seq, cached + count)

    def _count_fork(self, parent: Sequence | None) -> None:
        """Note that a sequence has forked; after the last one nothing of an ended parent is kept any more."""
        if parent is not None:
            parent.num_forks -= 1
            if parent.num_forks == 0:
                self.drop_kept(parent)

    def _preempt(self, seq: Sequence) -> None:
        self.block_manager.release(seq)
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(seq)

    def undo_step(self) -> None:
        """Take back a step that was cut short: it registered blocks that may never have been written."""
        while self.running:
            self._preempt(self.running.pop())
        self.block_manager.forget()

    def finish_step(self, step: list[Scheduled]) -> None:
        """Record what the step computed and drop the sequences that have ended."""
        for part in step:
            part.seq.num_computed = part.start + part.count
            if part.seq.finish_reason is not None:
                if part.seq.num_forks and part.seq.finish_reason != "error":
                    self.kept.append(part.seq)
                else:
                    self.block_manager.release(part.seq)
        self.running = [seq for seq in self.running if seq.finish_reason is None]

    def drop_kept(self, seq: Sequence | None = None) -> bool:
        """Free the blocks that ended sequences keep, or those of one of them; returns whether there were any."""
        dropped = [kept for kept in self.kept if seq is None or kept is seq]
        for kept in dropped:
            self.block_manager.release(kept)
        self.kept = [kept for kept in self.kept if kept not in dropped]
        return bool(dropped)

    def abort(self, seq: Sequence, reason: str) -> None:
        """End a sequence between two steps, wherever it is."""
        seq.finish_reason = reason
        self.block_manager.release(seq)
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
