"""The Phi family's HF-native classes."""

from llama_dyt.models.phi.configuration_phi_dyt import PhiDytConfig
from llama_dyt.models.phi.modeling_phi_dyt import PhiDytDecoderLayer, PhiDytForCausalLM, PhiDytModel

__all__ = ["PhiDytConfig", "PhiDytDecoderLayer", "PhiDytForCausalLM", "PhiDytModel"]
