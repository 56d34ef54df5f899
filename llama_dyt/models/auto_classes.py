"""Makes transformers' Auto classes know a family: `AutoModelForCausalLM.from_pretrained` then makes its models."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llama_dyt.models.model_spec import ModelSpec


def register_auto_classes(family: ModelSpec) -> type:
    """Returns the family's config class. Again it changes nothing."""
    config_class = family.load_config_class()
    AutoConfig.register(family.name, config_class, exist_ok=True)
    AutoModel.register(config_class, family.load_decoder_class(), exist_ok=True)
    AutoModelForCausalLM.register(config_class, family.load_causal_lm_class(), exist_ok=True)
    return config_class
