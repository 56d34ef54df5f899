"""A norm's weight put into the projections that read its output: y = W (w * t) [+ W b] is (W * w) t [+ W b], exactly.

What is left of Dynamic Tanh is tanh(alpha * x), element by element. A bias goes into those projections' biases. At a
site whose readers are not the norm's alone (a head that is the embedding), or have no bias to take one, nothing can be
moved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from llama_dyt.convert.weights import Stored, Weights
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.models import family_of
from llama_dyt.norms.by_name import norm_of


@dataclass(frozen=True)
class Site:
    """One norm and who reads it; full names of modules."""

    norm: str
    place: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Folded:
    """Weights with their norms folded.

    Attributes:
        sites: how many are.
        kept: sentences about those that are not.
        num_saved: numbers that are no more.
    """

    weights: Weights
    sites: int
    kept: tuple[str, ...]
    num_saved: int

    def __str__(self) -> str:
        saved = f"{self.num_saved:,} parameters fewer"
        return "; ".join(
            [f"Weights of {self.sites} norms folded into the projections behind them ({saved})", *self.kept]
        )


def fold(weights: Weights, flag: str = "fold_dyt") -> Folded:
    """The weights of the model that says the same with its norms' weights folded.

    Args:
        flag: what asked for it, for messages.

    Raises:
        ConfigurationError: its norm cannot be folded, or is already.
    """
    config = weights.config
    norm = norm_of(config)
    if not norm.folds:
        reason = f"the model has norm {norm.name}, which cannot do without its weight"
        raise ConfigurationError(Problem(flag, None, reason, "leave it out"))
    if config.folded_norms:
        raise ConfigurationError(Problem(flag, None, "the model's norms are folded already", "leave it out"))
    scale, shift = (*norm.folds, None)[:2]
    sites, kept = list(_sites(config)), []
    if config.tie_word_embeddings:
        final = sites.pop()
        kept.append(
            f"the last norm keeps its weight, since its reader is the embedding too ({final.readers[0]} is tied)"
        )
    scales: dict[str, str] = {}
    shifts: dict[str, str] = {}
    for site in sites:
        projections = [_weight_of(reader, weights) for reader in site.readers]
        if not projections or None in projections:
            reason = f"a {family_of(config).in_words} does not say which projections read {site.norm}"
            raise ConfigurationError(Problem(flag, None, reason, "leave it out"))
        scales |= dict.fromkeys(projections, f"{site.norm}.{scale}")
        if f"{site.norm}.{shift}" in weights.stored:
            without = [reader for reader in site.readers if f"{reader}.bias" not in weights.stored]
            if without:
                reason = f"{site.norm} has a {shift}, and {without[0]}, which reads it, has no bias to take it"
                raise ConfigurationError(Problem(flag, None, reason, "leave it out"))
            shifts |= {f"{reader}.bias": f"{site.norm}.{shift}" for reader in site.readers}

    def read(name: str) -> Tensor:
        tensor = weights.read(name)
        if name in scales:
            wide = tensor.float()  # itself, where it is fp32
            return wide.mul_(weights.read(scales[name]).float()).to(tensor.dtype)
        if name in shifts:
            projection = weights.read(f"{name.removesuffix('.bias')}.weight").double()
            return (tensor.double() + projection @ weights.read(shifts[name]).double()).to(tensor.dtype)
        return tensor

    gone = {*scales.values(), *shifts.values()}
    stored: dict[str, Stored] = {name: entry for name, entry in weights.stored.items() if name not in gone}
    config = copy.deepcopy(config)
    # A place is folded where all its sites are: a layer's, or the last.
    config.folded_norms = sorted({site.place for site in sites})
    folded = replace(weights, config=config, stored=stored, read=read)
    return Folded(folded, len(sites), tuple(kept), weights.num_parameters - folded.num_parameters)


def _weight_of(reader: str, weights: Weights) -> str | None:
    """The tensor that a reader multiplies by: a module's weight, or itself; None where there is none."""
    return next((name for name in (f"{reader}.weight", reader) if name in weights.stored), None)


def _sites(config) -> Iterator[Site]:
    """Every norm of a model, the last one last."""
    family = family_of(config)
    for number in range(config.num_hidden_layers):
        layer = f"{family.layer_prefix}{number}."
        for norm in family.layer_norms:
            readers = tuple(f"{layer}{reader}" for reader in family.read_by(norm))
            yield Site(f"{layer}{norm}", config.norm_places[norm], readers)
    last = family.final_norm
    yield Site(f"{family.decoder}.{last}", config.norm_places[last], (family.head,))
