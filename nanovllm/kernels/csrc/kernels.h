/* The table of functions that one instruction-set level provides.
 *
 * Every level is the same source (body.h) compiled with its own flags, or with intrinsics where the compiler cannot
 * know the instruction. isa.c picks one table at import. All arrays are row-major and float32 unless said otherwise.
 */
#ifndef NV_KERNELS_H
#define NV_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "linear.h"

/* Positions in one KV block. Two AVX512 vectors of scores, and the depth of one AMX tile of values. */
#define NV_BLOCK 32
/* Attention reduces over keys in pieces of this many positions counted from position 0, whoever computes them, so that
 * a row's sum never depends on how prefill was cut or which thread came first. */
#define NV_PIECE 512
/* Query rows that share one pass over the keys: at most this many, and as many as `attention_rows` of a level says. */
#define NV_ATTN_ROWS 16
/* Lanes of every horizontal sum, whatever the level's vector length, so that the order of additions is one. */
#define NV_LANES 16

/* Values are padded to a multiple of this: two of the widest vectors, which the value kernels keep in registers. */
#define NV_V_ALIGN 32

/* What the KV cache holds, whatever the weights are. */
enum { NV_CACHE_F32 = 0, NV_CACHE_BF16 = 1, NV_CACHE_INT8 = 2, NV_CACHES = 3 };
/* An int8 cache holds numbers from -127 to 127 moved up by this. */
#define NV_INT8_OFFSET 128

static inline ptrdiff_t nv_v_stride(int head_dim) {
    return ((ptrdiff_t)head_dim + NV_V_ALIGN - 1) / NV_V_ALIGN * NV_V_ALIGN;
}

/* Bytes of the keys, and of the values, of one block and KV head. */
static inline ptrdiff_t nv_k_block_bytes(int cache, int head_dim) {
    if (cache == NV_CACHE_INT8)
        return ((ptrdiff_t)head_dim + 3) / 4 * 4 * NV_BLOCK + 2 * NV_BLOCK * (ptrdiff_t)sizeof(float);
    return (ptrdiff_t)head_dim * NV_BLOCK * (cache == NV_CACHE_BF16 ? 2 : 4);
}

static inline ptrdiff_t nv_v_block_bytes(int cache, int head_dim) {
    return NV_BLOCK * nv_v_stride(head_dim) * (cache == NV_CACHE_INT8 ? 1 : cache == NV_CACHE_BF16 ? 2 : 4);
}

/* One tile of query rows against one KV head of one layer.
 *
 * Cache blocks, for the kernel that reads them straight through:
 *   float32   k [head_dim][NV_BLOCK]           v [NV_BLOCK][v_stride]
 *   bfloat16  k [head_dim / 2][NV_BLOCK][2]    v [NV_BLOCK / 2][v_stride][2]
 *   int8      k [head_dim / 4][NV_BLOCK][4]    v [NV_BLOCK / 4][v_stride][4]
 *             and behind k, as float, the scales of the keys [NV_BLOCK] and of the values [NV_BLOCK]
 * that is, neighbours along the dimension that is summed lie side by side, as vdpbf16ps and vpdpbusd want. */
typedef struct nv_attention {
    const float *q;              /* row r at q + q_offset[r] */
    float *out;                  /* row r at out + out_offset[r] */
    const ptrdiff_t *q_offset;   /* [num_rows] */
    const ptrdiff_t *out_offset; /* [num_rows] */
    const int32_t *position;     /* [num_rows] position of each row's token: it sees positions up to and including it */
    int num_rows;                /* 1 .. attention_rows */
    int cache;                   /* NV_CACHE_*: what queries and softmax weights are rounded to */
    const void *k_cache;         /* this layer and KV head of block 0 */
    const void *v_cache;
    ptrdiff_t k_block_stride;    /* bytes from one block to the next */
    ptrdiff_t v_block_stride;
    const int32_t *block_table;  /* block ids of this sequence */
    int head_dim;
    int v_stride;                /* head_dim rounded up to NV_V_ALIGN */
    int window;                  /* 0: full attention; else a row sees the last `window` positions */
    float scale;                 /* usually head_dim ** -0.5 */
    int done;                    /* so many pieces are in the rows' states already */
    float *const *state;         /* [num_rows] states, with `done` > 0 or for attention_fold */
    float *scratch;              /* nv_attention_scratch floats, one for each thread */
    struct nv_attention *next;   /* what `attention` gets after this, or NULL: its first keys are asked for meanwhile */
    int asked;                   /* one past the positions of the first piece whose keys were asked for so; 0 at first */
} nv_attention;

