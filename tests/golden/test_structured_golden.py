"""Thirty schemas under real tokenizers: whatever the masks allow decodes to text that conforms."""

import gzip
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from structured_schemas import SCHEMAS

from nanovllm import LLM, SamplingParams, Tokenizer
from nanovllm.engine.grammar import StepMasks
from nanovllm.structured import GrammarMaker

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

HERE = Path(__file__).parent
BIG_GOLDEN = Path(os.environ.get("NANOVLLM_GOLDEN", HERE.parents[1] / ".." / "shared" / "golden"))
DEMO_MODEL = os.environ.get("NANOVLLM_DEMO_MODEL")
MOST_TOKENS = 400


@pytest.fixture(scope="module", params=["qwen3", "smollm2"])
def big(request, tmp_path_factory):
    packed = BIG_GOLDEN / "tokenizer" / request.param / "tokenizer.json.gz"
    if not packed.is_file():
        pytest.skip(f"{packed} is absent; name the folder with the big tokenizers by NANOVLLM_GOLDEN")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))
    shutil.copy(HERE / "tokenizer" / request.param / "tokenizer_config.json", folder)
    tokenizer = Tokenizer.from_pretrained(folder)
    # a model's vocabulary is often padded past its tokenizer's
    return GrammarMaker(tokenizer, tokenizer.vocab_size + 267, [tokenizer.eos_token_id], 2), tokenizer


def walk(maker, tokenizer, schema, chance):
    """Draw each token evenly from what its mask allows; gives the ids without EOS."""
    grammar = maker.make(SamplingParams(structured_outputs={"json": schema})).copy()
    masks, ids = StepMasks(tokenizer.vocab_size + 267), []
    while not grammar.is_done and len(ids) < 4 * MOST_TOKENS:
        bits = np.unpackbits(masks.of([None], [grammar])["masks"][0].view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits).tolist()
        assert grammar.error is None and allowed and max(allowed) < tokenizer.vocab_size
        token_id = chance.choice(allowed)
        grammar.accept(token_id)
        if token_id != tokenizer.eos_token_id:
            ids.append(token_id)
    assert grammar.is_done
    return ids


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_masks_allow_conforms(big, name):
    maker, tokenizer = big
    for seed in range(3):
        text = tokenizer.decode(walk(maker, tokenizer, SCHEMAS[name], random.Random(f"{name}{seed}")))
        jsonschema.validate(json.loads(text), SCHEMAS[name])


# ---- a real model


@pytest.fixture(scope="module")
def llm():
    if not DEMO_MODEL:
        pytest.skip("NANOVLLM_DEMO_MODEL does not name the demo model's folder")
    return LLM(DEMO_MODEL, dtype="float32", max_model_len=1024, kv_cache_memory="400MiB", max_num_seqs=64)


def conversations():
    """Ten questions for each schema."""
    topics = ("a cat", "Paris", "a recipe", "a train", "the moon", "a lamp", "snow", "a song", "a bank", "tea")
    for name, schema in SCHEMAS.items():
        for topic in topics:
            request = f"Answer with JSON about {topic} that conforms to this schema:\n{json.dumps(schema)}"
            yield name, [{"role": "user", "content": request}]


def params(name, **settings):
    return SamplingParams(max_tokens=MOST_TOKENS, structured_outputs={"json": SCHEMAS[name]}, **settings)


def check(names, outputs):
    for name, output in zip(names, outputs, strict=True):
        assert output.error is None
        (completion,) = output.outputs
        assert completion.finish_reason == "stop", (name, completion.text)
        jsonschema.validate(json.loads(completion.text), SCHEMAS[name])


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0}], ids=["greedy", "sampled"])
def test_300_requests_over_30_schemas_conform(llm, settings):
    names, messages = zip(*conversations(), strict=True)
    assert len(names) == 300 and len(set(names)) == 30
    check(names, llm.chat(messages, [params(name, **settings) for name in names], use_tqdm=False))


@pytest.mark.weights
@pytest.mark.slow
def test_a_bad_schema_is_one_error_among_300(llm):
    names, messages = zip(*conversations(), strict=True)
    settings = [params(name, temperature=0.0) for name in names]
    settings[137] = settings[137].replace(structured_outputs={"json": {"type": "objekt"}})
    outputs = llm.chat(messages, settings, use_tqdm=False)
    assert outputs[137].error.code == "invalid_grammar" and outputs[137].outputs[0].text == ""
    check(names[:137] + names[138:], outputs[:137] + outputs[138:])
