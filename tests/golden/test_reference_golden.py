"""The NumPy reference against what transformers computed; every other kernel test leans on this file."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nanovllm.kernels import reference
from nanovllm.models import load_spec

MODELS = Path(__file__).parent / "models"
CASES = sorted(path.name for path in MODELS.iterdir() if path.is_dir())
SETTLED_BY_LENGTH = ("llama-dynamic", "llama-longrope", "llama-longrope-attnfactor")
TOLERANCE = 1e-3  # of the oracle's README; float32 noise is 1e-5 to 3e-5


def read_safetensors(path):
    """Read a file by the published format, on purpose without the package's own loader."""
    data = path.read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + header_size + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            words = np.frombuffer(data[begin:end], dtype="<u2").astype(np.uint32)
            flat = (words << 16).view(np.float32)
        else:
            flat = np.frombuffer(data[begin:end], dtype={"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
        tensors[name] = flat.astype(np.float32).reshape(entry["shape"])
    return tensors


@cache
def load_case(case):
    weights = {}
    for shard in sorted((MODELS / case).glob("*.safetensors")):
        weights |= read_safetensors(shard)
    expected = json.loads((MODELS / case / "expected.json").read_text(encoding="utf-8"))
    with np.load(MODELS / case / "expected.npz") as arrays:
        return weights, expected, {key: arrays[key] for key in arrays.files}


@cache
def load_spec_once(case, max_model_len):
    return load_spec(MODELS / case, max_model_len)


def spec_for(case, length):
    """The spec for a sequence of `length` tokens; where rope depends on the length, transformers uses exactly that."""
    return load_spec_once(case, length if case in SETTLED_BY_LENGTH else None)


def test_all_seventeen_checkpoints_are_here():
    assert len(CASES) == 17


@pytest.mark.parametrize("case", CASES)
def test_slots_name_exactly_the_tensors_of_the_checkpoint(case):
    weights, _, _ = load_case(case)
    slots = load_spec(MODELS / case).slots()
    required = {slot.name: slot.shape for slot in slots if not slot.optional}
    assert required == {name: tensor.shape for name, tensor in weights.items()}
    assert len({slot.name for slot in slots}) == len(slots)
    assert load_spec(MODELS / case).num_parameters == sum(tensor.size for tensor in weights.values())


@pytest.mark.parametrize("case", CASES)
def test_rope_frequencies_equal_the_oracle_to_the_bit(case):
    _, expected, _ = load_case(case)
    rope = spec_for(case, 40).rope  # 40 is the last length before the three length-dependent cases change
    assert rope.rope_type == expected["rope_type"]
    assert rope.attention_scaling == pytest.approx(expected["attention_scaling"], abs=1e-12)
    np.testing.assert_array_equal(rope.inv_freq, np.array(expected["inv_freq_at_start"], dtype=np.float32))


@pytest.mark.parametrize("case", CASES)
def test_eos_ids_are_those_of_both_files(case):
    _, expected, _ = load_case(case)
    assert sorted(load_spec(MODELS / case).eos_token_ids) == expected["eos_token_ids"]


@pytest.mark.parametrize("case", CASES)
def test_prompt_logits_and_logprobs(case):
    weights, expected, arrays = load_case(case)
    for index in range(len(expected["prompts"])):
        ids = arrays[f"prompt_ids_{index}"]
        logits = reference.forward(spec_for(case, len(ids)), weights, ids).logits
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits[-1], arrays[f"last_logits_{index}"], atol=TOLERANCE, rtol=0)
        logprobs = reference.log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(logprobs, arrays[f"prompt_logprobs_{index}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_after_every_layer(case):
    weights, _, arrays = load_case(case)
    ids = arrays["prompt_ids_2"]
    hidden = reference.forward(spec_for(case, len(ids)), weights, ids).hidden
    assert hidden.shape == arrays["hidden_2"].shape
    np.testing.assert_allclose(hidden, arrays["hidden_2"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", ["llama-f32", "qwen3-bf16", "llama-yarn"])
def test_float64_agrees_too(case):
    weights, _, arrays = load_case(case)
    ids = arrays["prompt_ids_4"]
    logits = reference.forward(spec_for(case, len(ids)), weights, ids, dtype=np.float64).logits
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits[-1], arrays["last_logits_4"], atol=1e-4, rtol=0)


def recompute_greedy(case, index, num_steps):
    """Greedy decoding, every step a fresh forward over everything so far."""
    weights, _, arrays = load_case(case)
    ids = list(arrays[f"prompt_ids_{index}"])
    chosen = []
    for _ in range(num_steps):
        logits = reference.forward(spec_for(case, len(ids)), weights, np.array(ids)).logits
        chosen.append(int(logits[-1].argmax()))
        ids.append(chosen[-1])
    return chosen


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_greedy_ids(case, index):
    _, expected, arrays = load_case(case)
    stop = expected["prompts"][index]["first_near_tie_step"]
    # Where rope follows the length, the uncached run of the oracle is the one that a recomputation repeats.
    wanted = arrays.get(f"recompute_ids_{index}", arrays[f"greedy_ids_{index}"])[:stop].tolist()
    assert len(wanted) >= 30
    assert recompute_greedy(case, index, len(wanted)) == wanted


@pytest.mark.parametrize("case", ["llama-longrope", "llama-longrope-attnfactor"])
def test_a_long_sequence_in_one_regime_equals_the_cached_run(case):
    weights, _, arrays = load_case(case)
    ids = np.concatenate((arrays["prompt_ids_4"], arrays["greedy_ids_4"]))  # from 64 tokens to 96, always "long"
    logits = reference.forward(load_spec(MODELS / case, max_model_len=200), weights, ids[:-1]).logits
    assert logits[63:].argmax(axis=1).tolist() == arrays["greedy_ids_4"].tolist()
    np.testing.assert_allclose(logits[-1], arrays["final_logits_4"], atol=TOLERANCE, rtol=0)


def test_dynamic_within_its_original_length_equals_the_cached_run():
    weights, _, arrays = load_case("llama-dynamic")
    ids = np.concatenate((arrays["prompt_ids_1"], arrays["greedy_ids_1"]))  # 2 + 32 tokens, under 40
    logits = reference.forward(load_spec(MODELS / "llama-dynamic"), weights, ids[:-1]).logits
    assert logits[1:].argmax(axis=1).tolist() == arrays["greedy_ids_1"].tolist()


def test_cache_layout_is_the_documented_one():
    k_cache = np.zeros((4, 2, 3, 32), dtype=np.float32)
    v_cache = np.zeros((4, 2, 32, 3), dtype=np.float32)
    k = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    reference.write_kv(k_cache, v_cache, k, -k, np.array([70, 31]))  # block 2 offset 6, block 0 offset 31
    assert k_cache[2, 1, :, 6].tolist() == [3, 4, 5]
    assert v_cache[2, 1, 6, :].tolist() == [-3, -4, -5]
    assert k_cache[0, 0, :, 31].tolist() == [6, 7, 8]
    assert np.count_nonzero(k_cache) == np.count_nonzero(v_cache) == 11  # 12 values, one of them 0


@pytest.mark.parametrize("window", [0, 1, 20])
@pytest.mark.parametrize("context_len", [1, 31, 32, 33, 70])
def test_paged_attention_equals_dense_attention(context_len, window):
    rng = np.random.default_rng(context_len)
    k, v = rng.standard_normal((2, context_len, 2, 8)).astype(np.float32)
    num_queries = min(5, context_len)
    q = rng.standard_normal((num_queries, 6, 8)).astype(np.float32)
    k_cache = np.full((7, 2, 8, 32), np.nan, dtype=np.float32)  # a read past the context would show
    v_cache = np.full((7, 2, 32, 8), np.nan, dtype=np.float32)
    block_table = np.array([5, 0, 3, 6])
    slots = np.array([block_table[position // 32] * 32 + position % 32 for position in range(context_len)])
    reference.write_kv(k_cache, v_cache, k, v, slots)
    paged = reference.paged_attention(q, k_cache, v_cache, block_table, context_len, window)
    positions = np.arange(context_len - num_queries, context_len)
    np.testing.assert_array_equal(paged, reference.attention(q, k, v, positions, window))


def test_attention_by_hand():
    k = np.array([0.0, np.log(3.0)], dtype=np.float32).reshape(2, 1, 1)
    v = np.array([1.0, 5.0], dtype=np.float32).reshape(2, 1, 1)
    q = np.ones((2, 1, 1), dtype=np.float32)
    # The query at 0 sees only 1; at 1 the weights are 1/4 and 3/4; a window of 1 leaves only 5.
    np.testing.assert_allclose(reference.attention(q, k, v, [0, 1]).ravel(), [1.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(reference.attention(q, k, v, [0, 1], window=1).ravel(), [1.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(reference.attention(q, k, v, [0, 1], scale=0.0).ravel(), [1.0, 3.0], rtol=1e-6)


def test_small_kernels_by_hand():
    x = np.array([[3.0, 4.0]], dtype=np.float32)
    root = np.sqrt(12.5 + 0.5)
    np.testing.assert_allclose(reference.rms_norm(x, np.float32([1, 2]), 0.5), [[3 / root, 8 / root]], rtol=1e-6)
    gate = np.array([0.0, 1.0, -200.0, 200.0], dtype=np.float32)
    np.testing.assert_allclose(reference.silu_mul(gate, np.float32([9, 2, 1, 1])), [0, 1.4621172, 0, 200], rtol=1e-6)
    np.testing.assert_allclose(reference.softmax(np.float32([0, -np.inf, np.log(3)])), [0.25, 0, 0.75], rtol=1e-6)
    np.testing.assert_allclose(reference.log_softmax(np.float32([1000, 1000])), [-0.6931472] * 2, rtol=1e-6)
    cos, sin = reference.rope_tables(np.float32([np.pi / 2, 0]), 2.0, [0, 1])
    turned = reference.apply_rope(np.float32([[[1, 2, 3, 4]]] * 2), cos, sin)
    np.testing.assert_allclose(turned[:, 0], [[2, 4, 6, 8], [-6, 4, 2, 8]], atol=1e-6)
