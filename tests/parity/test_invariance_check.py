"""`check_invariance` itself: it finds nothing with our kernels, forces preemptions, and would see a difference."""

import numpy as np
import pytest

from nanovllm import invariance


@pytest.mark.parametrize(
    "dtype, cache", [("float32", "auto"), ("bfloat16", "int8"), ("int8", "bfloat16"), ("int8", "int8")]
)
def test_no_request_depends_on_its_neighbours(models_dir, dtype, cache):
    rows = invariance.check_invariance(models_dir / "qwen3-bf16", dtype=dtype, kv_cache_dtype=cache)
    assert [row["different"] for row in rows] == [0] * 11
    assert rows[-1]["preemptions"] >= 20


def test_a_difference_is_seen(models_dir, monkeypatch):
    answers = invariance._answers

    def disturbed(llm, requests, group):
        found = answers(llm, requests, group)
        if group == 7:
            ids, logprobs = found[3]
            found[3] = (ids, (np.frombuffer(logprobs) + 1e-12).tobytes())
        return found

    monkeypatch.setattr(invariance, "_answers", disturbed)
    rows = invariance.check_invariance(models_dir / "llama-f32", dtype="bfloat16")
    assert {row["variant"]: row["different"] for row in rows}["batches of 7"] == 1
    assert sum(row["different"] for row in rows) == 1
