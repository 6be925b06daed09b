"""Conversion of a GGUF file to a checkpoint directory in Hugging Face's layout.

Owns the order of the work and the record of what was converted. Format, names, tokenizer and disk are the business of
`gguf_file`, `gguf_config`, `gguf_tokenizer` and `writer`. It must not know models or engine: the result is read like
any other checkpoint.

Memory stays bounded: one piece of one tensor is dequantized at a time, and written before the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanovllm.checkpoint.files import quote, read_json
from nanovllm.checkpoint.gguf_config import ModelReader, TensorPlan, row_order
from nanovllm.checkpoint.gguf_file import FLOAT_TYPES, GgufFile, GgufTensor, require_gguf
from nanovllm.checkpoint.gguf_tokenizer import TokenizerReader
from nanovllm.checkpoint.writer import TensorSource, new_directory, write_text, write_weights
from nanovllm.errors import UsageError

#: The record of a conversion, written into the directory. What has it is finished, since a directory appears whole.
MANIFEST_FILE = "conversion.json"
_MANIFEST_VERSION = 1

_TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: Choices for `dtype`, and what "auto" stands for is explained at `convert_gguf`.
DTYPES = ("auto", *_TORCH_DTYPES.values())

#: Numbers dequantized at a time: 16 MiB of float32; dequantizing and rounding need a few times that.
_CHUNK_ITEMS = 4 << 20


def convert_gguf(
    gguf_path: str | os.PathLike,
    out_dir: str | os.PathLike,
    *,
    dtype: str = "auto",
    progress: bool = True,
    overwrite: bool = False,
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Convert a GGUF file to a Hugging Face directory with weights, config, tokenizer and chat template.

    The directory appears whole or not at all. If it already holds the finished conversion of this file in this dtype,
    nothing is done.

    Args:
        gguf_path: the file; llama, qwen2 or qwen3 in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or Q2_K to Q6_K.
        out_dir: must not exist, or be empty, unless `overwrite`.
        dtype: what the weights are stored as. "float32" keeps every number exactly, "float16" and "bfloat16" round to
            nearest. "auto" keeps the type of a model whose matrices are all F32, F16 or BF16 (float32 if they are
            mixed), and gives bfloat16 for a quantized one, at half the size: that rounding is far below what
            quantization has already cost. Where "auto" chose a 16-bit type, a norm or bias stored in F32 stays float32
            if any of its numbers would change.
        progress: show a bar on a terminal, and say on stderr what is being done.
        overwrite: replace an earlier conversion in `out_dir`. A directory that no conversion wrote is never replaced.
        extra_files: texts to put beside the model, by file name.

    Returns:
        `out_dir`.

    Raises:
        UsageError: the gguf package is missing, a setting is wrong, or `out_dir` cannot be used or written.
        CheckpointError: the GGUF file is damaged, or holds something that is not supported; the message names it.
        TokenizerError: its tokenizer cannot be expressed; the message names why.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {quote(dtype)}, expected one of {', '.join(DTYPES)}")
    require_gguf()
    gguf_path, out_dir = Path(gguf_path), Path(out_dir)
    source = GgufFile(gguf_path)
    source_sum = sha256_of(gguf_path)
    if is_finished(out_dir, source_sum, dtype):
        _say(progress, f"{out_dir} already holds {gguf_path.name} as {dtype}; nothing to do")
        return out_dir
    refuse_occupied(out_dir, overwrite=overwrite)

    model = ModelReader(source)
    tokenizer = TokenizerReader(source, model.vocab_size)
    tensors, main_dtype = _tensor_sources(source, model.plans, dtype)
    texts = {
        "config.json": _config_json(model, tokenizer, main_dtype),
        **tokenizer.files(model.config["max_position_embeddings"]),
        **(extra_files or {}),
    }
    weight_bytes = sum(tensor.nbytes for tensor in tensors)
    needed_bytes = weight_bytes + sum(len(text.encode()) for text in texts.values())
    _say(progress, f"Converting {gguf_path.name} to {out_dir}: {len(tensors)} tensors, {_TORCH_DTYPES[main_dtype]}, "
                   f"{weight_bytes / 1e6:,.0f} MB")  # fmt: skip
    with new_directory(out_dir, needed_bytes=needed_bytes, replace=overwrite) as stage:
        sums = {name: write_text(stage / name, text) for name, text in texts.items()}
        with _progress_bar(weight_bytes, progress) as bar:
            sums |= write_weights(stage, tensors, on_bytes=bar.update)
        manifest = {
            "version": _MANIFEST_VERSION,
            "source": gguf_path.name,
            "source_sha256": source_sum,
            "dtype": dtype,
            "files": {name: {"bytes": (stage / name).stat().st_size, "sha256": sums[name]} for name in sorted(sums)},
        }
        write_text(stage / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
    return out_dir


def is_finished(out_dir: Path, source_sha256: str, dtype: str) -> bool:
    """Tell whether a directory holds the finished conversion of a source, judged by its record and its files' sizes."""
    if not (out_dir / MANIFEST_FILE).is_file():
        return False
    manifest = read_json(out_dir / MANIFEST_FILE, what="conversion record")
    if (manifest.get("version"), manifest.get("source_sha256"), manifest.get("dtype")) != (
        _MANIFEST_VERSION, source_sha256, dtype,
    ):  # fmt: skip
        return False
    files = manifest.get("files")
    return isinstance(files, dict) and all(_has_size(out_dir / name, entry) for name, entry in files.items())


