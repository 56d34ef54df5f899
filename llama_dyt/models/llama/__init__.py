"""The LLaMA family's HF-native classes.

Copies of their modules lie in the folders of saved models, so they know nothing of the package; whoever imports one
from here gets one that writes such folders.
"""

from llama_dyt.models.auto_classes import register_auto_classes
from llama_dyt.models.export import export_modeling_files
from llama_dyt.models.llama.configuration_llama_dyt import LlamaDytConfig
from llama_dyt.models.llama.modeling_llama_dyt import (
    LlamaDytAttention,
    LlamaDytDecoderLayer,
    LlamaDytForCausalLM,
    LlamaDytModel,
    LlamaDytPreTrainedModel,
    ScaledEmbedding,
)
from llama_dyt.models.spec import FAMILIES

LlamaDytPreTrainedModel.export_modeling_files = staticmethod(export_modeling_files)

register_auto_classes(FAMILIES.get("llama_dyt"))

__all__ = [
    "LlamaDytAttention",
    "LlamaDytConfig",
    "LlamaDytDecoderLayer",
    "LlamaDytForCausalLM",
    "LlamaDytModel",
    "LlamaDytPreTrainedModel",
    "ScaledEmbedding",
]
