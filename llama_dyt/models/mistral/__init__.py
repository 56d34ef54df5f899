"""The Mistral family's HF-native classes."""

from llama_dyt.models.auto_classes import register_auto_classes
from llama_dyt.models.mistral.configuration_mistral_dyt import MistralDytConfig
from llama_dyt.models.mistral.modeling_mistral_dyt import MistralDytForCausalLM, MistralDytModel
from llama_dyt.models.spec import FAMILIES

register_auto_classes(FAMILIES.get("mistral_dyt"))

__all__ = ["MistralDytConfig", "MistralDytForCausalLM", "MistralDytModel"]
