"""Sequences that begin with the same blocks attend to them together, and no bit of any of them may show it.

Sharing goes by block ids: where a block is copied to a place of its own, its sequence attends alone. So every case runs
on shared blocks and again on copies.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nanovllm.config import EngineConfig
from nanovllm.engine.llm_engine import load_engine
from nanovllm.engine.sequence import Sequence
from nanovllm.kernels import isa, reference
from nanovllm.kernels.cascade import shared_beginnings
from nanovllm.models import load_spec
from nanovllm.sampling_params import SamplingParams

BLOCK, PIECE = 32, 512
PIECE_BLOCKS = PIECE // BLOCK
DTYPES = ["float32", "bfloat16", "int8"]
LONG = {"max_position_embeddings": 4096}


def table(*pieces, own=()):
    """Blocks of whole pieces, each named by a number, and blocks of the sequence's own."""
    return [PIECE_BLOCKS * piece + i for piece in pieces for i in range(PIECE_BLOCKS)] + [10_000 + b for b in own]


def find(tables, starts, counts=None, group=3, tile_rows=8):
    counts = counts or [1] * len(tables)
    width = max(len(blocks) for blocks in tables)
    padded = np.array([blocks + [0] * (width - len(blocks)) for blocks in tables], np.int32)
    cu_seqlens_q = np.cumsum([0, *counts]).astype(np.int32)
    positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)]).astype(np.int32)
    return shared_beginnings(cu_seqlens_q, positions, padded, group, tile_rows)


def test_one_common_piece():
    tables = [table(0, own=[1]), table(0, own=[2]), table(0, own=[3])]
    assert find(tables, [512, 543, 520]) == ([[0, 1, 2]], [1, 1, 1])


def test_strangers_and_less_than_a_piece_share_nothing():
    assert find([table(0, own=[1]), table(1, own=[2])], [512, 512]) == ([], [0, 0])
    assert find([table(0), table(0)], [511, 511]) == ([], [0, 0])
    almost = [[*table(0)[:-1], 700, 800], [*table(0)[:-1], 701, 801]]
    assert find(almost, [512, 512]) == ([], [0, 0])


def test_a_tree_of_beginnings():
    tables = [table(0, 1, own=[1]), table(5, 6, own=[2]), table(0, 2, own=[3]), table(0, 1, own=[4]), table(9, own=[5])]
    chunks, done = find(tables, [1030] * 4 + [513])
    assert chunks == [[0, 3, 2]]  # those that share two pieces side by side
    assert done == [2, 0, 1, 2, 0]


def test_a_piece_counts_only_when_all_of_it_is_before_the_rows():
    assert find([table(0, 1, own=[1]), table(0, 1, own=[2])], [1024, 1023]) == ([[1, 0]], [1, 1])


def test_no_more_than_eight_sequences_make_a_chunk():
    chunks, done = find([table(0, own=[i]) for i in range(17)], [600] * 17)
    assert [len(chunk) for chunk in chunks] == [8, 8]
    assert sum(done) == 16


def test_rows_that_fill_a_tile_of_their_own_stay_there():
    tables = [table(0, own=[1]), table(0, own=[2])]
    assert find(tables, [512, 512], [4, 4], group=1)[1] == [1, 1]
    assert find(tables, [512, 512], [5, 4], group=1)[1] == [0, 0]
    assert find(tables, [512, 512], [2, 1], group=3)[1] == [0, 0]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=4), st.integers(0, 511), st.integers(1, 9)), min_size=1),
    st.sampled_from([1, 2, 3, 4, 7, 8]),
)
def test_what_is_shared_is_common_and_nobody_is_left_out(seqs, group):
    tables = [table(*path, own=[50 * i + j for j in range(17)]) for i, (path, _, _) in enumerate(seqs)]
    starts, counts = [PIECE * len(path) + extra for path, extra, _ in seqs], [n for _, _, n in seqs]
    chunks, done = find(tables, starts, counts, group)
    chunk_of = {seq: i for i, chunk in enumerate(chunks) for seq in chunk}
    for i, (path, _, _) in enumerate(seqs):
        others = [seqs[j][0] for j in chunk_of if j != i and chunk_of[j] == chunk_of.get(i)]
        common = [
            next((n for n, (a, b) in enumerate(zip(path, p, strict=False)) if a != b), min(len(path), len(p)))
            for p in others
        ]
        assert done[i] == max(common, default=0)
    small = [i for i, (path, _, n) in enumerate(seqs) if path and 2 * n * group <= 8]
    for first in range(3):
        same = [i for i in small if seqs[i][0][0] == first]
        alone = [i for i in same if i not in chunk_of]
        assert len(alone) == (1 if len(same) % 8 == 1 else 0)


