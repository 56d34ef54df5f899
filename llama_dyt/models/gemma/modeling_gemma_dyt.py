"""The Gemma decoder with norms by name, as transformers classes: LLaMA's layers with the figures that the config says.

A saved model carries it along, with the few modules it imports from this package.
"""

from llama_dyt.models.gemma.configuration_gemma_dyt import GemmaDytConfig
from llama_dyt.models.llama.modeling_llama_dyt import LlamaDytForCausalLM, LlamaDytModel


class GemmaDytModel(LlamaDytModel):
    """The decoder without its head."""

    config: GemmaDytConfig
    config_class = GemmaDytConfig


class GemmaDytForCausalLM(LlamaDytForCausalLM):
    """The decoder with its head and loss."""

    config: GemmaDytConfig
    config_class = GemmaDytConfig
    decoder_class = GemmaDytModel
