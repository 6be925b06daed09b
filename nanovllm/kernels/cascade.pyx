"""Finds the sequences of a step whose block tables begin alike, so that shared keys and values are read once for all.

A decode row brings only its GQA group to a tile of attention. Where sequences share whole pieces of positions (a common
prompt, by way of the prefix cache), rows of several of them fill the tile. Sorting the block tables puts sequences of
equal beginnings side by side, those that share more next to each other; a tree of prefixes needs no other form.

This module compares block ids. It has never heard of keys, values or layers.
"""

import numpy as np

from libc.stdint cimport int32_t
from libc.string cimport memmove

from nanovllm.kernels.isa cimport NV_BLOCK, NV_PIECE


cdef enum:
    PIECE_BLOCKS = NV_PIECE // NV_BLOCK


# What of a step is looked at.
cdef struct tables_t:
    const int32_t *cu_seqlens_q   # [num_seqs + 1]
    const int32_t *positions      # [rows]
    const int32_t *block_tables   # [num_seqs, stride]
    Py_ssize_t stride
    Py_ssize_t group              # query heads that share a KV head
    Py_ssize_t tile_rows          # rows of a whole tile of attention


cdef Py_ssize_t whole_pieces(const tables_t *t, Py_ssize_t seq) noexcept nogil:
    """Pieces before the sequence's rows, if these are so few that a tile has room for another sequence's; else 0."""
    cdef Py_ssize_t first = t.cu_seqlens_q[seq], rows = (t.cu_seqlens_q[seq + 1] - first) * t.group
    return t.positions[first] // NV_PIECE if 2 * rows <= t.tile_rows else 0


cdef Py_ssize_t same_blocks(const tables_t *t, Py_ssize_t a, Py_ssize_t b, Py_ssize_t count) noexcept nogil:
    """How many of the first `count` blocks are the same up to the first that is not."""
    cdef const int32_t *blocks_a = t.block_tables + a * t.stride
    cdef const int32_t *blocks_b = t.block_tables + b * t.stride
    cdef Py_ssize_t i = 0
    while i < count and blocks_a[i] == blocks_b[i]:
        i += 1
    return i