class Steps:
    """A decoder whose KV cache holds random numbers, and steps over it on shared blocks or on copies."""

    def __init__(self, folder, threads, dtype, num_blocks=800):
        config = EngineConfig(dtype=dtype, threads=threads, max_model_len=4096, kv_cache_memory=num_blocks << 17)
        self.decoder = load_engine(folder, config)[0].runner.decoder
        assert self.decoder.num_blocks >= num_blocks
        self.rng = np.random.default_rng(0)
        for cache in (self.decoder.k_cache, self.decoder.v_cache):
            shape = cache[:, :num_blocks].shape
            if cache.dtype == np.uint8:  # numbers moved up by 128
                cache[:, :num_blocks] = self.rng.integers(1, 256, shape, np.uint8)
                continue
            values = self.rng.standard_normal(shape).astype(np.float32)
            cache[:, :num_blocks] = values if cache.dtype == np.float32 else values.view(np.uint32) >> 16
        if dtype == "int8":  # behind each block's keys the scales of 32 keys and 32 values
            scales = self.decoder.k_cache[..., -256:].view(np.float32)
            scales[:, :num_blocks] = self.rng.uniform(0.01, 0.03, scales[:, :num_blocks].shape)

    def run(self, tables, starts, counts):
        """The rows' hidden states after all layers."""
        width = max(len(blocks) for blocks in tables)
        padded = np.array([blocks + [0] * (width - len(blocks)) for blocks in tables], np.int32)
        cu_seqlens_q = np.cumsum([0, *counts]).astype(np.int32)
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)]).astype(np.int32)
        owner = np.repeat(np.arange(len(counts)), counts)
        slots = padded[owner, positions // BLOCK].astype(np.int64) * BLOCK + positions % BLOCK
        token_ids = (7 * owner + positions).astype(np.int32) % 400
        self.decoder.forward(token_ids, positions, slots, cu_seqlens_q, padded)
        return self.decoder.hidden(len(positions))

    def copy_blocks(self, tables, free):
        """The same tables over blocks that no two sequences share."""
        copies, seen = [], set()
        for blocks in tables:
            copies.append([block if block not in seen else free.pop() for block in blocks])
            for cache in (self.decoder.k_cache, self.decoder.v_cache):
                cache[:, copies[-1]] = cache[:, blocks]
            seen.update(blocks)
        return copies


def assert_sharing_changes_no_bit(steps, paths, starts, counts, sharing):
    """`paths`: for each sequence the pieces, by number, that lie before its own blocks."""
    free = list(range(steps.decoder.num_blocks))[:800]
    pieces = {}
    tables = []
    for path, start, count in zip(paths, starts, counts, strict=True):
        blocks = []
        for i in range(len(path)):
            key = tuple(path[: i + 1])
            if key not in pieces:
                pieces[key] = [free.pop() for _ in range(PIECE_BLOCKS)]
            blocks += pieces[key]
        tables.append(blocks + [free.pop() for _ in range((start + count - 1) // BLOCK + 1 - len(blocks))])
    copies = steps.copy_blocks(tables, free)
    together = steps.run(tables, starts, counts)
    assert steps.decoder.num_sharing == sharing
    alone = steps.run(copies, starts, counts)
    assert steps.decoder.num_sharing == 0
    assert np.isfinite(alone).all()
    np.testing.assert_array_equal(together, alone)


# 10 sequences: eight fill a chunk. A tree, rows that stop at different positions, one without company.
PATHS = [[1], [1, 2], [1, 2], [1, 3], [1], [1, 2], [4], [1, 3], [1], [1, 2]]
STARTS = [512, 1024, 1100, 1055, 530, 1299, 600, 1024, 700, 1030]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ["llama-f32", "llama-odd", "llama-f16-linear", "qwen3-sharded"])
def test_a_step_on_shared_blocks_has_the_bits_of_one_on_copies(edited_model, case, dtype, threads):
    steps = Steps(edited_model(case, config={**LONG, "rope_scaling": None}), threads, dtype)
    heads, group = {"llama-f32": (2, 2), "llama-odd": (3, 2), "llama-f16-linear": (1, 4), "qwen3-sharded": (1, 5)}[case]
    on_tiles = isa.active_level().startswith("amx")  # of 16 rows; in one of 8 five heads leave no room for others
    shared = {2: 8, 4: 8, 5: 8 if on_tiles else 0}[group]
    if len(PATHS) * heads < 8 * threads and threads > 1:
        shared = 0  # few tiles on two threads: pieces are tasks of their own
    assert_sharing_changes_no_bit(steps, PATHS, STARTS, [1] * 10, shared)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_level_keeps_the_bits(edited_model, level, dtype):
    steps = Steps(edited_model("llama-f32", config=LONG), 2, dtype)
    assert_sharing_changes_no_bit(steps, PATHS, STARTS, [1] * 10, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill_beside_it_and_short_chunks(edited_model, dtype):
    steps = Steps(edited_model("llama-f32", config=LONG), 2, dtype)
    counts = [1, 2, 1, 2, 1, 32, 1, 2, 1, 70]  # 32 and 70 rows have tiles of their own; two rows of two heads join
    assert_sharing_changes_no_bit(steps, PATHS, STARTS, counts, 7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [24, 600, 1100, 4000])
def test_windows_that_cut_the_common_piece(edited_model, window, dtype):
    # At 1100 the sequence at 1299 no longer sees position 0, and its chunk goes alone; at 4000 nothing is cut.
    steps = Steps(edited_model("mistral-swa", config={**LONG, "sliding_window": window}), 2, dtype)
    assert_sharing_changes_no_bit(steps, PATHS, STARTS, [1] * 10, 8)


def serve(folder, prompts, dtype, **settings):
    """Greedy ids and the logits behind them for each prompt, and the most sequences that shared in a step."""
    settings = {"threads": 2, "max_model_len": 1400, "kv_cache_memory": "32MiB", "dtype": dtype, **settings}
    engine = load_engine(folder, EngineConfig(**settings))[0]
    seqs = [Sequence("", list(p), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)) for p in prompts]
    for seq in seqs:
        engine.add(seq)
    logits, sharing, run, newest = {}, 0, engine.runner.run, []

    def run_and_keep_logits(batch):
        token_ids = run(batch)
        newest[:] = np.empty((len(batch.samples), engine.spec.vocab_size), np.float32)
        if batch.samples:
            kept = np.empty((len(batch.samples), engine.spec.vocab_size), np.float32)
            engine.runner.decoder.logits(batch.sample_rows, kept)
            newest[:] = kept
        return token_ids

    engine.runner.run = run_and_keep_logits
    while engine.has_unfinished:
        for row, seq in enumerate(engine.step()):
            logits.setdefault(seq, []).append(newest[row])
        sharing = max(sharing, engine.runner.decoder.num_sharing)
    return [(seq.completion_ids, np.stack(logits[seq])) for seq in seqs], sharing


def check_against_reference(folder, prompts, found):
    spec, weights = load_spec(folder, 1400), load_file(folder / "model.safetensors")
    for prompt, (ids, logits) in zip(prompts, found, strict=True):
        whole = reference.forward(spec, weights, np.array(prompt + ids[:-1])).logits[len(prompt) - 1 :]
        np.testing.assert_allclose(logits, whole, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_prefix_cache_changes_no_logit_and_the_reference_agrees(edited_model, dtype):
    folder = edited_model("llama-f32", config=LONG)
    rng = np.random.default_rng(4)
    beginning = rng.integers(0, 500, 1030).tolist()
    prompts = [beginning[: 1030 - 300 * (i % 2)] + rng.integers(0, 500, 3 + i).tolist() for i in range(10)]
    found, sharing = serve(folder, prompts, dtype, max_num_batched_tokens=300)
    expected, none = serve(folder, prompts, dtype, enable_prefix_caching=False)
    assert sharing >= 8
    assert none == 0
    for (ids, logits), (expected_ids, expected_logits) in zip(found, expected, strict=True):
        assert ids == expected_ids
        np.testing.assert_array_equal(logits, expected_logits)
    if dtype == "float32":
        check_against_reference(folder, prompts, found)
