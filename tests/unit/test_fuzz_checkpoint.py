"""2,000 damaged checkpoints: each loads or gives an error of ours; none crashes or takes over 1 GB.

Run as a script, this file is the child process that reads one kind of damaged file under an address-space limit; a
crash then ends the child, not the tests. `python test_fuzz_checkpoint.py KIND NUMBER` repeats one mutation.
"""

import copy
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests/golden/models"
LIMIT_BYTES = 1 << 30

MUTATIONS = {"safetensors": 800, "index": 300, "config": 500, "tokenizer": 400}
CASES = {
    "safetensors": ["llama-f16-linear", "qwen2-bf16-tied"],
    "index": ["qwen3-sharded"],
    "config": ["llama-yarn", "llama-longrope", "llama-newstyle", "qwen2-swa-layers", "qwen3-bf16", "mistral-swa"],
    "tokenizer": ["llama-f32", "llama-bf16-llama3rope", "qwen2-bf16-tied", "llama-odd"],
}
FILES = {
    "safetensors": ["model.safetensors"],
    "index": ["model.safetensors.index.json"],
    "config": ["config.json", "config.json", "generation_config.json"],
    "tokenizer": ["tokenizer.json", "tokenizer.json", "tokenizer_config.json"],
}

# Values that JSON allows and a reader may not expect. A RAW text is written as it stands.
RAW = {"@RAW0@": "9" * 5000, "@RAW1@": "[" * 100_000 + "]" * 100_000, "@RAW2@": '{"a":' * 3000 + "1" + "}" * 3000}
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**32, 2**48, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(
        -(2**63),
        0.5,
        -0.5,
        1e-320,
        1e20,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "a",
        "\0",
        "\ud800",
        "../x",
        "x" * 5000,
    ),
    *([], {}, [[]], [None], {"": None}, [0] * 5000, list("ab"), [[2**62] * 40], *RAW),
]


# ---- mutation


def damage_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data)) if data else 0
        length = rng.choice([1, 2, 8, 100])
        kind = rng.randrange(6)
        if kind <= 1 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[rng.randrange(len(data) + 1) :][:length]
        elif kind == 4:
            data[at : at + length] = rng.choice([b"\0", b"\xff", b"9", b"[", b'"', b"}"]) * length
        else:
            del data[at:]
    return bytes(data)


