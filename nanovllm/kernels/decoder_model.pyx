"""A model's weights and its paged KV cache, checked once and laid out as the structs that a step's threads walk over.

This module knows arrays and Linears. It has never heard of checkpoints, steps or sequences.
"""

import numpy as np

from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint16_t

from nanovllm.kernels.isa cimport (
    NV_BF16, NV_BLAS_F32, NV_CACHE_BF16, NV_CACHE_F32, NV_CACHE_INT8, NV_F32, kernels, nv_k_block_bytes,
    nv_v_block_bytes, nv_v_stride,
)
from nanovllm.kernels.linear cimport Linear
from nanovllm.kernels.step cimport layer_t
from nanovllm.kernels.team cimport Team

from nanovllm.kernels import memory


CACHES = {"float32": NV_CACHE_F32, "bfloat16": NV_CACHE_BF16, "int8": NV_CACHE_INT8}
CACHE_ELEMENTS = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.uint8}
MAX_KEY_BLOCK = 64  # of the rotation of keys, the largest that the kernel has


def cache_block_bytes(str cache_dtype, int head_dim):
    """Bytes of one block and KV head of the cache, keys and values together."""
    cdef int cache = CACHES[cache_dtype]
    return nv_k_block_bytes(cache, head_dim) + nv_v_block_bytes(cache, head_dim)


