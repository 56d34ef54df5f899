"""The Mixtral family's HF-native classes."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from llama_dyt.models.auto_classes import register_auto_classes
from llama_dyt.models.mixtral.configuration_mixtral_dyt import MixtralDytConfig
from llama_dyt.models.mixtral.modeling_mixtral_dyt import (
    MixtralDytDecoderLayer,
    MixtralDytExperts,
    MixtralDytForCausalLM,
    MixtralDytModel,
)
from llama_dyt.models.spec import FAMILIES

register_auto_classes(FAMILIES.get("mixtral_dyt"))
# The hub's files have a matrix an expert, which transformers joins as it loads: for these classes as for its own.
for name in ("mixtral_dyt", MixtralDytModel.__name__, MixtralDytForCausalLM.__name__):
    register_checkpoint_conversion_mapping(name, get_checkpoint_conversion_mapping("mixtral"), overwrite=True)

__all__ = [
    "MixtralDytConfig",
    "MixtralDytDecoderLayer",
    "MixtralDytExperts",
    "MixtralDytForCausalLM",
    "MixtralDytModel",
]