def refuse_occupied(out_dir: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless a conversion may put its result at `out_dir`."""
    try:
        if not out_dir.exists():
            return
        if not out_dir.is_dir():
            raise UsageError(f"{out_dir} is a file, expected a directory to create; choose another name")
        if not any(out_dir.iterdir()):
            return
    except OSError as cause:
        raise UsageError(f"{out_dir} cannot be read: {cause.strerror or cause}; choose another directory") from cause
    if not (out_dir / MANIFEST_FILE).is_file():
        raise UsageError(f"{out_dir} is not empty and was not written by a conversion; choose another directory")
    if not overwrite:
        raise UsageError(
            f"{out_dir} holds another conversion (see {MANIFEST_FILE} in it), or one that lost files; choose another "
            "directory, or remove this one"
        )


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, a piece at a time."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as cause:
        raise UsageError(f"{path} cannot be read: {cause.strerror or cause}") from cause
    return digest.hexdigest()


def _tensor_sources(source: GgufFile, plans: Mapping[str, TensorPlan], dtype: str) -> tuple[list[TensorSource], str]:
    """Decide each tensor's dtype and say how to read it; also returns the dtype of the matrices."""
    main_dtype = _auto_dtype(source, plans) if dtype == "auto" else {v: k for k, v in _TORCH_DTYPES.items()}[dtype]
    sources = []
    for name, plan in plans.items():
        tensor = source.tensors[name]
        chosen = main_dtype
        if dtype == "auto" and len(tensor.shape) == 1 and tensor.type_name == "F32" and not _fits(tensor, main_dtype):
            chosen = "F32"
        chunks = partial(_dequantized, tensor, plan.num_permuted_heads)
        sources.append(TensorSource(plan.target, chosen, plan.shape, chunks))
    return sources, main_dtype


def _auto_dtype(source: GgufFile, plans: Mapping[str, TensorPlan]) -> str:
    types = {source.tensors[name].type_name for name, plan in plans.items() if len(plan.shape) > 1}
    if not types <= set(FLOAT_TYPES):
        return "BF16"
    return types.pop() if len(types) == 1 else "F32"


def _fits(tensor: GgufTensor, dtype: str) -> bool:
    """Tell whether a short tensor survives rounding to a dtype unchanged."""
    values = tensor.rows(slice(None)).reshape(-1)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return bool((values.astype(np.float16) == values).all())
    return dtype == "F32" or not (values.view(np.uint32) & 0xFFFF).any()


def _dequantized(tensor: GgufTensor, num_permuted_heads: int) -> Iterator[np.ndarray]:
    """Give a tensor as float32 in pieces of whole rows, in Hugging Face's row order."""
    if len(tensor.shape) == 1:
        values = tensor.rows(slice(None)).reshape(-1)
        yield values[row_order(len(values), num_permuted_heads)] if num_permuted_heads else values
        return
    num_rows = tensor.raw.shape[0]
    order = row_order(num_rows, num_permuted_heads) if num_permuted_heads else None
    step = max(1, _CHUNK_ITEMS // tensor.shape[-1])
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        yield tensor.rows(rows if order is None else order[rows])


def _config_json(model: ModelReader, tokenizer: TokenizerReader, main_dtype: str) -> str:
    ids = tokenizer.ids
    config = model.config | {
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos[0] if len(ids.eos) == 1 else list(ids.eos) or None,
        "pad_token_id": ids.pad,
        "torch_dtype": _TORCH_DTYPES[main_dtype],
    }
    return json.dumps(dict(sorted(config.items())), indent=2) + "\n"


def _has_size(path: Path, entry) -> bool:
    return isinstance(entry, dict) and path.is_file() and path.stat().st_size == entry.get("bytes")


def _progress_bar(total_bytes: int, progress: bool):
    # `disable=None` leaves the bar out where stderr is not a terminal.
    return tqdm(
        total=total_bytes,
        unit="B",
        unit_scale=True,
        desc="converting",
        file=sys.stderr,
        disable=None if progress else True,
    )


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)
