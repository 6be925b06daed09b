"""The decoder: every layer of one step in a single call without the GIL, by one team of threads.

All families that we serve are one skeleton with optional parts, so the forward pass is written once over an array of
layer structs whose optional pointers may be NULL. Rows of prefill and decode share every matrix product. A step is one
`team_run`; the threads meet at a barrier between two operators and never return to Python between layers.

Here are the entries, which check a step's arrays, and its scratch. The layers are in forward.pyx, attention is in
attend.pyx, logits are in head.pyx. This module knows arrays. It has never heard of checkpoints, sequences or text.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t

from nanovllm.kernels.cascade cimport Cascade
from nanovllm.kernels.decoder_model cimport Model
from nanovllm.kernels.forward cimport step_member
from nanovllm.kernels.head cimport head_job_t, head_member
from nanovllm.kernels.isa cimport (
    NV_BF16, NV_BLAS_F32, NV_BLOCK, NV_F32, NV_INT8, NV_PIECE, nv_attention_part, nv_attention_scratch,
    nv_attention_state, nv_best, nv_gemm_scratch, nv_k_padded,
)
from nanovllm.kernels.linear cimport Linear, rows_t
from nanovllm.kernels.step cimport NUM_PHASES, OWN_NORM_ROWS, model_t, step_t
from nanovllm.kernels.team cimport Team, team_run
from nanovllm.kernels.top_rows cimport TopRows

from nanovllm.kernels.decoder_model import cache_block_bytes

__all__ = ["BLOCK_SIZE", "PHASES", "Decoder", "cache_block_bytes"]

BLOCK_SIZE = NV_BLOCK

# Names of the PHASE_* of step.pxd, in their order.
PHASES = ("embed", "norm", "qkv", "rope_and_store", "attention", "o", "gate_up", "activation", "down", "lm_head")


cdef class Decoder:
    """A model's weights, its paged KV cache and the scratch of a step.

    Args:
        team: the threads.
        spec: any object with hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim,
            rms_norm_eps, sliding_windows (one for each layer, 0 = full).
        inv_freq: [head_dim / 2] float32; rope_scaling: factor of cos and sin.
        embedding: [vocab_size, hidden_size] float32 or uint16 (bfloat16 bits), or None: tied to the packed lm_head.
        final_norm: [hidden_size] float32; lm_head: Linear.
        layers: one dict a layer with float32 arrays input_norm, post_norm, q_norm, k_norm (None where absent) and
            Linears qkv, o, gate_up, down, all of one kind; gate_up is gated unless that kind is "blas".
        num_blocks: KV blocks of BLOCK_SIZE positions for every layer.
        max_rows: most token rows of one step (sizes the scratch).
        cache_dtype: of the KV cache, float32, bfloat16 or int8; any goes beside any kind.
        hadamard_block: the int8 scheme's rotation of down's input.
    """

    cdef Model model
    cdef const model_t *m
    cdef step_t s
    cdef Cascade cascade
    cdef Team team
    cdef list keep                # buffers of the scratch
    cdef Py_ssize_t max_rows
    cdef object phases
    cdef readonly Py_ssize_t vocab_size
    cdef readonly Py_ssize_t num_blocks
    cdef readonly object k_cache
    cdef readonly object v_cache

    def __cinit__(self, Team team, spec, inv_freq, float rope_scaling, embedding, final_norm, Linear lm_head, layers,
                  Py_ssize_t num_blocks, Py_ssize_t max_rows, str cache_dtype, int hadamard_block=1):
        if num_blocks < 1 or max_rows < 1:
            raise ValueError(f"num_blocks and max_rows must be positive, found {num_blocks} and {max_rows}")
        self.model = Model(team, spec, inv_freq, rope_scaling, embedding, final_norm, lm_head, layers, num_blocks,
                           hadamard_block, cache_dtype)
        self.m, self.team, self.keep = &self.model.c, team, []
        self.num_blocks, self.max_rows, self.vocab_size = num_blocks, max_rows, self.model.vocab_size
        self.k_cache, self.v_cache = self.model.k_cache, self.model.v_cache
        self._set_scratch()

    cdef void *_buffer(self, Py_ssize_t count, Py_ssize_t itemsize) except NULL:
        """Zeroed memory on a cache line; pages that no step touches cost nothing."""
        array = np.zeros(count * itemsize + 63, np.uint8)
        cdef unsigned char[::1] view = array
        self.keep.append(array)
        return <void *>((<size_t>&view[0] + 63) // 64 * 64)

    cdef _set_rows(self, rows_t *rows, Py_ssize_t width, float *shared):
        """Where a Linear's input rows lie: in `shared` for the float32 kinds, else in a buffer of their own."""
        cdef Py_ssize_t padded = nv_k_padded(self.m.kind, width)
        rows.ldx, rows.x, rows.scale = padded, shared, NULL
        if self.m.kind == NV_BF16:
            rows.x = self._buffer(self.max_rows * padded, 2)
        elif self.m.kind == NV_INT8:
            rows.x = self._buffer(self.max_rows * padded, 1)
            rows.scale = <float *>self._buffer(self.max_rows, sizeof(float))

    def _set_scratch(self):
        cdef Py_ssize_t dim = self.m.head_dim, rows = self.max_rows, size = sizeof(float)
        cdef Py_ssize_t heads = self.m.num_heads, kv_heads = self.m.num_kv_heads
        cdef Py_ssize_t hidden = self.m.hidden_size, inter = self.m.intermediate_size, temp, scratch
        cdef bint is_float = self.m.kind in (NV_F32, NV_BLAS_F32)
        cdef float *normed = <float *>self._buffer(rows * hidden, size) if is_float else NULL
        self.s.m = self.m
        self.s.x = <float *>self._buffer(rows * hidden, size)
        self.s.qkv = <float *>self._buffer(rows * (heads + 2 * kv_heads) * dim, size)
        self.s.attn = <float *>self._buffer(rows * heads * dim, size)
        self.s.inter = <float *>self._buffer(rows * (2 * inter if self.m.kind == NV_BLAS_F32 else inter), size)
        self.s.cosines = <float *>self._buffer(rows * (dim // 2), size)
        self.s.sines = <float *>self._buffer(rows * (dim // 2), size)
        self.cascade = Cascade(rows)
        self.s.cascade, self.s.state_size = &self.cascade.c, nv_attention_state(self.m.head_dim)
        self.s.states = <float *>self._buffer(rows * heads * self.s.state_size, size)
        self._set_rows(&self.s.hidden_in, hidden, normed)
        self._set_rows(&self.s.attn_in, heads * dim, self.s.attn)
        self._set_rows(&self.s.inter_in, inter, self.s.inter)
        if self.m.kind == NV_BLAS_F32:
            self.s.inter_in.ldx = 2 * inter
        # Each part on a cache line of its own; `temp` holds a normed row or one tile of attention output.
        temp = (max(hidden, self.m.k.attention_rows * dim) * size + 63) // 64 * 64
        self.s.attention_at = temp
        scratch = <Py_ssize_t>nv_attention_scratch(self.m.k.attention_rows, self.m.head_dim) * size
        self.s.gemm_at = temp + (scratch + 63) // 64 * 64
        widest = max(nv_k_padded(self.m.kind, width) for width in (hidden, heads * dim, inter))
        self.s.own_rows_at = self.s.gemm_at + (<Py_ssize_t>nv_gemm_scratch(widest) + 63) // 64 * 64
        self.s.own_scale_at = self.s.own_rows_at + (OWN_NORM_ROWS * self.s.hidden_in.ldx * size + 63) // 64 * 64
        self.s.scratch_stride = self.s.own_scale_at + 64
        self.s.thread_scratch = <char *>self._buffer(self.team.num_threads * self.s.scratch_stride, 1)

    def forward(self, const int32_t[::1] token_ids, const int32_t[::1] positions, const int64_t[::1] slot_mapping,
                const int32_t[::1] cu_seqlens_q, const int32_t[:, ::1] block_tables):
        """Run all layers over one step's rows; the rows' hidden states stay here for `logits`.

        Args:
            token_ids: [num_rows]; positions: [num_rows]; slot_mapping: [num_rows].
            cu_seqlens_q: [num_seqs + 1] rows before each sequence; a sequence's rows are consecutive positions.
            block_tables: [num_seqs, max_blocks] block ids, enough for each sequence's last position.

        Raises:
            ValueError: an array does not fit the others, or an index is out of range.
        """
        cdef Py_ssize_t rows = token_ids.shape[0], num_seqs = cu_seqlens_q.shape[0] - 1
        if rows == 0:
            return
        self.team.check_process()
        self._check_step(token_ids, positions, slot_mapping, cu_seqlens_q, block_tables)
        self.s.rows, self.s.num_seqs = rows, num_seqs
        self.s.hidden_in.count = self.s.attn_in.count = self.s.inter_in.count = rows
        self.s.token_ids, self.s.positions, self.s.slots = &token_ids[0], &positions[0], &slot_mapping[0]
        self.s.cu_seqlens_q = &cu_seqlens_q[0]
        self.s.block_tables, self.s.block_table_stride = &block_tables[0, 0], block_tables.shape[1]
        task_start = np.zeros(num_seqs + 1, np.intp)
        cdef Py_ssize_t[::1] task_start_view = task_start
        self.s.task_start = &task_start_view[0]
        parts = self._plan_attention()
        cdef float[::1] parts_view = parts
        self.s.parts = &parts_view[0]
        with nogil:
            team_run(self.m.team, step_member, &self.s)

    cdef _plan_attention(self):
        """Cut the step's attention into tasks; returns memory for the parts of tiles that are cut into pieces."""
        cdef Py_ssize_t group = self.m.num_heads // self.m.num_kv_heads, threads = self.team.num_threads
        cdef Py_ssize_t seq, tiles, tasks, last_position = 0, tile_rows = self.m.k.attention_rows
        cdef const int32_t *first_row = self.s.cu_seqlens_q
        for seq in range(self.s.num_seqs):
            tiles = ((first_row[seq + 1] - first_row[seq]) * group + tile_rows - 1) // tile_rows
            self.s.task_start[seq + 1] = self.s.task_start[seq] + tiles
            last_position = max(last_position, self.s.positions[first_row[seq + 1] - 1])
        tiles = self.s.task_start[self.s.num_seqs] * self.m.num_kv_heads
        self.s.part_size = nv_attention_part(self.m.k.attention_rows, self.m.head_dim)
        self.s.num_pieces = last_position // NV_PIECE + 1
        self.cascade.clear(self.s.num_seqs)
        if self.s.num_pieces > 1 and tiles < 8 * threads and threads > 1:  # too few tiles to keep every thread busy
            return np.empty(tiles * self.s.num_pieces * self.s.part_size, np.float32)
        if self.s.num_pieces > 1:
            self.cascade.find(self.s.num_seqs, first_row, self.s.positions, self.s.block_tables,
                              self.s.block_table_stride, group, tile_rows)
            # Full tiles save about a third of the time: not worth a quarter of the threads' time without a task.
            tasks = self.cascade.c.num_chunks * self.m.num_kv_heads
            if 4 * tasks < 3 * ((tasks + threads - 1) // threads * threads):
                self.cascade.clear(self.s.num_seqs)
        self.s.num_pieces = 0
        return np.empty(1, np.float32)

    @property
    def num_sharing(self):
        """How many sequences of the last step attended to a common beginning together with others."""
        return self.cascade.c.chunk_start[self.cascade.c.num_chunks]

    cdef int _check_step(self, const int32_t[::1] token_ids, const int32_t[::1] positions,
                         const int64_t[::1] slot_mapping, const int32_t[::1] cu_seqlens_q,
                         const int32_t[:, ::1] block_tables) except -1:
        """Refuse what would read or write outside the arrays; linear in the rows, so its cost is nothing."""
        cdef Py_ssize_t rows = token_ids.shape[0], num_seqs = cu_seqlens_q.shape[0] - 1, i, row, blocks
        cdef Py_ssize_t slots = self.num_blocks * NV_BLOCK
        if rows > self.max_rows:
            raise ValueError(f"{rows} rows in one step, the scratch was made for {self.max_rows}")
        if positions.shape[0] != rows or slot_mapping.shape[0] != rows or block_tables.shape[0] != num_seqs:
            raise ValueError(f"token_ids has {rows} rows, positions {positions.shape[0]}, slot_mapping "
                             f"{slot_mapping.shape[0]}; {num_seqs} sequences, {block_tables.shape[0]} block tables")
        if num_seqs < 1 or cu_seqlens_q[0] != 0 or cu_seqlens_q[num_seqs] != rows:
            raise ValueError(f"cu_seqlens_q must go from 0 to {rows}")
        for row in range(rows):
            if not 0 <= token_ids[row] < self.vocab_size:
                raise ValueError(f"token id {token_ids[row]} in row {row} is outside the vocabulary of "
                                 f"{self.vocab_size}")
            if not 0 <= slot_mapping[row] < slots:
                raise ValueError(f"slot {slot_mapping[row]} in row {row} is outside the cache of {slots}")
        for i in range(num_seqs):
            if not cu_seqlens_q[i] < cu_seqlens_q[i + 1] <= rows:
                raise ValueError(f"sequence {i} of the step has no rows, or more than there are")
            for row in range(cu_seqlens_q[i], cu_seqlens_q[i + 1]):
                if positions[row] < 0 or positions[row] - positions[cu_seqlens_q[i]] != row - cu_seqlens_q[i]:
                    raise ValueError(f"positions of sequence {i} of the step are not consecutive from 0 up")
            blocks = positions[cu_seqlens_q[i + 1] - 1] // NV_BLOCK + 1
            if blocks > block_tables.shape[1]:
                raise ValueError(f"sequence {i} needs {blocks} blocks, its table has room for {block_tables.shape[1]}")
            for row in range(blocks):
                if not 0 <= block_tables[i, row] < self.num_blocks:
                    raise ValueError(f"block {block_tables[i, row]} of sequence {i} is outside the cache of "
                                     f"{self.num_blocks}")
        return 0

    def profile(self, enable=True):
        """Begin (or end) booking each step's time by operator; returns the seconds booked before, by name."""
        booked = {}
        if self.phases is not None:
            booked = dict(zip(PHASES, self.phases.tolist(), strict=True))
        self.phases = np.zeros(NUM_PHASES) if enable else None
        cdef double[::1] view = self.phases
        self.s.phase_s = &view[0] if enable else NULL
        return booked

    def hidden(self, Py_ssize_t num_rows):
        """A copy [num_rows, hidden_size] of the residual stream after the last layer, before the final norm."""
        if not 0 < num_rows <= self.s.rows:
            raise ValueError(f"the last step had {self.s.rows} rows, asked for {num_rows}")
        return np.array(<float[:num_rows, :self.m.hidden_size]>self.s.x)

    @property
    def can_take_best(self):
        """Whether `head` can find best ids without writing logits: every kind but BLAS."""
        return self.m.kind != NV_BLAS_F32

    def logits(self, const int32_t[::1] rows, float[:, ::1] out):
        """out [num_rows, vocab_size] = logits of the given rows of the last step."""
        self._run_head(rows, out, None, None, None)

    def head(self, const int32_t[::1] rows, int32_t[::1] best_ids, float[:, ::1] logits, TopRows top=None):
        """Best ids of the first rows, largest logits of the next, full ones of the others, in one pass over lm_head.

        Args:
            rows: rows of the last step. best_ids: written for as many first rows as it has elements; -1 where a logit
                was NaN or infinite. logits: [at least the other rows, vocab_size], written. top: filled for the rows
                between these two.
        """
        self._run_head(rows, logits, best_ids, None, None, top)

    def token_logprobs(self, const int32_t[::1] rows, const int32_t[::1] targets, float[::1] out,
                       float[:, ::1] scratch):
        """out[i] = log p(targets[i]) after row rows[i]; scratch [at least 1, vocab_size] bounds the memory."""
        cdef Py_ssize_t begin, step = scratch.shape[0]
        if targets.shape[0] != rows.shape[0] or out.shape[0] != rows.shape[0] or step == 0:
            raise ValueError(f"{rows.shape[0]} rows, {targets.shape[0]} targets, {out.shape[0]} results, "
                             f"{step} rows of scratch")
        for begin in range(0, rows.shape[0], step):
            end = min(begin + step, rows.shape[0])
            self._run_head(rows[begin:end], scratch[:end - begin], None, targets[begin:end], out[begin:end])

    def _run_head(self, const int32_t[::1] rows, float[:, ::1] logits, int32_t[::1] best_ids,
                  const int32_t[::1] targets, float[::1] logprobs, TopRows top=None):
        cdef Py_ssize_t num_rows = rows.shape[0], greedy = 0 if best_ids is None else best_ids.shape[0], i
        cdef Py_ssize_t num_top = 0 if top is None else top.num_rows, num_full = num_rows - greedy - num_top
        cdef head_job_t job
        if num_rows == 0:
            return
        if num_rows > self.max_rows or num_full < 0 or (greedy + num_top and not self.can_take_best):
            raise ValueError(f"{num_rows} rows of logits, {greedy} of them best ids and {num_top} the largest: the "
                             f"scratch was made for {self.max_rows} rows")
        if top is not None and top.num_threads != self.team.num_threads:
            raise ValueError(f"room for the largest logits of {top.num_threads} threads, there are "
                             f"{self.team.num_threads}")
        if logits.shape[0] < num_full or logits.shape[1] != self.vocab_size:
            raise ValueError(f"logits has shape {logits.shape[0], logits.shape[1]}, "
                             f"expected {num_full, self.vocab_size}")
        for i in range(num_rows):
            if not 0 <= rows[i] < self.s.rows:
                raise ValueError(f"row {rows[i]} is not one of the last step's {self.s.rows}")
            if targets is not None and not 0 <= targets[i] < self.vocab_size:
                raise ValueError(f"target id {targets[i]} is outside the vocabulary of {self.vocab_size}")
        best = np.empty((self.team.num_threads * greedy + 1) * sizeof(nv_best), np.uint8)
        cdef unsigned char[::1] best_view = best
        job.s, job.rows, job.num_rows, job.greedy_rows = &self.s, &rows[0], num_rows, greedy
        job.best = <nv_best *>&best_view[0]
        job.best_ids = &best_ids[0] if greedy else NULL
        job.top_rows, job.top = num_top, top.tops if num_top else NULL
        job.logits = &logits[0, 0] if logits.shape[0] else NULL
        job.targets, job.logprobs = NULL, NULL
        if targets is not None:
            job.targets, job.logprobs = &targets[0], &logprobs[0]
        self.team.check_process()
        with nogil:
            team_run(self.m.team, head_member, &job)
