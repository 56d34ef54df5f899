"""From a name or a file to a config, and from a config to a model with its starting weights.

Its own file because this is the door the entries and tests use; the model classes themselves travel with saved
models and know neither size names nor this package's errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from llama_dyt.config.sizes import SIZES, Size, canonical_name, get_size
from llama_dyt.config.suggest import unknown
from llama_dyt.errors import ConfigurationError
from llama_dyt.models.configuration_llama_dyt import ALPHA_FIELDS, LlamaDytConfig
from llama_dyt.models.families import FAMILIES
from llama_dyt.models.initial_weights import draw_seed, initial_tensor
from llama_dyt.models.modeling_llama_dyt import LlamaDytForCausalLM
from llama_dyt.norms import NORMS, DynamicTanh

# What a config file says about how it was saved, and a new model must not inherit.
_OF_THE_FILE = ("model_type", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype")


def build_config(
    name_or_path: str | Path,
    norm: str | None = None,
    *,
    attn_alpha_init_value: float | None = None,
    ffn_alpha_init_value: float | None = None,
    dec_alpha_init_value: float | None = None,
    embedding_scale: bool | None = None,
    **overrides: Any,
) -> LlamaDytConfig:
    """The HF config of a model.

    Args:
        name_or_path: a size or alias of `llama_dyt.config.sizes`, or a HF config file, or a folder that holds one; of
            a plain llama or of ours.
        norm: "dyt" or "rmsnorm". None: "dyt" for a named size, the file's own otherwise (a plain llama has rmsnorm).
        attn_alpha_init_value, ffn_alpha_init_value, dec_alpha_init_value: None: the file's, else by width.
        embedding_scale: None: as the norm asks.
        overrides: other fields of the config, under HF's names (hidden_size, num_hidden_layers, vocab_size,
            max_position_embeddings, rope_theta, …); None leaves a field alone.

    Raises:
        ConfigurationError: unknown size, norm or field, an unusable file, figures that do not fit together; all that
            is wrong with the figures is reported at once.
    """
    values, family_norm = _read(name_or_path)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    known = {field.name for field in fields(LlamaDytConfig)} | {"rope_theta", "attn_implementation"}
    strangers = [unknown("config field", name, known, listed=False) for name in overrides if name not in known]
    if norm is not None and norm not in NORMS:
        strangers.append(f"norm {norm!r}: there are {', '.join(sorted(NORMS))}")
    if strangers:
        raise ConfigurationError(strangers)

    norm = norm or family_norm
    if norm != values.get("norm_type"):
        values["embedding_scale"] = None
    if norm != values.get("norm_type") or overrides.get("hidden_size", values["hidden_size"]) != values["hidden_size"]:
        values.update(dict.fromkeys(ALPHA_FIELDS.values()))
    values["norm_type"] = norm
    alphas = (attn_alpha_init_value, ffn_alpha_init_value, dec_alpha_init_value)
    given = dict(zip(ALPHA_FIELDS.values(), alphas, strict=True)) | {"embedding_scale": embedding_scale}
    values.update({name: value for name, value in given.items() if value is not None})
    _override(values, overrides)

    if problems := _misfits(values):
        raise ConfigurationError([f"{name_or_path}: {problem}" for problem in problems])
    try:
        return LlamaDytConfig(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        # A strict config puts the reason, after its kind, on the last line.
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise ConfigurationError(f"{name_or_path}: {reason}") from error


def build_model(config: LlamaDytConfig, *, seed: int | None = None) -> LlamaDytForCausalLM:
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


def empty_model(config: LlamaDytConfig) -> LlamaDytForCausalLM:
    """The model in fp32 on the meta device: shapes and names, no memory. Any size is made in seconds.

    Raises:
        ConfigurationError: the config asks for an attention (flash_attention_2) that is not installed.
    """
    try:
        with torch.device("meta"):
            return LlamaDytForCausalLM(config).to(torch.float32)
    except ImportError as error:
        raise ConfigurationError(
            f"attention {config._attn_implementation!r} is not there ({str(error).splitlines()[0]}); install "
            "requirements-cuda.txt, or leave the choice to the default (sdpa)"
        ) from error


def count_parameters(config: LlamaDytConfig) -> int:
    """Learnable numbers of a model, a tied head counted once."""
    return sum(parameter.numel() for parameter in empty_model(config).parameters())


def norm_sites(model: nn.Module) -> Iterator[tuple[str, DynamicTanh]]:
    """(name, module) of every DynamicTanh of a model, in the order data goes through; none with rmsnorm.

    Wrappers a booster or torch.compile put around the model show in the names as they do in `named_modules`.
    """
    for name, module in model.named_modules():
        if isinstance(module, DynamicTanh):
            yield name, module


def _read(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    """Fields of LlamaDytConfig, and the norm that stands where none is asked for."""
    canonical = canonical_name(str(name_or_path))
    if canonical is not None:
        return _from_size(SIZES[canonical]), "dyt"
    # Also says what is wrong with a name that is neither a size nor a path, or with the file's figures.
    get_size(str(name_or_path))
    path = Path(name_or_path).expanduser()
    path = path / "config.json" if path.is_dir() else path
    values = json.loads(path.read_text(encoding="utf-8"))
    model_type = values.get("model_type", "llama")
    if model_type not in FAMILIES:
        raise ConfigurationError(
            f"{path}: model_type is {model_type!r}; models of the types {', '.join(sorted(FAMILIES))} can be built"
        )
    values = {name: value for name, value in values.items() if name not in _OF_THE_FILE}
    own_norm = values.get("norm_type", "dyt") if model_type == "llama_dyt" else "rmsnorm"
    values["norm_type"] = own_norm
    return values, own_norm


def _from_size(size: Size) -> dict[str, Any]:
    return {
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
        "num_key_value_heads": size.num_key_value_heads,
        "intermediate_size": size.intermediate_size,
        "vocab_size": size.vocab_size,
        "max_position_embeddings": size.max_length,
        "rope_parameters": {"rope_type": "default", "rope_theta": size.rope_theta},
        "rms_norm_eps": size.rms_norm_eps,
    }


def _override(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Put `overrides` into `values`, and let follow what is derived from them."""
    overrides = dict(overrides)
    heads = overrides.get("num_attention_heads")
    own_heads = values["num_attention_heads"]
    every_head_its_own_keys = values.get("num_key_value_heads") in (None, own_heads)
    if heads is not None and "num_key_value_heads" not in overrides and every_head_its_own_keys:
        overrides["num_key_value_heads"] = heads
    if ("hidden_size" in overrides or heads is not None) and "head_dim" not in overrides:
        values.pop("head_dim", None)
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
    if key_value_heads < 1 or heads % key_value_heads:
        problems.append(f"num_attention_heads {heads} does not divide by num_key_value_heads {key_value_heads}")
    return problems
