"""The Mistral decoder with norms by name, as transformers classes: LLaMA's layers, whose attention sees the window that
the config says.

A saved model carries it along, with the few modules it imports from this package.
"""

from llama_dyt.models.llama.modeling_llama_dyt import LlamaDytForCausalLM, LlamaDytModel
from llama_dyt.models.mistral.configuration_mistral_dyt import MistralDytConfig


class MistralDytModel(LlamaDytModel):
    """The decoder without its head."""

    config: MistralDytConfig
    config_class = MistralDytConfig


class MistralDytForCausalLM(LlamaDytForCausalLM):
    """The decoder with its head and loss."""

    config: MistralDytConfig
    config_class = MistralDytConfig
    decoder_class = MistralDytModel
