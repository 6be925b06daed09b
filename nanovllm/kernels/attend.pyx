"""Attention of a step: its rows in tiles, and the tiles handed out to threads.

A tile is up to `attention_rows` query rows that share one KV head; what the kernel does with it is in csrc/attention.h.
"""

from libc.stdint cimport int32_t, uint16_t

from nanovllm.kernels.cascade cimport cascade_t
from nanovllm.kernels.isa cimport NV_ATTN_ROWS, NV_BF16, nv_attention
from nanovllm.kernels.step cimport layer_t, model_t, step_t
from nanovllm.kernels.team cimport nv_fetch_add, team_barrier


# The rows of one attention tile, and where the kernel finds them.
cdef struct tile_t:
    nv_attention a
    Py_ssize_t q_offset[NV_ATTN_ROWS]
    Py_ssize_t out_offset[NV_ATTN_ROWS]
    int32_t position[NV_ATTN_ROWS]
    float *state[NV_ATTN_ROWS]
    Py_ssize_t row[NV_ATTN_ROWS]
    Py_ssize_t head[NV_ATTN_ROWS]


cdef void open_tile(step_t *s, const layer_t *layer, Py_ssize_t kv_head, int tid, tile_t *t) noexcept nogil:
    """A tile without rows over one KV head of a layer."""
    cdef const model_t *m = s.m
    cdef nv_attention *a = &t.a
    cdef char *scratch = s.thread_scratch + tid * s.scratch_stride
    a.q, a.out = s.qkv, <float *>scratch if m.kind == NV_BF16 else s.attn
    a.q_offset, a.out_offset, a.position, a.state = t.q_offset, t.out_offset, t.position, t.state
    a.head_dim, a.v_stride, a.cache = m.head_dim, m.v_stride, m.cache
    a.window, a.scale = layer.window, m.scale
    a.k_block_stride, a.v_block_stride = m.num_kv_heads * m.k_block_bytes, m.num_kv_heads * m.v_block_bytes
    a.k_cache, a.v_cache = layer.k_cache + kv_head * m.k_block_bytes, layer.v_cache + kv_head * m.v_block_bytes
    a.scratch = <float *>(scratch + s.attention_at)
    a.num_rows = a.done = a.asked = 0
    a.next = NULL


cdef inline void add_row(step_t *s, tile_t *t, Py_ssize_t row, Py_ssize_t head) noexcept nogil:
    cdef const model_t *m = s.m
    cdef Py_ssize_t dim = m.head_dim, r = t.a.num_rows
    t.row[r], t.head[r] = row, head
    t.q_offset[r] = (row * (m.num_heads + 2 * m.num_kv_heads) + head) * dim
    t.out_offset[r] = r * dim if m.kind == NV_BF16 else (row * m.num_heads + head) * dim
    t.position[r] = s.positions[row]
    t.state[r] = s.states + (row * m.num_heads + head) * s.state_size
    t.a.num_rows += 1


cdef inline bint shares(const step_t *s, const layer_t *layer, Py_ssize_t chunk) noexcept nogil:
    """Whether a chunk's beginnings are attended together in this layer: where a window cuts them, they are not."""
    return layer.window == 0 or s.cascade.last_position[chunk] < layer.window


