"""Data sheet of `llama`: Llama 1 to 3 and the many models that are Llama with options (SmolLM2, Yi, TinyLlama, …)."""

from __future__ import annotations

from nanovllm.models.fields import Fields
from nanovllm.models.sheet import Biases, Sheet


class Llama(Sheet):
    """`attention_bias` also covers o_proj; `mlp_bias` covers all three Linears of the MLP."""

    model_type = "llama"
    architectures = ("LlamaForCausalLM", "LLaMAForCausalLM")  # the second is the spelling of the first conversions
    default_max_positions = 2048
    default_bos = 1
    default_eos = 2

    def biases(self, config: Fields) -> Biases:
        """Read `attention_bias` and `mlp_bias`."""
        attention = config.boolean("attention_bias", False)
        return Biases(qkv=attention, o=attention, mlp=config.boolean("mlp_bias", False))
