"""The Mistral family's HF-native classes."""

from llama_dyt.models.mistral.configuration_mistral_dyt import MistralDytConfig
from llama_dyt.models.mistral.modeling_mistral_dyt import MistralDytForCausalLM, MistralDytModel

__all__ = ["MistralDytConfig", "MistralDytForCausalLM", "MistralDytModel"]
