"""What an adapter does in a model: a linear layer or an embedding keeps its class, its weight and its names, and gets
parameters more, which are all that is trained.

Tensor parallelism overrides how numbers go into A and come out of B (`boosters/layers/adapted.py`), and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llama_dyt.models.adapters.adapter import Adapter, Place
from llama_dyt.models.spec import family_of


def attach(model: nn.Module, adapter: Adapter) -> None:
    """Give a causal LM an adapter, in place, and freeze all else. Before it is boosted.

    Args:
        model: on any device, meta too. New parameters have its weights' device and dtype and no values
            (`starting.StartingAdapter`).
    """
    for parameter in model.parameters():
        parameter.requires_grad = False
    for name, place in adapter.places.items():
        module = model.get_submodule(name)
        kind = LoraEmbedding if isinstance(module, nn.Embedding) else LoraLinear
        kind.extend(module, place)
        module.__class__ = with_lora(type(module), kind)
    for name in adapter.whole:
        model.get_parameter(name).requires_grad = True
    if family_of(model.config).head in adapter.places:
        # The loss of hidden states knows the head's weight alone.
        model.loss_function = replace(model.loss_function, fused=False)


def attached(module: nn.Module) -> Place | None:
    """How an adapter sits in a module; None where there is none."""
    return getattr(module, "place", None)


@cache
def with_lora(kind: type[nn.Module], lora: type[nn.Module]) -> type[nn.Module]:
    """The class of modules of a kind with an adapter of a kind."""
    return type(f"Lora{kind.__name__}", (lora, kind), {"__module__": lora.__module__})


class LoraLinear(nn.Module):
    """A linear layer with an adapter; goes before the layer's own class.

    Attributes:
        place: how the adapter sits in it.
    """

    place: Place

    @staticmethod
    def extend(module: nn.Linear, place: Place) -> None:
        """Give a linear layer the adapter's parameters."""
        like = {"device": module.weight.device, "dtype": module.weight.dtype}
        module.lora_A = nn.Linear(module.in_features, place.rank, bias=False, **like)
        module.lora_B = nn.Linear(place.rank, module.out_features, bias=False, **like)
        if place.use_dora:
            module.lora_magnitude_vector = nn.Parameter(torch.empty(module.out_features, **like))
        module.place = place

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        place = self.place
        left = F.dropout(inputs, place.dropout) if place.dropout and self.training else inputs
        plain = super().forward(inputs)
        added = self._from_low(self._to_low(left)) * place.scaling
        if not place.use_dora:
            return plain + added
        # Without the bias, which has no direction. peft has what was left out reach the weight's part as well.
        ratio = self._ratio()
        bias = 0 if self.bias is None else self._bias_of_output()
        if left is inputs:
            return ratio * (plain - bias + added) + bias
        return plain + (ratio - 1) * (super().forward(left) - bias) + ratio * added

    def _to_low(self, inputs: Tensor) -> Tensor:
        """A x: (…, in) to (…, rank)."""
        return F.linear(inputs, self.lora_A.weight)

    def _from_low(self, low: Tensor) -> Tensor:
        """B of that: (…, rank) to (…, out)."""
        return F.linear(low, self.lora_B.weight)

    def _bias_of_output(self) -> Tensor:
        return self.bias

    def _ratio(self) -> Tensor:
        """Magnitude by length of each row of the weight with what is added to it, (out,)."""
        norms = self._squared_norms().sqrt().to(self.lora_magnitude_vector.dtype)
        return self.lora_magnitude_vector / norms

    def _squared_norms(self) -> Tensor:
        return squared_norms(self.weight, self.lora_A.weight, self.lora_B.weight, self.place.scaling)


class LoraEmbedding(nn.Module):
    """An embedding with an adapter; goes before its own class, which may multiply its rows by `embed_scale`.

    Attributes:
        place: how the adapter sits in it.
    """

    place: Place

    @staticmethod
    def extend(module: nn.Embedding, place: Place) -> None:
        """Give an embedding the adapter's parameters."""
        like = {"device": module.weight.device, "dtype": module.weight.dtype}
        module.lora_embedding_A = nn.Parameter(torch.empty(place.rank, module.num_embeddings, **like))
        module.lora_embedding_B = nn.Parameter(torch.empty(module.embedding_dim, place.rank, **like))
        if place.use_dora:
            module.lora_magnitude_vector = nn.Parameter(torch.empty(module.embedding_dim, **like))
        module.place = place

    def forward(self, input_ids: Tensor) -> Tensor:
        """(batch, sequence) to (batch, sequence, hidden_size)."""
        plain = super().forward(input_ids)
        added = F.linear(self._to_low(input_ids), self.lora_embedding_B) * self.place.scaling
        scale = getattr(self, "embed_scale", None)
        if scale is not None:
            added = added * scale.to(added.dtype)
        if not self.place.use_dora:
            return plain + added
        norms = self._squared_norms().sqrt().to(plain.dtype)
        return (self.lora_magnitude_vector / norms) * (plain + added)

    def _to_low(self, input_ids: Tensor) -> Tensor:
        """Columns of A: (batch, sequence) to (batch, sequence, rank)."""
        return F.embedding(input_ids, self.lora_embedding_A.t())

    def _squared_norms(self) -> Tensor:
        """Of each of the hidden numbers, over the whole vocabulary."""
        return squared_norms(self.weight.t(), self.lora_embedding_A, self.lora_embedding_B, self.place.scaling)


@torch.no_grad()
def squared_norms(weight: Tensor, low: Tensor, high: Tensor, scaling: float) -> Tensor:
    """‖W + s·B A‖² of each row, (out,) fp32, without the product of B and A.

    Where W (out, in) and A (rank, in) are parts of their columns, the parts' numbers add up to the whole's.
    """
    own = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square()
    high = high.float()
    across = ((weight @ low.t()).float() * high).sum(1)
    within = ((high @ (low @ low.t()).float()) * high).sum(1)
    return own + 2 * scaling * across + scaling**2 * within
