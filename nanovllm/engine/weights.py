"""From a checkpoint's tensors to the arrays and Linears that the decoder wants.

One tensor at a time: mapped pages are given back as soon as they are converted, so loading needs no second copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanovllm.checkpoint.loader import CHUNK_ELEMENTS, Checkpoint, check_tensors, read_float32, read_parts
from nanovllm.engine.rotation import MAX_HADAMARD_BLOCK, Rotation
from nanovllm.kernels.blas import single_threaded
from nanovllm.kernels.linear import PANEL, Linear
from nanovllm.kernels.team import Team
from nanovllm.models.spec import ModelSpec

EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# Buffers that old exporters saved along with the weights; they are derived from config.json.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".masked_bias")


@dataclass(slots=True)
class Weights:
    """A model in the layout of its kernels.

    Attributes:
        embedding: [vocab_size, hidden_size] float32 or bfloat16 bits; None: read out of the tied lm_head.
        final_norm: [hidden_size] float32.
        layers: for each layer the dict that `Decoder` takes.
        hadamard_block: of down's input, 1 without rotation.
        nbytes: memory held, a tied head counted once.
        unexpected: names of tensors that nothing needs.
    """

    embedding: np.ndarray | None
    final_norm: np.ndarray
    lm_head: Linear
    layers: list[dict]
    hadamard_block: int
    nbytes: int
    unexpected: list[str]


class _Packer:
    """Linears whose weights are read straight out of the mapped file."""

    hadamard_block = 1

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, team: Team, kind: str):
        self.checkpoint, self.spec, self.team, self.kind = checkpoint, spec, team, kind

    def vector(self, name: str) -> np.ndarray:
        return read_float32(self.checkpoint, name)

    def bias(self, names: list[str]) -> np.ndarray | None:
        if names[0] + ".bias" not in self.checkpoint.names:
            return None
        return np.concatenate([self.vector(name + ".bias") for name in names])

    def linear(self, *names: str, bias: bool, gated: bool = False) -> Linear:
        weights = [name + ".weight" for name in names]
        arrays = [self.checkpoint.array(name) for name in weights]
        packed = Linear.pack(self.team, self.kind, arrays, self.bias(list(names)) if bias else None, gated)
        for name in weights:
            self.checkpoint.release(name)
        return packed

    def layer(self, prefix: str) -> dict:
        spec, attn, mlp = self.spec, prefix + "self_attn.", prefix + "mlp."
        return {
            "input_norm": self.vector(prefix + "input_layernorm.weight"),
            "post_norm": self.vector(prefix + "post_attention_layernorm.weight"),
            "q_norm": self.vector(attn + "q_norm.weight") if spec.qk_norm else None,
            "k_norm": self.vector(attn + "k_norm.weight") if spec.qk_norm else None,
            "qkv": self.linear(attn + "q_proj", attn + "k_proj", attn + "v_proj", bias=spec.attention_bias),
            "o": self.linear(attn + "o_proj", bias=spec.o_bias),
            "gate_up": self.linear(mlp + "gate_proj", mlp + "up_proj", bias=spec.mlp_bias, gated=True),
            "down": self.linear(mlp + "down_proj", bias=spec.mlp_bias),
        }

    def head(self) -> tuple[np.ndarray | None, Linear, np.ndarray]:
        """(embedding, lm_head, final norm); a tied embedding is read out of the packed head."""
        # A tied model that ships lm_head.weight all the same uses the embedding, as transformers does.
        tied = self.spec.tie_word_embeddings
        name = EMBEDDING if tied else HEAD
        lm_head = self.linear(name.removesuffix(".weight"), bias=False)
        return None if tied else self.embedding(), lm_head, self.vector(FINAL_NORM)

    def embedding(self) -> np.ndarray:
        array = self.checkpoint.array(EMBEDDING)
        if array.dtype != np.uint16:
            return read_float32(self.checkpoint, EMBEDDING)
        copy = array.copy()
        self.checkpoint.release(EMBEDDING)
        return copy


class _BlasPacker(_Packer):
    """Row-major float32 for SciPy's BLAS, widened once."""

    def _stacked(self, names: list[str]) -> np.ndarray:
        shapes = [self.checkpoint.names[name].shape for name in names]
        out = np.empty((sum(shape[0] for shape in shapes), shapes[0][1]), np.float32)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            read_float32(self.checkpoint, name, out[start : start + shape[0]])
            start += shape[0]
        return out

    def linear(self, *names: str, bias: bool, gated: bool = False) -> Linear:
        weight = self._stacked([name + ".weight" for name in names])
        return Linear(weight, self.bias(list(names)) if bias else None)

    def head(self) -> tuple[np.ndarray | None, Linear, np.ndarray]:
        embedding = read_float32(self.checkpoint, EMBEDDING)
        head = embedding if self.spec.tie_word_embeddings else read_float32(self.checkpoint, HEAD)
        return embedding, Linear(head), self.vector(FINAL_NORM)


