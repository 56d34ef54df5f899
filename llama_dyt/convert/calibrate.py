"""Another norm put into a trained model, each layer of it fitted to what the model's own norm gave on some text.

Experimental: no fit makes the model say the same, since the norms are other functions. Layer after layer the text goes
through the model as it was and through the model as it becomes; a new norm is fitted to the old one's outputs on what
it will really get, the errors of all before it included. The model is held in memory twice but for what both share.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llama_dyt.convert.weights import Stored, Weights
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.models import empty_model, family_of
from llama_dyt.models.ops.document_attention import causal_mask
from llama_dyt.norms.by_name import norm_of
from llama_dyt.norms.spec import NORMS


@dataclass(frozen=True)
class Calibrated:
    """Weights with another norm.

    Attributes:
        errors: site → what the fit leaves of the old norm's output: the norm of the difference by that of the output.
        loss, loss_before: mean cross entropy of the text, by the new model and by the old.
        num_tokens: of the text.
    """

    weights: Weights
    norm: str
    errors: dict[str, float]
    loss: float
    loss_before: float
    num_tokens: int

    def __str__(self) -> str:
        site, worst = max(self.errors.items(), key=lambda item: item[1])
        return (
            f"Norms exchanged for {self.norm}, fitted on {self.num_tokens:,} tokens: the loss is {self.loss:.4f}, and "
            f"was {self.loss_before:.4f}; the worst fit, {worst:.0%} off, is at {site}. This is an experiment: train on"
        )


@torch.no_grad()
def calibrate(weights: Weights, name: str, batches: Sequence[Tensor], flag: str = "norm") -> Calibrated:
    """The weights of a model with the norm `name`, fitted on text.

    Args:
        batches: token ids, (rows, length) each.
        flag: what asked for it, for messages.

    Raises:
        ConfigurationError: the norm cannot be fitted, or is the model's own.
    """
    norm, family = NORMS.get(name), family_of(weights.config)
    if norm.fit is None:
        raise ConfigurationError(Problem(flag, name, "it cannot be fitted to another norm's outputs", "take dyt"))
    if norm_of(weights.config).name == name:
        raise ConfigurationError(Problem(flag, name, "the model has that norm already", "leave it out"))
    try:
        fields = norm.gate.over(weights.config) if norm.gate is not None else {}
    except ValueError as error:
        raise ConfigurationError(Problem(flag, name, str(error), "take another")) from error
    before = _loaded(weights)
    config = config_with(weights.config, name, **fields)
    after, new = _sharing(before, config)
    streams = _Streams(before, after, family, batches)
    errors: dict[str, float] = {}

    def fit(owner_before: nn.Module, owner_after: nn.Module, site: str, full_name: str, run_before, run_after) -> None:
        outputs = _seen(getattr(owner_before, site), run_before, outputs=True)
        inputs = _seen(getattr(owner_after, site), run_after, outputs=False)
        place = config.norm_places[site]
        for parameter, value in norm.fit(inputs, outputs, config, place).items():
            new[f"{full_name}.{parameter}"].copy_(value)
        layer = getattr(owner_after, site)
        if norm.gate is not None:  # what was fitted is behind it
            norm.gate.set(layer, 1.0)
        left = layer(inputs) - outputs
        if norm.gate is not None:
            norm.gate.set(layer, 0.0)
        errors[full_name] = (left.norm() / outputs.norm().clamp_min(1e-30)).item()

    for number, (layer_before, layer_after) in enumerate(zip(family.layers_of(before), family.layers_of(after))):
        for site in family.layer_norms:
            full_name = f"{family.layer_prefix}{number}.{site}"
            fit(
                layer_before,
                layer_after,
                site,
                full_name,
                lambda layer=layer_before: streams.run(layer, streams.before),
                lambda layer=layer_after: streams.run(layer, streams.after),
            )
        streams.advance(layer_before, layer_after)
    decoder_before, decoder_after = family.decoder_of(before), family.decoder_of(after)
    last = family.final_norm
    fit(
        decoder_before,
        decoder_after,
        last,
        f"{family.decoder}.{last}",
        lambda: streams.end(decoder_before, streams.before),
        lambda: streams.end(decoder_after, streams.after),
    )
    losses = [streams.loss(model, held) for model, held in ((before, streams.before), (after, streams.after))]
    found = dict(after.named_parameters())
    stored = {
        parameter: weights.stored.get(parameter) or Stored(tuple(value.shape), torch.float32, f"fitted {parameter}")
        for parameter, value in found.items()
    }
    fitted = replace(weights, config=config, stored=stored, read=lambda name: _read(weights, found, new, name))
    tokens = sum(batch.numel() for batch in batches)
    return Calibrated(fitted, name, errors, losses[1], losses[0], tokens)


def _read(weights: Weights, found: dict[str, nn.Parameter], new: dict[str, nn.Parameter], name: str) -> Tensor:
    if name not in new:
        return weights.read(name)
    stored = weights.stored.get(name)
    return found[name].detach().to(stored.dtype if stored is not None else torch.float32, copy=True)


def _loaded(weights: Weights) -> nn.Module:
    model = empty_model(weights.config).to_empty(device="cpu")
    model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.copy_(weights.read(name))
    return model.eval()


def config_with(config: Any, norm: str, **fields: Any) -> Any:
    """The same model's config with another norm, whose own fields are as for a new one, but for those given."""
    ours = {name: value for name, value in config.to_dict().items() if name != "norm_type"}
    for name in {name for spec in NORMS for name in spec.config_fields} | {"embedding_scale", "norm_module"}:
        ours.pop(name, None)
    return type(config)(**copy.deepcopy(ours), norm_type=norm, **fields)