def nodes(value):
    """Every (container, key) of a parsed JSON document."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from nodes(value[key])


def damage_json(text, rng):
    document = json.loads(text)
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(nodes(document))
        if not places:
            break
        # Part of the damage at the top level, where the meaning is; the rest anywhere.
        top = [place for place in places if place[0] is document]
        container, key = rng.choice(places if rng.random() < 0.7 else top)
        kind = rng.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1:
            other, other_key = rng.choice(places)
            container[key] = copy.deepcopy(other[other_key])
        elif kind == 2 and isinstance(container, dict):
            container[rng.choice(["", "__metadata__", "rope_scaling", "\ud800", key + "x"])] = container.pop(key)
        elif kind == 3 and type(container[key]) in (int, float):
            container[key] = rng.choice(
                [-container[key], container[key] + 1, container[key] * 2, container[key] * 10**9]
            )
        else:
            container[key] = copy.deepcopy(rng.choice(VALUES))
    text = json.dumps(document)
    for placeholder, raw in RAW.items():
        text = text.replace(f'"{placeholder}"', raw)
    return text.encode()


def damage_safetensors(data, rng):
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(10)
    if kind == 0:
        return struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])) + data[8:]
    if kind == 1:
        return damage_bytes(data, rng)
    if kind == 2:
        return data[: rng.randrange(len(data))]
    damaged = damage_json(header, rng) if kind < 8 else damage_bytes(header, rng)
    return struct.pack("<Q", len(damaged)) + damaged + rest


def mutate(name, data, rng):
    if name.endswith(".safetensors"):
        return damage_safetensors(data, rng)
    return damage_json(data, rng) if rng.random() < 0.75 else damage_bytes(data, rng)


# ---- what is done with each damaged checkpoint


def read_weights(folder):
    from nanovllm.checkpoint.loader import Checkpoint, check_tensors, read_float32
    from nanovllm.models import load_spec

    slots = load_spec(folder).slots()
    with Checkpoint(folder) as checkpoint:
        checkpoint.identity()
        check_tensors(checkpoint, slots)
        for slot in slots:
            if slot.name in checkpoint.names:
                read_float32(checkpoint, slot.name)


def read_config(folder):
    from nanovllm.checkpoint.loader import Checkpoint, check_tensors
    from nanovllm.models import load_spec

    load_spec(folder, 64)
    with Checkpoint(folder) as checkpoint:
        check_tensors(checkpoint, load_spec(folder).slots())


def read_tokenizer(folder):
    from nanovllm.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(folder)
    ids = tokenizer.encode("Hello, wörld 123 <|im_end|>")
    tokenizer.decode(ids)
    tokenizer.encode_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=True)


READERS = {"safetensors": read_weights, "index": read_weights, "config": read_config, "tokenizer": read_tokenizer}


# ---- the child process


def limit_address_space():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        bytearray(LIMIT_BYTES + (64 << 20))
    except MemoryError:
        return
    raise SystemExit("the address-space limit does not hold")


def run_child(kind, numbers):
    """Read damaged files; print one JSON object with the outcome of each."""
    from nanovllm.errors import NanovllmError

    warnings.simplefilter("error")
    read = READERS[kind]
    outcome = {"loaded": 0, "refused": 0, "failed": [], "sample": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {case: Path(shutil.copytree(MODELS / case, Path(scratch) / case)) for case in CASES[kind]}
        for folder in folders.values():
            read(folder)  # undamaged, it must load; and all imports happen before the limit
        limit_address_space()
        for number in numbers:
            print(f"{kind} {number}", file=sys.stderr, flush=True)  # the last line names the one that crashed
            rng = random.Random(f"{kind} {number}")
            case = rng.choice(CASES[kind])
            name = rng.choice([name for name in FILES[kind] if (folders[case] / name).exists()])
            whole = (folders[case] / name).read_bytes()
            (folders[case] / name).write_bytes(mutate(name, whole, rng))
            try:
                read(folders[case])
                outcome["loaded"] += 1
            except NanovllmError as error:
                outcome["refused"] += 1
                outcome["sample"][type(error).__name__] = str(error)
                if "\n" in str(error) or len(str(error)) > 2000:
                    outcome["failed"].append(f"{kind} {number} ({case}/{name}): message {str(error)[:3000]!r}")
            except BaseException as error:  # a Rust panic is no Exception
                outcome["failed"].append(f"{kind} {number} ({case}/{name}): {type(error).__name__}: {str(error)[:300]}")
            (folders[case] / name).write_bytes(whole)
    print(json.dumps(outcome))


def test_the_number_of_mutations_is_as_promised():
    assert sum(MUTATIONS.values()) == 2000


@pytest.mark.parametrize("kind", MUTATIONS)
def test_damaged_checkpoint_loads_or_gives_an_error_of_ours(kind):
    done = subprocess.run(
        [sys.executable, __file__, kind],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"the child ended with {done.returncode}: {done.stderr[-2000:]}"
    outcome = json.loads(done.stdout)
    assert outcome["failed"] == []
    assert outcome["loaded"] + outcome["refused"] == MUTATIONS[kind]
    # Both outcomes occur in numbers, or the damage is too light or too heavy to show anything.
    assert outcome["loaded"] > 20
    assert outcome["refused"] > MUTATIONS[kind] / 4


if __name__ == "__main__":
    run_child(sys.argv[1], [int(sys.argv[2])] if len(sys.argv) > 2 else range(MUTATIONS[sys.argv[1]]))
