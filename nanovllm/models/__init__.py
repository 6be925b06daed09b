"""Models as data: from a checkpoint's config.json to a ModelSpec.

`SHEETS` is the list of what is served; a new family is a new sheet in it. Nothing here reads a weight.
"""

from __future__ import annotations

from pathlib import Path

from nanovllm.checkpoint.files import read_json
from nanovllm.errors import ConfigError
from nanovllm.models.fields import Fields
from nanovllm.models.llama import Llama
from nanovllm.models.mistral import Mistral
from nanovllm.models.qwen2 import Qwen2
from nanovllm.models.qwen3 import Qwen3
from nanovllm.models.rope import MAX_POSITIONS
from nanovllm.models.sheet import Sheet
from nanovllm.models.spec import ModelSpec, RopeTable, TensorSlot

__all__ = ["SHEETS", "ModelSpec", "RopeTable", "Sheet", "TensorSlot", "load_spec"]

SHEETS: dict[str, Sheet] = {sheet.model_type: sheet for sheet in (Llama(), Mistral(), Qwen2(), Qwen3())}

_MAX_JSON_BYTES = 16 << 20  # the largest published config.json, with every longrope factor, is well under 1 MB


def load_spec(model_dir: Path, max_model_len: int | None = None) -> ModelSpec:
    """Read config.json and, if there is one, generation_config.json.

    Args:
        model_dir: a checkpoint in Hugging Face layout.
        max_model_len: longest sequence that the engine will hold; it settles the rotary scaling of dynamic and
            longrope models. None: dynamic stays unscaled, longrope serves its longest context.

    Raises:
        ConfigError: a file is missing or damaged, or asks for something that is not served.
    """
    if max_model_len is not None and not 1 <= max_model_len <= MAX_POSITIONS:
        raise ConfigError(f"max_model_len is {max_model_len}, expected a number from 1 to {MAX_POSITIONS}")
    path = Path(model_dir) / "config.json"
    config = Fields(
        read_json(path, what="model configuration", error=ConfigError, max_bytes=_MAX_JSON_BYTES), str(path)
    )
    model_type = config.text("model_type")
    sheet = SHEETS.get(model_type) if model_type is not None else None
    if sheet is None:
        config.refuse("model_type", f"one of {', '.join(SHEETS)}", "this architecture is not supported")
    return sheet.read(config, _generation_config(Path(model_dir)), max_model_len)


def _generation_config(model_dir: Path) -> Fields:
    path = model_dir / "generation_config.json"
    if not path.exists():
        return Fields({}, str(path))
    values = read_json(path, what="generation configuration", error=ConfigError, max_bytes=_MAX_JSON_BYTES)
    return Fields(values, str(path))
