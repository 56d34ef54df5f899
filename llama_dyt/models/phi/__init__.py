"""The Phi family's HF-native classes."""

from llama_dyt.models.auto_classes import register_auto_classes
from llama_dyt.models.phi.configuration_phi_dyt import PhiDytConfig
from llama_dyt.models.phi.modeling_phi_dyt import PhiDytDecoderLayer, PhiDytForCausalLM, PhiDytModel
from llama_dyt.models.spec import FAMILIES

register_auto_classes(FAMILIES.get("phi_dyt"))

__all__ = ["PhiDytConfig", "PhiDytDecoderLayer", "PhiDytForCausalLM", "PhiDytModel"]
