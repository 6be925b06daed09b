"""Data sheet of `mistral`: Mistral 7B and its descendants."""

from __future__ import annotations

from nanovllm.models.fields import Fields
from nanovllm.models.sheet import Biases, Sheet, window_size


class Mistral(Sheet):
    """No biases; one sliding window for every layer, or none when `sliding_window` is null."""

    model_type = "mistral"
    architectures = ("MistralForCausalLM",)
    default_max_positions = 131_072
    default_bos = 1
    default_eos = 2

    def biases(self, config: Fields) -> Biases:
        """Return no biases."""
        return Biases(qkv=False, o=False, mlp=False)

    def sliding_windows(self, config: Fields, num_layers: int) -> tuple[int, ...]:
        """Read `sliding_window`; an absent key means 4096, as in transformers."""
        return (window_size(config, default=4096),) * num_layers
