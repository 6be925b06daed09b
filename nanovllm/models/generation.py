"""Special token ids and sampling defaults, from config.json and generation_config.json together.

Must not know SamplingParams: it only reads values under the names that vLLM takes from the file.
"""

from __future__ import annotations

from typing import Any

from nanovllm.models.fields import Fields, describe

_MAX_ID = 1 << 31


def eos_token_ids(
    config: Fields, generation: Fields, *, vocab_size: int, default: int | None, warnings: list[str]
) -> tuple[int, ...]:
    """Return every id that ends a sequence: those of config.json, then further ones of generation_config.json.

    Args:
        config: config.json.
        generation: generation_config.json, empty if there is none.
        vocab_size: ids from here on can never be produced; they are dropped with a warning.
        default: the model family's own id, used only when neither file has the key at all.
        warnings: receives a sentence for each surprise.
    """
    ids: list[int] = []
    for fields in (config, generation):
        for token_id in _ids(fields, "eos_token_id"):
            if token_id not in ids:
                ids.append(token_id)
    if default is not None and not (config.has("eos_token_id") or generation.has("eos_token_id")):
        warnings.append(f"{config.where}: eos_token_id is missing, {default} is used, the default of the model type")
        ids = [default]
    unreachable = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
    if unreachable:
        warnings.append(
            f"{config.where}: end-of-sequence ids {unreachable} are outside the vocabulary of {vocab_size}, ignored"
        )
    return tuple(token_id for token_id in ids if 0 <= token_id < vocab_size)


def special_token_id(
    config: Fields, generation: Fields, key: str, *, vocab_size: int, default: int | None = None
) -> int | None:
    """Return the bos or pad id, config.json first; None when there is none.

    Old checkpoints write -1 for "none"; an id outside the vocabulary means the same.
    """
    if default is not None and not (config.has(key) or generation.has(key)):
        ids = [default]
    else:
        ids = _ids(config, key) or _ids(generation, key)
    return ids[0] if ids and 0 <= ids[0] < vocab_size else None


def _ids(fields: Fields, key: str) -> list[int]:
    value = fields.raw(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token_id in ids:
        if type(token_id) is not int or not -_MAX_ID <= token_id < _MAX_ID:
            fields.refuse(key, f"a token id or a list of token ids, not {describe(token_id)}")
    return ids


def sampling_defaults(generation: Fields) -> dict[str, Any]:
    """Return the sampling values that generation_config.json sets, under the names of SamplingParams.

    As in vLLM, `do_sample` plays no part: a temperature in the file counts even beside `do_sample: false`. Length
    limits in the file are left alone, because a job states its own.
    """
    found: dict[str, Any] = {}
    for name, high, or_zero in (
        ("temperature", 1e6, True),  # 0 is greedy
        ("top_p", 1.0, False),
        ("min_p", 1.0, True),
        ("typical_p", 1.0, False),
        ("repetition_penalty", 1e6, False),
    ):
        if generation.raw(name) is not None:
            found[name] = generation.number(name, high=high, or_zero=or_zero)
    if generation.raw("top_k") is not None:
        # -1 is the older spelling of "off".
        found["top_k"] = max(0, generation.integer("top_k", low=-1, high=_MAX_ID - 1))
    return found
