"""Data sheet of `qwen3`: the dense Qwen3 models."""

from __future__ import annotations

from nanovllm.models.fields import Fields
from nanovllm.models.sheet import Biases, Sheet, qwen_windows


class Qwen3(Sheet):
    """Norms on the heads of q and k; head_dim independent of hidden_size; `attention_bias` also covers o_proj."""

    model_type = "qwen3"
    architectures = ("Qwen3ForCausalLM",)
    default_max_positions = 32_768
    default_head_dim = 128
    qk_norm = True

    def biases(self, config: Fields) -> Biases:
        """Read `attention_bias`."""
        attention = config.boolean("attention_bias", False)
        return Biases(qkv=attention, o=attention, mlp=False)

    def sliding_windows(self, config: Fields, num_layers: int) -> tuple[int, ...]:
        """Read `use_sliding_window`, `sliding_window`, and `max_window_layers` or `layer_types`."""
        return qwen_windows(config, num_layers)
