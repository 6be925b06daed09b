"""Data sheet of `qwen2`: Qwen1.5, Qwen2, Qwen2.5 and QwQ."""

from __future__ import annotations

from nanovllm.models.fields import Fields
from nanovllm.models.sheet import Biases, Sheet, qwen_windows


class Qwen2(Sheet):
    """Biases on q, k and v always, nowhere else; later layers may have a sliding window."""

    model_type = "qwen2"
    architectures = ("Qwen2ForCausalLM",)
    default_max_positions = 32_768

    def biases(self, config: Fields) -> Biases:
        """Return the fixed set of biases."""
        return Biases(qkv=True, o=False, mlp=False)

    def sliding_windows(self, config: Fields, num_layers: int) -> tuple[int, ...]:
        """Read `use_sliding_window`, `sliding_window`, and `max_window_layers` or `layer_types`."""
        return qwen_windows(config, num_layers)
