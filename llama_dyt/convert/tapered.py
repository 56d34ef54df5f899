"""A model whose norms have become others by a schedule of training, as a plain model of those."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llama_dyt.convert.calibrate import config_with
from llama_dyt.convert.weights import Weights
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.norms.by_name import norm_of
from llama_dyt.norms.spec import NORMS


@dataclass(frozen=True)
class Finished:
    """Weights of the norms that were becoming.

    Attributes:
        sites: how many norms there are.
    """

    weights: Weights
    norm: str
    sites: int

    def __str__(self) -> str:
        return f"The {self.sites} norms have become {self.norm}, and what they were is left out: outputs are the same"


def finish(weights: Weights, name: str, flag: str = "norm") -> Finished:
    """The weights of the model with the norm `name`, which the model's own norms have become: it says the same.

    Args:
        flag: what asked for it, for messages.

    Raises:
        ConfigurationError: the model's norms become no such norm, or some are not there yet.
    """
    config = weights.config
    norm = norm_of(config)
    if norm.gate is None or norm.gate.becomes != name:
        reason = f"goes with --calibrate, since the model's norm, {norm.name}, does not become it by training"
        raise ConfigurationError(Problem(flag, name, reason, "give text to fit it on", clause=True))
    gates = getattr(config, norm.gate.field)
    if underway := [gate for gate in gates if gate < 1]:
        reason = (
            f"{len(underway)} of {len(gates)} norms are still on their way there (their gates are at {min(underway):g} "
            f"to {max(underway):g})"
        )
        remedy = "train on to the end of --taper_steps, or add --calibrate to fit the rest as it is"
        raise ConfigurationError(Problem(flag, name, reason, remedy, also=("taper_steps",)))
    sources = {full: full for full in weights.stored if not _is_of_a_norm(full, config)}
    for full in weights.stored.keys() - sources.keys():
        owner, _, kind = full.rpartition(".")
        sources |= {f"{owner}.{new}": full for new, old in norm.gate.parameters.items() if old == kind}
    # What both norms have: where the parameters of a new model would start.
    both = {*norm.config_fields} & {*NORMS.get(name).config_fields} | {"embedding_scale"}
    made = replace(
        weights,
        config=config_with(config, name, **{field: getattr(config, field) for field in both}),
        stored={full: weights.stored[source] for full, source in sources.items()},
        read=lambda full: weights.read(sources[full]),
    )
    return Finished(made, name, len(gates))


def _is_of_a_norm(name: str, config: Any) -> bool:
    return name.rpartition(".")[0].rpartition(".")[2] in config.norm_places