class _RotatedPacker(_Packer):
    """int8 after the rotation of `rotation.py`; every norm becomes plain division by the root mean square.

    Tensors are turned a few megabytes at a time, and the head, the largest, is never whole in float32.
    """

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, team: Team, kind: str):
        super().__init__(checkpoint, spec, team, kind)
        self.rotation = Rotation(spec.hidden_size, spec.head_dim, spec.intermediate_size)
        self.hadamard_block = self.rotation.hadamard_block
        self._plain_norm = np.ones(spec.hidden_size, np.float32)

    def _reading(self, name: str, norm: np.ndarray) -> np.ndarray:
        """The weight of a Linear that reads the residual stream."""
        weight, row = np.empty(self.checkpoint.names[name].shape, np.float32), 0
        for part in read_parts(self.checkpoint, name, 1):
            weight[row : row + len(part)] = self.rotation.reads_residual(part, norm)
            row += len(part)
        return weight

    def _writing(self, name: str, turn_input: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The weight of a Linear that writes the residual stream and whose input is turned too."""
        weight = self.vector(name)
        columns = max(1, CHUNK_ELEMENTS // len(weight) // MAX_HADAMARD_BLOCK) * MAX_HADAMARD_BLOCK
        for start in range(0, weight.shape[1], columns):
            part = weight[:, start : start + columns]
            part[:] = self.rotation.writes_residual(turn_input(part))
        return weight

    def _pack(self, arrays: list[np.ndarray], bias: np.ndarray | None = None, gated: bool = False) -> Linear:
        return Linear.pack(self.team, self.kind, arrays, bias, gated)

    def layer(self, prefix: str) -> dict:
        spec, turn, attn, mlp = self.spec, self.rotation, prefix + "self_attn.", prefix + "mlp."
        norm = self.vector(prefix + "input_layernorm.weight")
        names = [attn + "q_proj", attn + "k_proj", attn + "v_proj"]
        q, k, v = (self._reading(name + ".weight", norm) for name in names)
        qkv_bias = None
        if spec.attention_bias:
            q_bias, k_bias, v_bias = (self.vector(name + ".bias") for name in names)
            qkv_bias = np.concatenate([q_bias, k_bias, turn.heads_out(v_bias[:, None])[:, 0]])
        o = self._writing(attn + "o_proj.weight", turn.heads_in)
        o_bias = turn.residual(self.vector(attn + "o_proj.bias")) if spec.o_bias else None
        norm = self.vector(prefix + "post_attention_layernorm.weight")
        gate, up = (self._reading(f"{mlp}{name}_proj.weight", norm) for name in ("gate", "up"))
        down = self._writing(mlp + "down_proj.weight", turn.down_in)
        down_bias = turn.residual(self.vector(mlp + "down_proj.bias")) if spec.mlp_bias else None
        return {
            "input_norm": self._plain_norm,
            "post_norm": self._plain_norm,
            "q_norm": self.vector(attn + "q_norm.weight") if spec.qk_norm else None,
            "k_norm": self.vector(attn + "k_norm.weight") if spec.qk_norm else None,
            "qkv": self._pack([q, k, turn.heads_out(v)], qkv_bias),
            "o": self._pack([o], o_bias),
            "gate_up": self._pack(
                [gate, up], self.bias([mlp + "gate_proj", mlp + "up_proj"]) if spec.mlp_bias else None, True
            ),
            "down": self._pack([down], down_bias),
        }

    def head(self) -> tuple[np.ndarray | None, Linear, np.ndarray]:
        norm, turn = self.vector(FINAL_NORM), self.rotation
        name = EMBEDDING if self.spec.tie_word_embeddings else HEAD
        parts = (turn.reads_residual(part, norm) for part in read_parts(self.checkpoint, name, PANEL))
        lm_head = Linear.pack_parts(self.team, self.kind, self.checkpoint.names[name].shape, parts)
        # Rows of the embedding are only copied, never multiplied: bfloat16 halves their memory.
        embedding, row = np.empty(self.checkpoint.names[EMBEDDING].shape, np.uint16), 0
        for part in read_parts(self.checkpoint, EMBEDDING, 1):
            embedding[row : row + len(part)] = to_bf16_bits(turn.residual(part))
            row += len(part)
        return embedding, lm_head, self._plain_norm


def to_bf16_bits(x: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, to nearest even; returns the bits as uint16. Finite values only."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def load_weights(
    checkpoint: Checkpoint, spec: ModelSpec, team: Team, kind: str, progress: Callable[[int, int], None] | None = None
) -> Weights:
    """Check every tensor of the model first, then read them one by one.

    Args:
        checkpoint: open, for the whole call.
        spec: what the checkpoint must hold.
        team: threads that pack.
        kind: of every Linear: blas, float32, bfloat16 or int8.
        progress: called with (layers done, layers in all).

    Raises:
        CheckpointError: a tensor is missing or has the wrong shape or dtype.
    """
    unexpected = check_tensors(checkpoint, spec.slots(), ignorable=(HEAD,))
    packer = {"blas": _BlasPacker, "int8": _RotatedPacker}.get(kind, _Packer)(checkpoint, spec, team, kind)
    layers = []
    # The rotation's many small products are faster on one BLAS thread than with a pool that spins between them.
    with single_threaded():
        embedding, lm_head, final_norm = packer.head()
        for i in range(spec.num_hidden_layers):
            layers.append(packer.layer(f"model.layers.{i}."))
            if progress:
                progress(i + 1, spec.num_hidden_layers)
    shared = kind == "blas" and spec.tie_word_embeddings
    nbytes = lm_head.nbytes + (0 if embedding is None or shared else embedding.nbytes)
    nbytes += sum(part.nbytes for layer in layers for part in layer.values() if part is not None)
    unexpected = [name for name in unexpected if not name.endswith(_IGNORED_SUFFIXES)]
    return Weights(embedding, final_norm, lm_head, layers, packer.hadamard_block, nbytes, unexpected)
