"""From a name or a file to a config, and from a config to a model with its starting weights.

The door that entries and tests use; the model classes themselves travel with saved models and know neither size names
nor this package's errors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.suggest import unknown
from llama_dyt.models.auto_classes import register_auto_classes
from llama_dyt.models.initial_weights import draw_seed, initial_tensor
from llama_dyt.models.presets import find_preset, get_model, read_fields
from llama_dyt.models.spec import ModelSpec, family_of
from llama_dyt.norms.by_name import norm_of
from llama_dyt.norms.spec import NORMS

# What a config file says about how it was saved, and a new model must not inherit.
_OF_THE_FILE = (
    "model_type",
    "architectures",
    "auto_map",
    "family_module",
    "transformers_version",
    "torch_dtype",
    "dtype",
)


def build_config(
    name_or_path: str | Path,
    norm: str | None = None,
    *,
    embedding_scale: bool | None = None,
    **overrides: Any,
) -> PretrainedConfig:
    """The HF config of a model, whose family transformers' Auto classes know from then on.

    Args:
        name_or_path: a preset of any family, or a HF config file, or a folder that holds one; of a family's own model
            type or of one that it reads (a plain llama).
        norm: a name of `norms.spec.NORMS`, such as "dyt" or "rmsnorm". None: "dyt" for a named size, the file's own
            otherwise (a plain llama has rmsnorm, a plain gemma its own).
        embedding_scale: None: as the norm asks.
        overrides: other fields of the config, under HF's names (hidden_size, num_hidden_layers, vocab_size,
            max_position_embeddings, rope_theta, …), and the norm's own (attn_alpha_init_value, …); None leaves a field
            alone.

    Raises:
        ConfigurationError: unknown size, norm or field, an unusable file, figures that do not fit together; all that
            is wrong with the figures is reported at once.
    """
    family, values, own_norm = _read(name_or_path)
    config_class = register_auto_classes(family)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    known = {field.name for field in fields(config_class)} | {"rope_theta", "attn_implementation"}
    known |= {name for spec in NORMS for name in spec.config_fields}
    strangers = [unknown("config field", name, known, listed=False) for name in overrides if name not in known]
    if norm is not None and NORMS.find(norm) is None:
        strangers.append(f"norm {norm!r}: there are {', '.join(sorted(NORMS.names()))}")
    if strangers:
        raise ConfigurationError(strangers)

    norm = norm or own_norm
    if norm != values.get("norm_type"):
        values["embedding_scale"] = None
    if norm != values.get("norm_type") or overrides.get("hidden_size", values["hidden_size"]) != values["hidden_size"]:
        for name in {name for spec in NORMS for name in spec.config_fields}:
            values.pop(name, None)
    values["norm_type"] = norm
    if embedding_scale is not None:
        values["embedding_scale"] = embedding_scale
    of_others = {name for spec in NORMS for name in spec.config_fields} - {*NORMS.get(norm).config_fields}
    _override(values, {name: value for name, value in overrides.items() if name not in of_others})

    if problems := _misfits(values):
        raise ConfigurationError([f"{name_or_path}: {problem}" for problem in problems])
    try:
        return config_class(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        # A strict config puts the reason, after its kind, on the last line.
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ConfigurationError(f"{name_or_path}: {reason}") from error


def extend_positions(config: PretrainedConfig, max_length: int) -> None:
    """Let `config` say that its model has at least `max_length` positions.

    Raises:
        ConfigurationError: its rope scaling is computed from the number of positions, so that another number would be
            another model.
    """
    positions, rope = config.max_position_embeddings, config.rope_parameters
    if positions >= max_length:
        return
    kind = rope["rope_type"]
    if kind == "dynamic" or (kind in ("yarn", "longrope") and rope.get("factor") is None):
        raise ConfigurationError(
            f"--max_length {max_length}: the model has {positions} positions and its {kind} rope scaling is computed "
            f"from that number; give at most {positions}, or set max_position_embeddings in its config.json"
        )
    config.max_position_embeddings = max_length


def build_model(config: PretrainedConfig, *, seed: int | None = None) -> PreTrainedModel:
    """A causal LM with its starting weights, fp32, on the CPU.

    Args:
        config: of `build_config`.
        seed: one seed gives one model, on any machine layout. None: taken from torch's global generator.
    """
    seed = draw_seed() if seed is None else seed
    model = empty_model(config).to_empty(device="cpu")
    # Leaving the meta device made two parameters of a tied one.
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_tensor(name, parameter.shape, config, seed))
    return model


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model in fp32 on the meta device: shapes and names, no memory. Any size is made in seconds.

    Raises:
        ConfigurationError: the config asks for an attention (flash_attention_2) that is not installed.
    """
    causal_lm = family_of(config).load_causal_lm_class()
    try:
        with torch.device("meta"):
            return causal_lm(config).to(torch.float32)
    except ImportError as error:
        raise ConfigurationError(
            f"attention {config._attn_implementation!r} is not there ({str(error).splitlines()[0]}); install "
            "requirements-cuda.txt, or leave the choice to the default (sdpa)"
        ) from error


