"""The KV cache's blocks: who holds which, and which full blocks can be shared.

Only this module touches reference counts, the free list and the table of hashes. A block is identified by its id;
what it holds is identified by a chained hash of all tokens up to its end, so equal hashes mean equal keys and values.

A full block is registered when its computation is *scheduled*: within a layer all keys and values of a step are
written before any row attends, so sequences of the same step may already share it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict

from nanovllm.engine.sequence import Sequence


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` positions.

    Attributes:
        copies: (from, to) blocks whose content is to be copied before the next step writes anything.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True):
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_count = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # Free blocks, the next to be taken first: blank ones before those whose content may still be wanted.
        self._blank: list[int] = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self.copies: list[tuple[int, int]] = []

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached content included."""
        return len(self._blank) + len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def _extend_hashes(self, seq: Sequence, num_blocks: int) -> None:
        size = self.block_size
        while len(seq.block_hashes) < num_blocks:
            i = len(seq.block_hashes)
            parent = seq.block_hashes[-1] if i else b""
            tokens = array("q", seq.token_ids[i * size : (i + 1) * size]).tobytes()
            seq.block_hashes.append(hashlib.blake2b(parent + tokens, digest_size=16).digest())

    def leading_hashes(self, seq: Sequence) -> list[bytes]:
        """Return the chained hashes of the blocks that a new sequence could share; none without prefix caching."""
        if not self.enable_prefix_caching:
            return []
        self._extend_hashes(seq, (seq.num_tokens - 1) // self.block_size)
        return seq.block_hashes

    def _prefix(self, seq: Sequence) -> list[int]:
        """Cached blocks of the sequence's beginning; what is sampled from or scored is left to compute."""
        if not self.enable_prefix_caching:
            return []
        usable = seq.num_sharable // self.block_size
        found = []
        for i in range(usable):
            self._extend_hashes(seq, i + 1)
            block = self._block_of.get(seq.block_hashes[i])
            if block is None:
                break
            found.append(block)
        return found

    def admit(self, seq: Sequence, num_new: int) -> int | None:
        """Give a sequence that holds nothing its cached prefix and blocks for `num_new` more tokens at most.

        Returns:
            How many tokens the prefix cache supplied, or None (and nothing changed) when the whole sequence's blocks
            do not fit: admitting half a prompt only to preempt it would compute it twice.
        """
        prefix, num_shared = self._prefix(seq), None
        if seq.fork_of is not None:
            num_forked = self._num_forked(seq)
            if num_forked > len(prefix) * self.block_size:
                prefix, num_shared = seq.fork_of.block_table[: num_forked // self.block_size], num_forked
        if num_shared is None:
            num_shared = len(prefix) * self.block_size
        revived = sum(self._ref_count[block] == 0 for block in prefix)
        if self.blocks_for(seq.num_tokens) - len(prefix) > self.num_free - revived:
            return None
        for block in prefix:
            self._hold(block)
        seq.block_table = prefix
        seq.num_computed = num_shared
        seq.num_registered = len(prefix)
        self.grow(seq, min(seq.num_tokens, seq.num_computed + num_new))
        if num_shared % self.block_size:
            full = num_shared // self.block_size
            self.copies.append((seq.fork_of.block_table[full], seq.block_table[full]))
        return seq.num_computed

    def _num_forked(self, seq: Sequence) -> int:
        """Return how many tokens a sequence can take over from the one that it forks from."""
        parent = seq.fork_of
        most = min(parent.num_computed, seq.num_sharable)
        pairs = enumerate(zip(seq.token_ids[:most], parent.token_ids, strict=False))
        return next((i for i, (own, other) in pairs if own != other), most)

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Make room for `num_tokens` positions in all; False (and nothing changed) when blocks are missing."""
        missing = self.blocks_for(num_tokens) - len(seq.block_table)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            seq.block_table.append(self._take())
        return True

    def register(self, seq: Sequence, num_tokens: int) -> None:
        """Offer the full blocks of the first `num_tokens` tokens, computed or about to be, to other sequences."""
        if not self.enable_prefix_caching:
            return
        full = num_tokens // self.block_size
        if full <= seq.num_registered:
            return
        self._extend_hashes(seq, full)
        for i in range(seq.num_registered, full):
            block, digest = seq.block_table[i], seq.block_hashes[i]
            if digest not in self._block_of:
                self._block_of[digest] = block
                self._hash_of[block] = digest
        seq.num_registered = full

    def release(self, seq: Sequence) -> None:
        """Take all blocks back; the last ones of the sequence are the first to be evicted."""
        for block in reversed(seq.block_table):
            self._ref_count[block] -= 1
            if self._ref_count[block] == 0:
                if self._hash_of[block] is None:
                    self._blank.append(block)
                else:
                    self._cached[block] = None
        seq.block_table = []
        seq.num_computed = 0
        seq.num_registered = 0

    def forget(self) -> None:
        """Empty the prefix cache and take back copies that were not made; blocks that are held stay held."""
        self.copies.clear()
        self._block_of.clear()
        self._hash_of = [None] * self.num_blocks
        self._blank += self._cached
        self._cached.clear()

    def _hold(self, block: int) -> None:
        if self._ref_count[block] == 0:
            del self._cached[block]
        self._ref_count[block] += 1

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._hash_of[block]]
            self._hash_of[block] = None
        self._ref_count[block] = 1
        return block

    def check(self, live: list[Sequence]) -> None:
        """Raise AssertionError if the books do not balance against the live sequences' tables (for tests)."""
        counts = [0] * self.num_blocks
        for seq in live:
            for block in seq.block_table:
                counts[block] += 1
        free = [*self._blank, *self._cached]
        problems = [f"block {b}: counted {self._ref_count[b]}, held {counts[b]} times"
                    for b in range(self.num_blocks) if counts[b] != self._ref_count[b]]  # fmt: skip
        if len(set(free)) != len(free) or {b for b in range(self.num_blocks) if counts[b] == 0} != set(free):
            problems.append("the free list is not the set of blocks that nobody holds")
        problems += [f"hash table names block {b}, which has another hash"
                     for digest, b in self._block_of.items() if self._hash_of[b] != digest]  # fmt: skip
        if problems:
            raise AssertionError("; ".join(problems))
