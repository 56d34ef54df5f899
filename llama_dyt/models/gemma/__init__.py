"""The Gemma family's HF-native classes."""

from llama_dyt.models.auto_classes import register_auto_classes
from llama_dyt.models.gemma.configuration_gemma_dyt import GemmaDytConfig
from llama_dyt.models.gemma.modeling_gemma_dyt import GemmaDytForCausalLM, GemmaDytModel
from llama_dyt.models.spec import FAMILIES

register_auto_classes(FAMILIES.get("gemma_dyt"))

__all__ = ["GemmaDytConfig", "GemmaDytForCausalLM", "GemmaDytModel"]
