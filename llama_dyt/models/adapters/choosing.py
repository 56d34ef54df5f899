"""From flags to an adapter: which modules of a model their names mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.core.suggest import unknown
from llama_dyt.models.adapters.adapter import Adapter, Place
from llama_dyt.models.adapters.settings import ALL, AdapterSettings
from llama_dyt.models.spec import family_of


def adapter_asked_for(settings: AdapterSettings, model: nn.Module) -> Adapter:
    """The new adapter that flags ask for.

    Args:
        model: a causal LM, on any device.

    Raises:
        ConfigurationError: names of --lora_targets that are no modules of the model an adapter can sit in.
    """
    rank = settings.lora_rank
    alpha = 2.0 * rank if settings.lora_alpha is None else settings.lora_alpha
    scaling = alpha / (math.sqrt(rank) if settings.use_rslora else rank)
    dropout = settings.lora_dropout or 0.0
    modules = _chosen(settings.lora_targets, model)
    norms = {name for name, _ in _norms(model)} if settings.train_norms else set()
    places = {name: Place(rank, scaling, dropout, settings.use_dora) for name in modules}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout,
        "target_modules": _in_short(modules, model),
        "use_dora": settings.use_dora,
        "use_rslora": settings.use_rslora,
        "modules_to_save": sorted({name.rpartition(".")[2] for name in norms}) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    whole = {f"{name}.{inner}" for name, norm in _norms(model) if name in norms for inner, _ in norm.named_parameters()}
    return Adapter(places, frozenset(whole), config)


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a causal LM that an adapter can sit in, by name: its linear layers and its embedding."""
    family = family_of(model.config)
    embedding = f"{family.decoder}.{family.embedding}"
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or name == embedding  # experts are no modules, and have none
    }


def _chosen(targets: Iterable[str], model: nn.Module) -> list[str]:
    """The modules that names mean, in the model's order."""
    candidates, prefix = adaptable(model), family_of(model.config).layer_prefix
    chosen, problems = set(), []
    for target in [word.strip() for given in targets for word in given.split(",")]:
        if target == ALL:
            meant = {name for name in candidates if name.startswith(prefix)}
        else:  # a module, or what holds some
            meant = {name for name in candidates if f".{target}." in f".{name}."}
        if not meant:
            known = [ALL, *dict.fromkeys(_words(candidates, prefix))]
            problems.append(Problem("lora_targets", target, unknown("module", target, known)))
        chosen |= meant
    if problems:
        raise ConfigurationError(problems)
    return [name for name in candidates if name in chosen]


def _words(names: Iterable[str], prefix: str) -> Iterator[str]:
    """Names as one would give them: without the number of a layer; what is in no layer last."""
    for name in sorted(names, key=lambda name: not name.startswith(prefix)):
        if name.startswith(prefix):
            block, _, last = name.removeprefix(prefix).partition(".")[2].rpartition(".")
            yield from (last, block) if block else (last,)
        else:
            yield name.rpartition(".")[2]


def _in_short(modules: list[str], model: nn.Module) -> list[str]:
    """Modules as peft finds them again by the ends of their names; whole names where ends would mean others too."""
    short = sorted({name.rpartition(".")[2] for name in modules})
    found = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in short]
    return short if set(found) == set(modules) else modules


def _norms(model: Any) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in model.config.norm_places:
            yield name, module
