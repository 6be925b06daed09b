"""Which sequences of a step begin with the same blocks, and what they may compute together."""

from libc.stdint cimport int32_t


cdef enum:
    # Most sequences that one task serves together: with one row of any GQA group each, their rows fill whole tiles.
    CASCADE_SEQS = 8


# The shared beginnings of a step, in pieces of NV_PIECE positions. A chunk is a run of sequences in `order` of which
# each shares at least one whole piece with the one before it.
cdef struct cascade_t:
    Py_ssize_t num_chunks
    int32_t *order                # [chunk_start[num_chunks]] sequences, equal beginnings side by side
    int32_t *common               # [the same] pieces shared with the sequence before in `order`
    int32_t *chunk_start          # [num_chunks + 1] places in `order`
    int32_t *last_position        # [num_chunks] highest position of the chunk's rows
    int32_t *chunk_of             # [num_seqs] a sequence's chunk; only where done > 0
    int32_t *done                 # [num_seqs] first pieces that a sequence shares within its chunk; 0: none


cdef class Cascade:
    cdef cascade_t c
    cdef object keep
    cdef Py_ssize_t max_seqs
    cdef void find(self, Py_ssize_t num_seqs, const int32_t *cu_seqlens_q, const int32_t *positions,
                   const int32_t *block_tables, Py_ssize_t stride, Py_ssize_t group,
                   Py_ssize_t tile_rows) noexcept nogil
    cdef void clear(self, Py_ssize_t num_seqs) noexcept nogil
