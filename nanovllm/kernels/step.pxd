"""What a step's threads walk over: the structs of a model, its layers and one step; the barrier that books time.

Only declarations. Pointers are NULL where a family has no such part.
"""

from libc.stdint cimport int32_t, int64_t, uint16_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from nanovllm.kernels.cascade cimport cascade_t
from nanovllm.kernels.isa cimport nv_kernels, nv_linear
from nanovllm.kernels.linear cimport rows_t
from nanovllm.kernels.team cimport nv_team, team_barrier


cdef enum:
    # Most rows of a step that every thread norms for itself: the norm of a row takes about as long as a barrier.
    OWN_NORM_ROWS = 4


# What the time of a step is booked under, when somebody asks. Waiting at the barrier after an operator is its own time.
cdef enum:
    PHASE_EMBED
    PHASE_NORM
    PHASE_QKV
    PHASE_ROPE
    PHASE_ATTENTION
    PHASE_O
    PHASE_GATE_UP
    PHASE_ACTIVATION
    PHASE_DOWN
    PHASE_HEAD
    NUM_PHASES


cdef struct layer_t:
    const float *input_norm       # [hidden_size]
    const float *post_norm        # [hidden_size]
    const float *q_norm           # [head_dim]
    const float *k_norm           # [head_dim]
    const nv_linear *qkv          # q, k and v rows stacked
    const nv_linear *o
    const nv_linear *gate_up      # a gated pair; with BLAS gate and up rows stacked
    const nv_linear *down
    int window                    # 0: full attention
    char *k_cache                 # block 0; layouts in csrc/kernels.h
    char *v_cache


cdef struct model_t:
    int num_layers
    Py_ssize_t hidden_size
    Py_ssize_t intermediate_size
    int num_heads
    int num_kv_heads
    int head_dim
    int v_stride
    int cache                     # NV_CACHE_*
    Py_ssize_t k_block_bytes      # of one block and KV head
    Py_ssize_t v_block_bytes
    int key_block                 # int8 cache: q and k are rotated in blocks of this; 1: not
    float eps
    float scale
    float rope_scaling            # multiplies cos and sin (YaRN and LongRoPE attention factor)
    const float *inv_freq         # [head_dim / 2]
    int kind                      # of every Linear: what form activations take between operators
    int hadamard_block            # int8: down's input is rotated in blocks of this; 1: not
    const float *embedding_f32    # [vocab_size, hidden_size], or
    const uint16_t *embedding_bf16  # the same as bfloat16, or both NULL: read out of the tied, packed lm_head
    const float *final_norm       # [hidden_size]
    const nv_linear *lm_head
    layer_t *layers
    const nv_kernels *k
    nv_team *team


# One step: what the batch gives, and scratch for its rows.
cdef struct step_t:
    const model_t *m
    Py_ssize_t rows
    Py_ssize_t num_seqs
    const int32_t *token_ids      # [rows]
    const int32_t *positions      # [rows]
    const int64_t *slots          # [rows] block id * NV_BLOCK + offset
    const int32_t *cu_seqlens_q   # [num_seqs + 1]
    const int32_t *block_tables   # [num_seqs, block_table_stride]
    Py_ssize_t block_table_stride
    Py_ssize_t *task_start        # [num_seqs + 1] attention tiles before each sequence, for one KV head
    Py_ssize_t next_task
    Py_ssize_t next_merge
    Py_ssize_t next_shared
    const cascade_t *cascade      # beginnings that several sequences share
    float *states                 # [rows, num_heads, state_size] of rows that are computed together with others
    Py_ssize_t state_size
    Py_ssize_t num_pieces         # 0: a tile is one task; else its pieces are, and come together in `parts`
    float *parts                  # [tiles, num_kv_heads, num_pieces, part_size]
    Py_ssize_t part_size
    float *x                      # [rows, hidden_size] residual stream
    float *qkv                    # [rows, (num_heads + 2 num_kv_heads) head_dim]
    float *attn                   # [rows, num_heads head_dim]; unused with bfloat16
    float *inter                  # [rows, intermediate_size], twice as wide with BLAS; unused with bfloat16
    float *cosines                # [rows, head_dim / 2]
    float *sines
    rows_t hidden_in              # what qkv, gate_up and lm_head read
    rows_t attn_in                # what o reads
    rows_t inter_in               # what down reads
    char *thread_scratch          # [num_threads, scratch_stride] bytes: norm rows, attention, GEMM
    Py_ssize_t scratch_stride
    double *phase_s               # [NUM_PHASES] seconds, or NULL
    double phase_began
    Py_ssize_t attention_at       # offsets of the parts in a thread's scratch
    Py_ssize_t gemm_at
    Py_ssize_t own_rows_at        # normed rows of this thread alone, when there are few
    Py_ssize_t own_scale_at


cdef inline double seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + 1e-9 * now.tv_nsec


cdef inline void meet(step_t *s, int phase, int tid) noexcept nogil:
    """Wait for the other threads at the end of an operator, and book its time."""
    cdef inline double now
    team_barrier(s.m.team)
    if tid == 0 and s.phase_s != NULL:
        now = seconds()
        s.phase_s[phase] += now - s.phase_began
        s.phase_began = now