cdef void set_tile(step_t *s, const layer_t *layer, Py_ssize_t tile, Py_ssize_t kv_head, int tid,
                   tile_t *t) noexcept nogil:
    """A tile is up to `attention_rows` consecutive (token, head) rows of one sequence and KV head."""
    cdef Py_ssize_t group = s.m.num_heads // s.m.num_kv_heads, low = 0, high = s.num_seqs - 1, middle, begin, end, i
    cdef Py_ssize_t most = s.m.k.attention_rows
    while low < high:  # the sequence whose tiles contain this one
        middle = (low + high + 1) // 2
        if s.task_start[middle] <= tile:
            low = middle
        else:
            high = middle - 1
    begin = (tile - s.task_start[low]) * most
    end = min(begin + most, (s.cu_seqlens_q[low + 1] - s.cu_seqlens_q[low]) * group)
    open_tile(s, layer, kv_head, tid, t)
    t.a.block_table = s.block_tables + low * s.block_table_stride
    for i in range(begin, end):
        add_row(s, t, s.cu_seqlens_q[low] + i // group, kv_head * group + i % group)
    if s.cascade.done[low] > 0 and shares(s, layer, s.cascade.chunk_of[low]):
        t.a.done = s.cascade.done[low]


cdef void finish_tile(step_t *s, const tile_t *t) noexcept nogil:
    """Round a tile's output to what o reads; for the other kinds it is in place already."""
    cdef Py_ssize_t dim = s.m.head_dim, r
    if s.m.kind == NV_BF16:
        for r in range(t.a.num_rows):
            s.m.k.to_bf16(t.a.out + r * dim, <uint16_t *>s.attn_in.x + t.row[r] * s.attn_in.ldx + t.head[r] * dim,
                          dim, dim)


cdef void fold_run(step_t *s, Py_ssize_t begin, Py_ssize_t end, int piece, Py_ssize_t kv_head,
                   tile_t *t) noexcept nogil:
    """Fold a piece that the sequences in places [begin, end) of the order share into the states of all their rows."""
    cdef Py_ssize_t group = s.m.num_heads // s.m.num_kv_heads, place, seq, row, head
    t.a.block_table = s.block_tables + s.cascade.order[begin] * s.block_table_stride
    for place in range(begin, end):
        seq = s.cascade.order[place]
        for row in range(s.cu_seqlens_q[seq], s.cu_seqlens_q[seq + 1]):
            for head in range(kv_head * group, (kv_head + 1) * group):
                add_row(s, t, row, head)
                if t.a.num_rows == s.m.k.attention_rows:
                    s.m.k.attention_fold(&t.a, piece)
                    t.a.num_rows = 0
    if t.a.num_rows > 0:
        s.m.k.attention_fold(&t.a, piece)
        t.a.num_rows = 0


cdef void fold_chunk(step_t *s, const layer_t *layer, Py_ssize_t chunk, Py_ssize_t kv_head, int tid) noexcept nogil:
    """Fold all pieces that sequences of a chunk share, one after another: rows of many tiles find it in the cache."""
    cdef const cascade_t *c = s.cascade
    cdef Py_ssize_t begin = c.chunk_start[chunk], end = c.chunk_start[chunk + 1], first, last
    cdef int piece = 0
    cdef bint found = True
    cdef tile_t t
    open_tile(s, layer, kv_head, tid, &t)
    while found:
        found = False
        first = begin
        while first < end:
            last = first + 1
            while last < end and c.common[last] > piece:
                last += 1
            if last - first > 1:
                fold_run(s, first, last, piece, kv_head, &t)
                found = True
            first = last
        piece += 1


cdef void attend_shared(step_t *s, const layer_t *layer, int tid) noexcept nogil:
    """Take the beginnings that sequences share until none is left, and wait for the other threads."""
    cdef Py_ssize_t heads = s.m.num_kv_heads, task
    if s.cascade.num_chunks == 0:
        return
    while True:
        task = nv_fetch_add(&s.next_shared)
        if task >= s.cascade.num_chunks * heads:
            break
        if shares(s, layer, task // heads):
            fold_chunk(s, layer, task // heads, task % heads, tid)
    team_barrier(s.m.team)


cdef void attend_in_pieces(step_t *s, const layer_t *layer, int tid) noexcept nogil:
    """Few tiles, many keys: the pieces of each tile are tasks of their own."""
    cdef Py_ssize_t heads = s.m.num_kv_heads, tiles = s.task_start[s.num_seqs] * heads, task, tile
    cdef tile_t t
    while True:
        task = nv_fetch_add(&s.next_task)
        if task >= tiles * s.num_pieces:
            break
        tile = task // s.num_pieces
        set_tile(s, layer, tile // heads, tile % heads, tid, &t)
        s.m.k.attention_part(&t.a, <int>(task % s.num_pieces), s.parts + task * s.part_size)
    team_barrier(s.m.team)
    while True:
        tile = nv_fetch_add(&s.next_merge)
        if tile >= tiles:
            return
        set_tile(s, layer, tile // heads, tile % heads, tid, &t)
        s.m.k.attention_merge(&t.a, s.parts + tile * s.num_pieces * s.part_size)
        finish_tile(s, &t)


cdef Py_ssize_t take_tile(step_t *s, const layer_t *layer, int tid, tile_t *t) noexcept nogil:
    """Take the next tile, unless none is left; its number."""
    cdef Py_ssize_t tiles = s.task_start[s.num_seqs], heads = s.m.num_kv_heads, task = nv_fetch_add(&s.next_task)
    if task < tiles * heads:
        # The last tiles of a long prefill see the most keys: hand them out first, so that no thread ends up alone.
        set_tile(s, layer, tiles - 1 - task // heads, task % heads, tid, t)
    return task


cdef void attend(step_t *s, const layer_t *layer, int tid) noexcept nogil:
    """Take attention tasks until none is left."""
    cdef Py_ssize_t tiles = s.task_start[s.num_seqs], heads = s.m.num_kv_heads, task
    cdef tile_t tiles_of[2]
    cdef tile_t *now
    cdef tile_t *later
    if s.num_pieces > 0:
        attend_in_pieces(s, layer, tid)
        return
    attend_shared(s, layer, tid)
    now, later = &tiles_of[0], &tiles_of[1]
    task = take_tile(s, layer, tid, now)
    while task < tiles * heads:
        task = take_tile(s, layer, tid, later)  # beforehand, so that its keys are on their way when it begins
        now.a.next = &later.a if task < tiles * heads else NULL
        s.m.k.attention(&now.a)
        finish_tile(s, now)
        now, later = later, now