def _sharing(before: nn.Module, config: Any) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A model of this config with the other's parameters, but for those of norms and of the embedding's scale, which
    are new and given by name; a new norm's begin as the old one's of the same name."""
    after = empty_model(config)
    held, new = dict(before.named_parameters()), {}
    for name, parameter in list(after.named_parameters()):
        owner, _, kind = name.rpartition(".")
        if owner.rpartition(".")[2] in config.norm_places or name not in held:
            value = held[name].detach().clone() if name in held else torch.zeros(parameter.shape)
            new[name] = nn.Parameter(value)
        setattr(after.get_submodule(owner), kind, new.get(name, held.get(name)))
    after.tie_weights()
    scale = family_of(config).embedding_scale
    if scale in new:  # what the embedding was multiplied by before
        new[scale].fill_(before.config.embedding_multiplier or 1.0)
    return after.eval(), new


class _Stop(Exception):
    """Nothing behind is needed."""


def _seen(module: nn.Module, run, outputs: bool) -> Tensor:
    """All that a module got, or gave, while `run` runs: (tokens, hidden_size)."""
    seen: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...], given: Tensor | None = None) -> None:
        seen.append((given if outputs else inputs[0]).flatten(0, -2))
        raise _Stop

    hook = module.register_forward_hook(look) if outputs else module.register_forward_pre_hook(look)
    try:
        run()
    finally:
        hook.remove()
    return torch.cat(seen)


class _Streams:
    """Hidden states of the text on their way through both models."""

    def __init__(self, before: nn.Module, after: nn.Module, family: Any, batches: Sequence[Tensor]) -> None:
        self._family, self._batches = family, batches
        decoders = family.decoder_of(before), family.decoder_of(after)
        self.before, self.after = ([getattr(decoder, family.embedding)(ids) for ids in batches] for decoder in decoders)
        self._rotary, self._config = getattr(decoders[0], family.rotary), before.config

    def run(self, layer: nn.Module, held: list[Tensor]) -> list[Tensor]:
        """A layer's outputs; nothing of a batch whose norm was looked at."""
        through = []
        for hidden in held:
            positions = torch.arange(hidden.shape[1])[None]
            mask = causal_mask(self._config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
            try:
                through.append(layer(hidden, attention_mask=mask, position_embeddings=self._rotary(hidden, positions)))
            except _Stop:
                continue
        return through

    def advance(self, layer_before: nn.Module, layer_after: nn.Module) -> None:
        self.before, self.after = self.run(layer_before, self.before), self.run(layer_after, self.after)

    def end(self, decoder: nn.Module, held: list[Tensor]) -> None:
        for hidden in held:
            try:
                getattr(decoder, self._family.final_norm)(hidden)
            except _Stop:
                continue

    def loss(self, model: nn.Module, held: list[Tensor]) -> float:
        """Mean cross entropy of the next token."""
        total, count = 0.0, 0
        norm = getattr(self._family.decoder_of(model), self._family.final_norm)
        head = getattr(model, self._family.head)
        for ids, hidden in zip(self._batches, held, strict=True):
            logits = head(norm(hidden))[:, :-1].float()
            total += F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
            count += ids[:, 1:].numel()
        return total / count