def require_parts(config: PretrainedConfig) -> None:
    """Raises ConfigurationError where a family names parts of a layer that its layers do not have."""
    family, config = family_of(config), copy.deepcopy(config)
    config.num_hidden_layers = 1
    parts = [name for name, _ in family.layers_of(empty_model(config))[0].named_modules() if name]
    listed = ", ".join(parts)
    problems = [
        f"model family {family.name}: its {field} names {name!r}, which its layers do not have; they have {listed}"
        for field in ("column_parallel", "row_parallel", "layer_norms")
        for name in getattr(family, field)
        if name not in parts
    ]
    if problems:
        raise ConfigurationError(problems)


def count_parameters(config: PretrainedConfig) -> int:
    """Learnable numbers of a model, a tied head counted once."""
    return sum(parameter.numel() for parameter in empty_model(config).parameters())


def norm_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of every norm of a model that there is something to watch of, in the order data goes through.

    Wrappers a booster or torch.compile put around the model show in the names as they do in `named_modules`.
    """
    if norm_of(model.config).probe is None:
        return
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in model.config.norm_places:
            yield name, module


def _read(name_or_path: str | Path) -> tuple[ModelSpec, dict[str, Any], str]:
    """The family, fields of its config, and the norm that stands where none is asked for."""
    preset = find_preset(str(name_or_path))
    if preset is not None:
        return preset.family, preset.family.config_fields(preset.size), "dyt"
    # Also says what is wrong with a name that is neither a preset nor a path, or with the file's figures.
    family, _ = get_model(str(name_or_path))
    _, values = read_fields(name_or_path)
    own_norm = values.get("norm_type", "dyt") if values.get("model_type") == family.name else family.plain_norm
    values = {name: value for name, value in values.items() if name not in _OF_THE_FILE}
    values["norm_type"] = own_norm
    return family, values, own_norm


def _override(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Put `overrides` into `values`, and let follow what is derived from them."""
    overrides = dict(overrides)
    heads = overrides.get("num_attention_heads")
    own_heads = values["num_attention_heads"]
    every_head_its_own_keys = values.get("num_key_value_heads") in (None, own_heads)
    if heads is not None and "num_key_value_heads" not in overrides and every_head_its_own_keys:
        overrides["num_key_value_heads"] = heads
    derived = values.get("head_dim") == values["hidden_size"] // own_heads
    if ("hidden_size" in overrides or heads is not None) and derived:
        del values["head_dim"]
    if (theta := overrides.pop("rope_theta", None)) is not None:
        rope = values.get("rope_parameters") or values.pop("rope_scaling", None) or {}
        values["rope_parameters"] = {**rope, "rope_theta": float(theta)}
    values.update(overrides)


def _misfits(values: Mapping[str, Any]) -> list[str]:
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    key_value_heads = values.get("num_key_value_heads") or heads
    counted = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    problems = [f"{name} is {values[name]}; it must be at least 1" for name in counted if values.get(name, 1) < 1]
    if problems:
        return problems
    if not values.get("head_dim"):
        if hidden % heads:
            problems.append(f"hidden_size {hidden} does not divide by num_attention_heads {heads}")
        elif hidden // heads % 2:
            problems.append(
                f"the head dimension, {hidden} / {heads} = {hidden // heads}, is odd; rotary positions need pairs"
            )
    elif values["head_dim"] % 2:
        problems.append(f"head_dim {values['head_dim']} is odd; rotary positions need pairs")
    if key_value_heads < 1 or heads % key_value_heads:
        problems.append(f"num_attention_heads {heads} does not divide by num_key_value_heads {key_value_heads}")
    return problems
