"""A step laid out as arrays, and a sequence's own end conditions, against hand-computed values."""

import numpy as np
import pytest

from nanovllm.engine.batch import Batch
from nanovllm.engine.scheduler import Scheduled
from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams


def sequence(token_ids, block_table=(), **fields):
    seq = Sequence("", list(token_ids), SamplingParams(**fields.pop("params", {})), **fields)
    seq.block_table = list(block_table)
    return seq


def test_a_mixed_step():
    chunk = sequence(range(100, 110), [7, 2, 5])  # tokens 3 to 7 of 10: a chunk in the middle
    decode = sequence([20, 21, 22, 23, 24, 25], [4, 9])
    prompt = sequence([30, 31], [3])
    step = [Scheduled(chunk, 3, 5), Scheduled(decode, 5, 1), Scheduled(prompt, 0, 2)]
    batch = Batch.build(step, block_size=4)
    assert batch.token_ids.tolist() == [103, 104, 105, 106, 107, 25, 30, 31]
    assert batch.positions.tolist() == [3, 4, 5, 6, 7, 5, 0, 1]
    assert batch.slot_mapping.tolist() == [31, 8, 9, 10, 11, 37, 12, 13]
    assert batch.cu_seqlens_q.tolist() == [0, 5, 6, 8]
    assert batch.block_tables[:, 0].tolist() == [7, 4, 3]
    assert batch.block_tables[0].tolist() == [7, 2, 5]
    assert batch.block_tables[1, :2].tolist() == [4, 9]
    assert batch.sample_rows.tolist() == [5, 7]
    assert [part.seq for part in batch.samples] == [decode, prompt]
    dtypes = [array.dtype for array in (batch.token_ids, batch.positions, batch.cu_seqlens_q, batch.block_tables)]
    assert dtypes == [np.int32] * 4
    assert (batch.slot_mapping.dtype, batch.sample_rows.dtype) == (np.int64, np.int32)


def test_a_step_without_samples():
    batch = Batch.build([Scheduled(sequence(range(9), [1, 0]), 0, 5)], block_size=4)
    assert batch.sample_rows.tolist() == []
    assert batch.samples == []
    assert batch.slot_mapping.tolist() == [4, 5, 6, 7, 0]


def test_slots_beyond_32_bits():
    block = 2**31 // 32
    batch = Batch.build([Scheduled(sequence([5], [block]), 0, 1)], block_size=32)
    assert batch.slot_mapping.tolist() == [2**31]


def test_counts_of_a_sequence():
    seq = sequence([1, 2, 3], max_total=10)
    seq.append(9)
    seq.append(8)
    assert (seq.num_prompt, seq.num_tokens, seq.num_completion, seq.completion_ids) == (3, 5, 2, [9, 8])
    assert seq.finish_reason is None


def test_the_length_ends_a_sequence():
    seq = sequence([1, 2], max_total=4)
    seq.append(5)
    assert seq.finish_reason is None
    seq.append(5)
    assert (seq.finish_reason, seq.stop_reason) == ("length", None)


def test_an_eos_id_ends_a_sequence_without_a_stop_reason():
    seq = sequence([1, 2], max_total=9, stop_ids=frozenset({7}))
    seq.append(7)
    assert (seq.finish_reason, seq.stop_reason, seq.completion_ids) == ("stop", None, [7])


def test_a_stop_token_id_is_the_stop_reason_even_at_the_length_limit():
    seq = sequence([1, 2], max_total=3, stop_ids=frozenset({7, 8}), params={"stop_token_ids": [8]})
    seq.append(8)
    assert (seq.finish_reason, seq.stop_reason) == ("stop", 8)


def test_nothing_stops_before_min_tokens():
    seq = sequence([1, 2], max_total=9, stop_ids=frozenset({7}), params={"min_tokens": 2})
    seq.append(7)
    assert seq.finish_reason is None
    seq.append(7)
    assert seq.finish_reason == "stop"


@pytest.mark.parametrize("token_id", [1, 2])
def test_ids_of_the_prompt_end_nothing(token_id):
    seq = sequence([1, 2], max_total=9, stop_ids=frozenset({1, 2}))
    assert seq.finish_reason is None
    seq.append(token_id)
    assert seq.finish_reason == "stop"