cdef class Model:
    """Everything that stays from step to step; the arguments are those of `Decoder`."""

    def __cinit__(self, Team team, spec, inv_freq, float rope_scaling, embedding, final_norm, Linear lm_head, layers,
                  Py_ssize_t num_blocks, int hadamard_block, str cache_dtype):
        self.keep = [team, layers, lm_head]
        self.num_blocks = num_blocks
        self._set_sizes(spec, rope_scaling)
        self.c.team, self.c.k = team.ptr, kernels()
        self.c.inv_freq = self._vector(inv_freq, self.c.head_dim // 2, "inv_freq")
        self.c.final_norm = self._vector(final_norm, self.c.hidden_size, "final_norm")
        self.vocab_size = lm_head.c.n
        self.c.kind, self.c.hadamard_block = lm_head.c.kind, hadamard_block
        self._check(lm_head, self.vocab_size, self.c.hidden_size, "lm_head")
        self.c.lm_head = &lm_head.c
        self._set_embedding(embedding)
        self._set_cache(cache_dtype)
        self.c.layers = <layer_t *>PyMem_Calloc(self.c.num_layers, sizeof(layer_t))
        if self.c.layers == NULL:
            raise MemoryError("no memory for the table of layers")
        if len(layers) != self.c.num_layers:
            raise ValueError(f"{len(layers)} layers given, sliding_windows names {self.c.num_layers}")
        for i, layer in enumerate(layers):
            self._set_layer(i, layer, spec.sliding_windows[i])

    def __dealloc__(self):
        PyMem_Free(self.c.layers)

    def _set_sizes(self, spec, float rope_scaling):
        self.c.num_layers = len(spec.sliding_windows)
        self.c.hidden_size, self.c.intermediate_size = spec.hidden_size, spec.intermediate_size
        self.c.num_heads, self.c.num_kv_heads = spec.num_attention_heads, spec.num_key_value_heads
        self.c.head_dim = spec.head_dim
        self.c.v_stride = <int>nv_v_stride(spec.head_dim)
        self.c.eps = spec.rms_norm_eps
        self.c.scale = spec.head_dim ** -0.5
        self.c.rope_scaling = rope_scaling

    cdef const float *_vector(self, array, Py_ssize_t size, name) except NULL:
        cdef const float[::1] view = array
        if view.shape[0] != size:
            raise ValueError(f"{name} has {view.shape[0]} elements, expected {size}")
        self.keep.append(array)
        return &view[0]

    cdef int _check(self, Linear linear, Py_ssize_t n, Py_ssize_t k, name) except -1:
        if linear.c.n != n or linear.c.k != k:
            raise ValueError(f"{name} has shape {linear.shape}, expected {n, k}")
        if linear.c.kind != self.c.kind:
            raise ValueError(f"{name} is of kind {linear.kind}, the other Linears are not")
        return 0

    def _set_embedding(self, embedding):
        cdef const float[:, ::1] wide
        cdef const uint16_t[:, ::1] narrow
        if embedding is None:
            if self.c.kind not in (NV_F32, NV_BF16):
                raise ValueError("only a packed float32 or bfloat16 lm_head can serve as the embedding")
            return
        if embedding.shape[0] < self.vocab_size or embedding.shape[1] != self.c.hidden_size:
            raise ValueError(f"embedding has shape {embedding.shape}, expected {self.vocab_size, self.c.hidden_size}")
        self.keep.append(embedding)
        if embedding.dtype == np.uint16:
            narrow = embedding
            self.c.embedding_bf16 = &narrow[0, 0]
        else:
            wide = embedding
            self.c.embedding_f32 = &wide[0, 0]

    def _set_cache(self, str cache_dtype):
        self.c.cache = CACHES[cache_dtype]
        self.c.key_block = min(self.c.head_dim & -self.c.head_dim, MAX_KEY_BLOCK) if cache_dtype == "int8" else 1
        self.c.k_block_bytes = nv_k_block_bytes(self.c.cache, self.c.head_dim)
        self.c.v_block_bytes = nv_v_block_bytes(self.c.cache, self.c.head_dim)
        shape = (self.c.num_layers, self.num_blocks, self.c.num_kv_heads, -1)
        count, element = self.c.num_layers * self.num_blocks * self.c.num_kv_heads, CACHE_ELEMENTS[cache_dtype]
        # Pages come from the system on first touch: a cache that is never filled costs no memory.
        self.k_cache = memory.zeros(count * self.c.k_block_bytes).view(element).reshape(shape)
        self.v_cache = memory.zeros(count * self.c.v_block_bytes).view(element).reshape(shape)

    def _set_layer(self, int i, dict weights, int window):
        cdef layer_t *layer = &self.c.layers[i]
        cdef Linear qkv = weights["qkv"], o = weights["o"], gate_up = weights["gate_up"], down = weights["down"]
        cdef Py_ssize_t heads = self.c.num_heads, kv_heads = self.c.num_kv_heads, dim = self.c.head_dim
        cdef char[:, ::1] k_cache = self.k_cache.view(np.int8).reshape(self.c.num_layers, -1)
        cdef char[:, ::1] v_cache = self.v_cache.view(np.int8).reshape(self.c.num_layers, -1)
        self._check(qkv, (heads + 2 * kv_heads) * dim, self.c.hidden_size, f"layer {i} qkv")
        self._check(o, self.c.hidden_size, heads * dim, f"layer {i} o")
        stacked = 1 if gate_up.c.gated else 2
        self._check(gate_up, stacked * self.c.intermediate_size, self.c.hidden_size, f"layer {i} gate_up")
        if gate_up.c.gated == (self.c.kind == NV_BLAS_F32):
            raise ValueError(f"layer {i} gate_up: gate and up are a gated pair, except with BLAS")
        self._check(down, self.c.hidden_size, self.c.intermediate_size, f"layer {i} down")
        layer.qkv, layer.o, layer.gate_up, layer.down = &qkv.c, &o.c, &gate_up.c, &down.c
        layer.input_norm = self._vector(weights["input_norm"], self.c.hidden_size, f"layer {i} input_norm")
        layer.post_norm = self._vector(weights["post_norm"], self.c.hidden_size, f"layer {i} post_norm")
        if weights["q_norm"] is not None:
            layer.q_norm = self._vector(weights["q_norm"], dim, f"layer {i} q_norm")
            layer.k_norm = self._vector(weights["k_norm"], dim, f"layer {i} k_norm")
        layer.window = window
        layer.k_cache, layer.v_cache = &k_cache[i, 0], &v_cache[i, 0]
