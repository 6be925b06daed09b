"""llama.cpp as an engine of the benchmarks, through the C API that llama-cpp-python wraps.

All prompts of a workload are decoded side by side: prefill in batches of `N_BATCH` rows, then one row for each sequence
in every step. A beginning that all prompts share is computed once and copied, which is what its server does with a
prompt cache. MODEL/../gguf-NAME/DTYPE.gguf is the converted model.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

N_BATCH, N_UBATCH = 2048, 512
Row = tuple[int, int, int, bool]  # token, position, sequence, whether its logits are wanted


class LlamaCpp:
    """A loaded model; each call of `run` has a context of its own."""

    def __init__(self, model: str, dtype: str, threads: int):
        import llama_cpp

        self.api: Any = llama_cpp
        self.version = llama_cpp.__version__
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept alive: C calls it
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        path = Path(model).parent / f"gguf-{Path(model).name}" / f"{dtype}.gguf"
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"{path} cannot be loaded")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)
        self._threads = threads

    def run(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """Return `new` greedy ids for each prompt."""
        context = self._context(len(prompts), max(map(len, prompts)) + new)
        shared = _common_length(prompts) if len(prompts) > 1 else 0
        if shared:
            self._decode(context, [(token, i, 0, False) for i, token in enumerate(prompts[0][:shared])])
            memory = self.api.llama_get_memory(context)
            for seq in range(1, len(prompts)):
                self.api.llama_memory_seq_cp(memory, 0, seq, -1, -1)
        rows = [
            (token, i, seq, i == len(prompt) - 1)
            for seq, prompt in enumerate(prompts)
            for i, token in enumerate(prompt)
            if i >= shared
        ]
        completions = [[token] for token in self._decode(context, rows)]
        for step in range(new - 1):
            rows = [(out[-1], len(prompts[seq]) + step, seq, True) for seq, out in enumerate(completions)]
            for out, token in zip(completions, self._decode(context, rows), strict=True):
                out.append(token)
        self.api.llama_free(context)
        return completions

    def _context(self, num_seqs: int, length: int) -> Any:
        params = self.api.llama_context_default_params()
        params.n_seq_max = num_seqs
        params.n_ctx = -(-length // 256) * 256 * num_seqs
        params.n_batch, params.n_ubatch = N_BATCH, N_UBATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        context = self.api.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError("no context could be made")
        return context

    def _decode(self, context: Any, rows: list[Row]) -> list[int]:
        """Compute rows in order; return the greedy ids of those that want logits."""
        found = []
        for at in range(0, len(rows), N_BATCH):
            part = rows[at : at + N_BATCH]
            for i, (token, position, seq, wants_logits) in enumerate(part):
                self._batch.token[i], self._batch.pos[i], self._batch.n_seq_id[i] = token, position, 1
                self._batch.seq_id[i][0], self._batch.logits[i] = seq, wants_logits
            self._batch.n_tokens = len(part)
            if code := self.api.llama_decode(context, self._batch):
                raise RuntimeError(f"llama_decode ended with {code}")
            count = sum(row[3] for row in part)
            if count:
                pointer = ctypes.cast(self.api.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
                found += np.ctypeslib.as_array(pointer, (count, self._vocab_size)).argmax(axis=1).tolist()
        return found


def _common_length(prompts: list[list[int]]) -> int:
    """Return how many tokens all prompts begin with, short of any prompt's last."""
    length = min(map(len, prompts)) - 1
    first = np.array([prompt[:length] for prompt in prompts])
    differing = np.flatnonzero((first != first[0]).any(axis=0))
    return int(differing[0]) if len(differing) else length
