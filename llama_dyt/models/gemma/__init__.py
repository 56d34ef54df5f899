"""The Gemma family's HF-native classes."""

from llama_dyt.models.gemma.configuration_gemma_dyt import GemmaDytConfig
from llama_dyt.models.gemma.modeling_gemma_dyt import GemmaDytForCausalLM, GemmaDytModel

__all__ = ["GemmaDytConfig", "GemmaDytForCausalLM", "GemmaDytModel"]
