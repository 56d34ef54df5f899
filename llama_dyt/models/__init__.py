"""LLaMA decoders with DyT: the HF-native classes, and the way from a name or a folder to a model."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llama_dyt.models.build import build_config, build_model, count_parameters, empty_model, norm_sites
from llama_dyt.models.configuration_llama_dyt import LlamaDytConfig
from llama_dyt.models.export import export_modeling_files
from llama_dyt.models.families import FAMILIES, Family
from llama_dyt.models.float8 import Float8Linear, use_float8, why_no_float8
from llama_dyt.models.initial_weights import InitialWeights, initial_range, initial_tensor
from llama_dyt.models.linear_loss import linear_cross_entropy
from llama_dyt.models.loss import CausalLmLoss, VocabularyPart, causal_lm_loss
from llama_dyt.models.modeling_llama_dyt import (
    LlamaDytAttention,
    LlamaDytDecoderLayer,
    LlamaDytForCausalLM,
    LlamaDytModel,
    LlamaDytPreTrainedModel,
    ScaledEmbedding,
)
from llama_dyt.models.pretrained import load_pretrained, read_pretrained
from llama_dyt.models.recompute import recompute_activations, recomputed_layers
from llama_dyt.models.rope import RotaryEmbedding

# The classes themselves must not know the package: they also live in exported folders.
LlamaDytPreTrainedModel.export_modeling_files = staticmethod(export_modeling_files)
CausalLmLoss.linear = staticmethod(linear_cross_entropy)

AutoConfig.register(LlamaDytConfig.model_type, LlamaDytConfig, exist_ok=True)
AutoModel.register(LlamaDytConfig, LlamaDytModel, exist_ok=True)
AutoModelForCausalLM.register(LlamaDytConfig, LlamaDytForCausalLM, exist_ok=True)

__all__ = [
    "CausalLmLoss",
    "FAMILIES",
    "Family",
    "Float8Linear",
    "InitialWeights",
    "LlamaDytAttention",
    "LlamaDytConfig",
    "LlamaDytDecoderLayer",
    "LlamaDytForCausalLM",
    "LlamaDytModel",
    "LlamaDytPreTrainedModel",
    "RotaryEmbedding",
    "ScaledEmbedding",
    "VocabularyPart",
    "build_config",
    "build_model",
    "causal_lm_loss",
    "count_parameters",
    "empty_model",
    "export_modeling_files",
    "initial_range",
    "initial_tensor",
    "linear_cross_entropy",
    "load_pretrained",
    "norm_sites",
    "read_pretrained",
    "recompute_activations",
    "recomputed_layers",
    "use_float8",
    "why_no_float8",
]