cdef bint comes_before(const tables_t *t, Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """Lexicographic order of the blocks of whole pieces."""
    cdef Py_ssize_t pieces_a = whole_pieces(t, a), pieces_b = whole_pieces(t, b)
    cdef Py_ssize_t count = min(pieces_a, pieces_b) * PIECE_BLOCKS, same = same_blocks(t, a, b, count)
    if same == count:
        return pieces_a < pieces_b
    return t.block_tables[a * t.stride + same] < t.block_tables[b * t.stride + same]


cdef Py_ssize_t sort_sequences(const tables_t *t, Py_ssize_t num_seqs, int32_t *order) noexcept nogil:
    """The sequences that have whole pieces, in order of their blocks; returns how many."""
    cdef Py_ssize_t count = 0, seq, low, high, middle
    for seq in range(num_seqs):
        if whole_pieces(t, seq) == 0:
            continue
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if comes_before(t, seq, order[middle]):
                high = middle
            else:
                low = middle + 1
        memmove(order + low + 1, order + low, (count - low) * sizeof(int32_t))
        order[low] = <int32_t>seq
        count += 1
    return count


cdef void add_chunk(cascade_t *c, const tables_t *t, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Order[begin:end] becomes a chunk; it moves forward over the sequences that found no company."""
    cdef Py_ssize_t to = c.chunk_start[c.num_chunks], size = end - begin, i, seq
    cdef int32_t *common = c.common + to
    memmove(c.order + to, c.order + begin, size * sizeof(int32_t))
    memmove(common, c.common + begin, size * sizeof(int32_t))
    common[0] = 0
    c.last_position[c.num_chunks] = 0
    for i in range(size):
        seq = c.order[to + i]
        c.chunk_of[seq] = <int32_t>c.num_chunks
        c.done[seq] = max(common[i], common[i + 1]) if i + 1 < size else common[i]
        c.last_position[c.num_chunks] = max(c.last_position[c.num_chunks], t.positions[t.cu_seqlens_q[seq + 1] - 1])
    c.num_chunks += 1
    c.chunk_start[c.num_chunks] = <int32_t>(to + size)


cdef void cut_chunks(cascade_t *c, const tables_t *t, Py_ssize_t count) noexcept nogil:
    """Cut the sorted sequences where neighbours share nothing, and where a chunk is full."""
    cdef Py_ssize_t begin = 0, i, blocks
    for i in range(1, count + 1):
        c.common[i] = 0
        if i < count:
            blocks = min(whole_pieces(t, c.order[i - 1]), whole_pieces(t, c.order[i])) * PIECE_BLOCKS
            c.common[i] = <int32_t>(same_blocks(t, c.order[i - 1], c.order[i], blocks) // PIECE_BLOCKS)
        if c.common[i] == 0 or i - begin == CASCADE_SEQS:
            if i - begin > 1:
                add_chunk(c, t, begin, i)
            begin = i


cdef class Cascade:
    """The shared beginnings of one step of up to `max_seqs` sequences."""

    def __cinit__(self, Py_ssize_t max_seqs):
        self.keep = np.zeros((6, max_seqs + 1), np.int32)
        cdef int32_t[:, ::1] view = self.keep
        self.c.order, self.c.common, self.c.chunk_start = &view[0, 0], &view[1, 0], &view[2, 0]
        self.c.last_position, self.c.chunk_of, self.c.done = &view[3, 0], &view[4, 0], &view[5, 0]

    cdef void find(self, Py_ssize_t num_seqs, const int32_t *cu_seqlens_q, const int32_t *positions,
                   const int32_t *block_tables, Py_ssize_t stride, Py_ssize_t group,
                   Py_ssize_t tile_rows) noexcept nogil:
        """Look at a step. Costs a few comparisons of tables for each sequence, most of which end at the first block."""
        cdef tables_t t
        t.cu_seqlens_q, t.positions, t.block_tables = cu_seqlens_q, positions, block_tables
        t.stride, t.group, t.tile_rows = stride, group, tile_rows
        self.clear(num_seqs)
        cut_chunks(&self.c, &t, sort_sequences(&t, num_seqs, self.c.order))

    cdef void clear(self, Py_ssize_t num_seqs) noexcept nogil:
        """Let every sequence of the step go alone."""
        cdef Py_ssize_t seq
        self.c.num_chunks = self.c.chunk_start[0] = 0
        for seq in range(num_seqs):
            self.c.done[seq] = 0


def shared_beginnings(const int32_t[::1] cu_seqlens_q, const int32_t[::1] positions, const int32_t[:, ::1] block_tables,
                      Py_ssize_t group, Py_ssize_t tile_rows):
    """(chunks as lists of sequences, the first pieces that each sequence shares): what `Decoder.forward` finds (tests).

    Args:
        cu_seqlens_q: [num_seqs + 1]; positions: [num_rows]; block_tables: [num_seqs, max_blocks].
        group: query heads that share a KV head; tile_rows: rows of a whole tile of attention.
    """
    cdef Py_ssize_t num_seqs = cu_seqlens_q.shape[0] - 1
    cdef Cascade cascade = Cascade(num_seqs)
    cascade.find(num_seqs, &cu_seqlens_q[0], &positions[0], &block_tables[0, 0], block_tables.shape[1], group,
                 tile_rows)
    starts = [cascade.c.chunk_start[i] for i in range(cascade.c.num_chunks + 1)]
    chunks = [[cascade.c.order[i] for i in range(starts[k], starts[k + 1])] for k in range(len(starts) - 1)]
    return chunks, [cascade.c.done[i] for i in range(num_seqs)]
