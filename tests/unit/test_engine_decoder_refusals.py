"""The decoder's entry refuses every step that would read or write outside its arrays."""

import numpy as np
import pytest

from nanovllm.kernels.decoder import BLOCK_SIZE

NUM_BLOCKS, MAX_ROWS, VOCAB_SIZE = 7, 8, 500  # of the engine below


@pytest.fixture
def decoder(make_engine):
    engine = make_engine("llama-f32", max_model_len=200, max_num_batched_tokens=MAX_ROWS, max_num_seqs=1, threads=1)
    assert engine.limits.num_blocks == NUM_BLOCKS
    return engine.runner.decoder


def step(**changes):
    """Two sequences: three tokens at positions 31 to 33 in blocks 4 and 2, one token at position 0 in block 0."""
    arrays = {
        "token_ids": np.array([5, 6, 7, 8], np.int32),
        "positions": np.array([31, 32, 33, 0], np.int32),
        "slot_mapping": np.array([4 * 32 + 31, 2 * 32, 2 * 32 + 1, 0], np.int64),
        "cu_seqlens_q": np.array([0, 3, 4], np.int32),
        "block_tables": np.array([[4, 2], [0, 0]], np.int32),
    }
    for name, value in changes.items():
        arrays[name] = np.array(value, arrays[name].dtype)
    return arrays.values()


def test_the_step_itself_is_fine(decoder):
    assert BLOCK_SIZE == 32
    decoder.forward(*step())
    assert np.isfinite(decoder.hidden(4)).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"token_ids": [5, 6, 7, VOCAB_SIZE]}, "token id 500 in row 3 is outside the vocabulary of 500"),
        ({"token_ids": [5, -1, 7, 8]}, "token id -1 in row 1"),
        ({"token_ids": [5, 6, 7]}, "token_ids has 3 rows, positions 4"),
        ({"positions": [31, 32, 33]}, "positions 3"),
        ({"slot_mapping": [1, 2, 3]}, "slot_mapping 3"),
        ({"slot_mapping": [NUM_BLOCKS * 32, 64, 65, 0]}, "slot 224 in row 0 is outside the cache of 224"),
        ({"slot_mapping": [0, 64, -1, 0]}, "slot -1 in row 2"),
        ({"cu_seqlens_q": [0, 3, 5]}, "cu_seqlens_q must go from 0 to 4"),
        ({"cu_seqlens_q": [1, 3, 4]}, "cu_seqlens_q must go from 0 to 4"),
        ({"cu_seqlens_q": [0, 4, 4], "positions": [0, 1, 2, 3]}, "sequence 1 of the step has no rows"),
        ({"cu_seqlens_q": [0, 0, 4]}, "sequence 0 of the step has no rows"),
        ({"cu_seqlens_q": [0, 4]}, "1 sequences, 2 block tables"),
        ({"positions": [31, 32, 34, 0]}, "positions of sequence 0 of the step are not consecutive"),
        ({"positions": [31, 32, 33, -1]}, "positions of sequence 1 of the step are not consecutive from 0 up"),
        ({"positions": [62, 63, 64, 0]}, "sequence 0 needs 3 blocks, its table has room for 2"),
        ({"block_tables": [[4, NUM_BLOCKS], [0, 0]]}, "block 7 of sequence 0 is outside the cache of 7"),
        ({"block_tables": [[-1, 2], [0, 0]]}, "block -1 of sequence 0"),
        ({"block_tables": [[4, 2]]}, "2 sequences, 1 block tables"),
    ],
)
def test_refusals(decoder, changes, message):
    with pytest.raises(ValueError, match=message):
        decoder.forward(*step(**changes))


def test_a_wild_position_in_the_middle_of_a_sequence_is_refused(decoder):
    # Position 40 would attend to slots that this sequence has not written.
    with pytest.raises(ValueError, match="positions of sequence 0 of the step are not consecutive"):
        decoder.forward(*step(positions=[31, 40, 33, 0]))


def test_too_many_rows(decoder):
    rows = MAX_ROWS + 1
    with pytest.raises(ValueError, match="9 rows in one step, the scratch was made for 8"):
        decoder.forward(
            *step(token_ids=[1] * rows, positions=range(rows), slot_mapping=range(rows), cu_seqlens_q=[0, rows],
                  block_tables=[[0]])
        )  # fmt: skip


def test_no_rows_is_no_step(decoder):
    decoder.forward(*step(token_ids=[], positions=[], slot_mapping=[], cu_seqlens_q=[0], block_tables=[[0]]))
    with pytest.raises(ValueError, match="the last step had 0 rows, asked for 1"):
        decoder.hidden(1)


@pytest.mark.parametrize("rows, message", [([4], "row 4 is not one of the last step's 4"), ([-1], "row -1")])
def test_logits_of_rows_that_do_not_exist(decoder, rows, message):
    decoder.forward(*step())
    with pytest.raises(ValueError, match=message):
        decoder.logits(np.array(rows, np.int32), np.empty((1, VOCAB_SIZE), np.float32))


def test_logits_into_an_array_of_the_wrong_shape(decoder):
    decoder.forward(*step())
    rows = np.array([0, 1], np.int32)
    for shape in ((1, VOCAB_SIZE), (2, VOCAB_SIZE - 1)):
        with pytest.raises(ValueError, match=r"expected \(2, 500\)"):
            decoder.logits(rows, np.empty(shape, np.float32))


@pytest.mark.parametrize(
    "targets, num_out, num_scratch, message",
    [
        ([VOCAB_SIZE, 0], 2, 1, "target id 500 is outside the vocabulary of 500"),
        ([-1, 0], 2, 1, "target id -1"),
        ([0], 2, 1, "2 rows, 1 targets"),
        ([0, 0], 1, 1, "1 results"),
        ([0, 0], 2, 0, "0 rows of scratch"),
    ],
)
def test_logprobs_that_do_not_fit(decoder, targets, num_out, num_scratch, message):
    decoder.forward(*step())
    with pytest.raises(ValueError, match=message):
        decoder.token_logprobs(
            np.array([0, 1], np.int32), np.array(targets, np.int32), np.empty(num_out, np.float32),
            np.empty((num_scratch, VOCAB_SIZE), np.float32),
        )  # fmt: skip


@pytest.mark.parametrize("num_scratch", [1, 2, 3])
def test_logprobs_do_not_depend_on_how_much_scratch_there_is(decoder, num_scratch):
    decoder.forward(*step())
    rows, targets = np.arange(3, dtype=np.int32), np.array([9, 0, 499], np.int32)
    logits = np.empty((3, VOCAB_SIZE), np.float32)
    decoder.logits(rows, logits)
    wide = logits.astype(np.float64)
    expected = wide[rows, targets] - np.logaddexp.reduce(wide, axis=1)
    out = np.empty(3, np.float32)
    decoder.token_logprobs(rows, targets, out, np.empty((num_scratch, VOCAB_SIZE), np.float32))
    np.testing.assert_allclose(out, expected, atol=1e-5)
