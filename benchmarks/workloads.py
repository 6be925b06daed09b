"""The four workloads that engines are compared on; needs NumPy only, so that every engine's environment can import it.

    W1  64 prompts of 32 to 256 tokens, 128 new tokens each    a generation job
    W2  64 prompts of 512 tokens, 8 new tokens each            classification, extraction, evaluation
    W3  1 prompt of 128 tokens, 128 new tokens                 one prompt, the tail of a job
    W4  64 prompts of 512 shared + 32 own tokens, 16 new each  few-shot evaluation

Prompts are random ids of ordinary tokens, equal for every engine. `seed` changes them, since an engine with a prefix
cache must not meet the same prompts twice.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

NAMES = ("W1", "W2", "W3", "W4")
# Special tokens stand at the beginning of Llama-style vocabularies and at the end of Qwen's.
FIRST_ID, LAST_ID = 100, 151_643


def vocabulary(model_dir: str) -> int:
    """Return one more than the largest ordinary token id."""
    return min(json.loads((Path(model_dir) / "config.json").read_text())["vocab_size"], LAST_ID)


def make(name: str, vocab: int, seed: int = 0) -> tuple[list[list[int]], int]:
    """Return (prompts as token ids, new tokens for each)."""
    rng = np.random.default_rng([seed, NAMES.index(name)])

    def ids(count: int) -> list[int]:
        return rng.integers(FIRST_ID, vocab, count).tolist()

    if name == "W1":
        return [ids(n) for n in rng.integers(32, 257, 64)], 128
    if name == "W2":
        return [ids(512) for _ in range(64)], 8
    if name == "W3":
        return [ids(128)], 128
    shared = ids(512)
    return [shared + ids(32) for _ in range(64)], 16


def warm_up(vocab: int) -> tuple[list[list[int]], int]:
    """Return a small piece of work unlike any workload."""
    rng = np.random.default_rng(99)
    return [rng.integers(FIRST_ID, vocab, n).tolist() for n in (40, 70, 55, 64)], 8