/* A row's running state: largest score, sum of weights, and from here on the weighted values [v_stride]. */
#define NV_STATE_VALUES 16

static inline size_t nv_attention_state(int head_dim) {
    return NV_STATE_VALUES + (size_t)nv_v_stride(head_dim);
}

/* Floats of scratch for up to `rows` rows, and one block of bfloat16. */
static inline size_t nv_attention_scratch(int rows, int head_dim) {
    size_t padded = (size_t)nv_v_stride(head_dim);
    return (size_t)rows * (NV_PIECE + NV_PIECE / 2 + 2 * padded + nv_attention_state(head_dim) + 3) +
           NV_BLOCK / 2 * padded + 64;
}

/* Floats of one piece's part: largest score and sum of each row, then the weighted values. */
static inline size_t nv_attention_part(int rows, int head_dim) {
    size_t padded = (size_t)nv_v_stride(head_dim);
    return (size_t)rows * (2 + padded);
}

typedef struct {
    const char *name;
    /* y[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * weight; y may be x. */
    void (*rms_norm)(const float *x, ptrdiff_t ldx, const float *weight, float *y, ptrdiff_t ldy, ptrdiff_t rows,
                     ptrdiff_t n, float eps);
    /* x[0:dim] rotated by half-split RoPE with cos, sin of [dim / 2]. */
    void (*rope)(float *x, const float *cosines, const float *sines, ptrdiff_t dim);
    /* out[i] = silu(gate[i]) * up[i]; out may be gate. */
    void (*silu_mul)(const float *gate, const float *up, float *out, ptrdiff_t n);
    int attention_rows; /* most rows of an nv_attention */
    void (*attention)(const nv_attention *task);
    /* One whole piece that every row sees, folded into the rows' states; rows of any sequences whose block tables agree
     * on it. Pieces come in ascending order from 0; `attention` goes on from there with the same bits. */
    void (*attention_fold)(const nv_attention *task, int piece);
    /* attention in two parts: piece `piece` into its own part, then all parts [pieces] into out. Same bits. */
    void (*attention_part)(const nv_attention *task, int piece, float *part);
    void (*attention_merge)(const nv_attention *task, const float *parts);
    /* Largest logit and log(sum(exp(logits))), the sum in double. */
    void (*log_sum_exp)(const float *logits, ptrdiff_t n, float *max, double *log_sum);
    /* 1 / sqrt(mean(x^2) + eps). */
    float (*inverse_rms)(const float *x, ptrdiff_t n, float eps);
    /* y[0:n] = bfloat16(x) to nearest even, y[n:n_padded] = 0. */
    void (*to_bf16)(const float *x, uint16_t *y, ptrdiff_t n, ptrdiff_t n_padded);
    /* y[0:n] = round(x * 127 / max|x|) as the level's GEMM reads it; returns factor * max|x| / 127. */
    float (*to_int8)(const float *x, int8_t *y, ptrdiff_t n, ptrdiff_t n_padded, float factor);
    /* One position's keys and values of one KV head into place `offset` of its int8 block; temp [head_dim]. */
    void (*store_int8)(const float *k, const float *v, int head_dim, char *k_block, char *v_block, int offset,
                       uint8_t *temp);
    /* x = x @ H / sqrt(block) on each block of a power of two up to 64, H Sylvester's Hadamard matrix. */
    void (*hadamard)(float *x, ptrdiff_t n, int block);
    /* The exclusive or of all 64-bit words: reads everything and does nothing else, to measure bandwidth. */
    uint64_t (*read_all)(const void *data, size_t bytes);
    /* A range of panels of a packed Linear. */
    void (*gemm)(const nv_gemm *task, ptrdiff_t panel_begin, ptrdiff_t panel_end);
} nv_kernels;

extern const nv_kernels nv_kernels_scalar;
#if defined(__x86_64__)
extern const nv_kernels nv_kernels_avx2;
extern const nv_kernels nv_kernels_avx512;
extern const nv_kernels nv_kernels_avx512_bf16;
extern const nv_kernels nv_kernels_amx;
extern const nv_kernels nv_kernels_amx_emulated;
extern const nv_kernels nv_kernels_amx_emulated_avx2;
#endif

/* Bytes of a block of panels: half of this machine's L2 cache, which has room for the rows and their results then. */
extern ptrdiff_t nv_block_bytes;

/* The levels that this build has and this machine can run, weakest first; ends with NULL. */
const nv_kernels *const *nv_available_levels(void);
/* The same, and one that only tests want: AMX with its tiles in plain C. */
const nv_kernels *const *nv_testable_levels(void);

#endif
