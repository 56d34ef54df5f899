"""What a norm is to everything else, as one value. Plain Python: a copy lies in every saved model's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ATTENTION, FEED_FORWARD, FINAL = "attention", "feed_forward", "final"
"""The places of a decoder that have a norm: before attention, before the feed-forward block, and the last one."""


def _settle_nothing(config: Any) -> None:
    """A norm without fields of its own in the config."""


@dataclass(frozen=True)
class Gate:
    """How the layers of a norm become those of another while they are trained, one after the other.

    A gate is a number from 0, the norm that was there, to 1, the norm that it becomes; each layer has its own.

    Attributes:
        becomes: the name of the norm that is there when all gates are at 1.
        parameters: parameter of that norm's layer → the parameter of this one's that it is.
        over: (HF config of a model with another norm) → fields of the config of the model that this norm is put into;
            ValueError where it cannot be.
        field: of the config: all gates of a model, in the order that data goes through its norms.
        set: (layer, gate) opens the gate of a layer so far.
    """

    becomes: str
    parameters: Mapping[str, str]
    over: Callable[[Any], Mapping[str, Any]]
    field: str
    set: Callable[[Any, float], None]

    def open(self, config: Any, layers: Iterable[Any]) -> None:
        """Open the gates of a model's norms, in their order, as far as the config says, which may be of more layers."""
        for layer, value in zip(layers, getattr(config, self.field), strict=False):
            self.set(layer, value)


@dataclass(frozen=True)
class NormSpec:
    """One kind of norm.

    Attributes:
        name: what `--norm` takes, and `norm_type` in a config.
        module: `__name__` of the file with this spec; it travels with saved models, so it may import torch, the
            standard library, `llama_dyt.norms` and `llama_dyt.config.options` alone.
        build: (HF config, place) → the layer, over a last dimension of `config.hidden_size`.
        starting_value: (parameter, config, place) → the number that fills the parameter of a layer.
        own_parameters: those that other norms do not have. Where weights trained with another norm are taken over,
            these are made new; the others (`weight`) are kept.
        weight_offset: what is added to `weight` before it multiplies. Where weights are taken over by another norm, the
            factor they are is kept.
        folds: the parameter that multiplies the output, channel by channel, and that which is then added to it: both
            can stand in the projections that read the output instead (`convert.fold`). `build` leaves them out at a
            place that the config's `folded_norms` names. Empty: the layer cannot do without.
        fit: (inputs, outputs, config, place) → the parameters of a layer that gives nearest to `outputs`, those of
            another norm, both (tokens, hidden_size). None: it cannot be put into a trained model so.
        embedding_scale: whether the embedding's output has to be multiplied by a learnable scalar, since the norm does
            not bring activations to unit size.
        config_fields: fields of the config that this norm alone has; None in it with other norms.
        settle: (config) puts defaults into these fields, once, when a config is made; ValueError where one cannot be.
        probe: (layer, rows) → named scalars of a layer, on its device, from some of its input (tokens, hidden_size) in
            fp32; these names are keys of a metrics record. None: nothing is looked at.
        settings: dataclass of options: flags that this norm brings. Those named like a config field are put there.
        gate: how it becomes another norm by a schedule of training; None: it stays what it is.
    """

    name: str
    module: str
    build: Callable[[Any, str], Any]
    starting_value: Callable[[str, Any, str], float]
    own_parameters: tuple[str, ...] = ()
    weight_offset: float = 0.0
    folds: tuple[str, ...] = ()
    fit: Callable[[Any, Any, Any, str], Mapping[str, Any]] | None = None
    embedding_scale: bool = False
    config_fields: tuple[str, ...] = ()
    settle: Callable[[Any], None] = _settle_nothing
    probe: Callable[[Any, Any], Mapping[str, Any]] | None = None
    settings: type | None = None
    gate: Gate | None = None
    aliases: tuple[str, ...] = field(default=())
