"""How many numbers an adapter trains, and how many it adds to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_dyt.models.adapters.adapter import Adapter, owner_of
from llama_dyt.models.adapters.modules import attach
from llama_dyt.models.build import empty_model


@dataclass(frozen=True)
class Counts:
    """Learnable numbers, each counted once.

    Attributes:
        model: of the model without the adapter.
        trained: those that training changes.
        added: those of the adapter itself; the others trained are the model's own.
    """

    model: int
    trained: int
    added: int


def count(adapter: Adapter, config: Any) -> Counts:
    """The counts of an adapter on a model of a config."""
    model = empty_model(config)
    attach(model, adapter)
    sizes = {name: (parameter.numel(), parameter.requires_grad) for name, parameter in model.named_parameters()}
    added = sum(size for name, (size, _) in sizes.items() if owner_of(name) is not None)
    trained = sum(size for size, is_trained in sizes.values() if is_trained)
    return Counts(sum(size for size, _ in sizes.values()) - added, trained, added)


def trained_in_words(adapter: Adapter, config: Any) -> str:
    """ "12,288 parameters trained, 1.2% of 1,034,567: LoRA of rank 8 in 14 modules"."""
    counts = count(adapter, config)
    share = 100 * counts.trained / counts.model
    beside = f" and {len(adapter.whole)} parameters of the model" if adapter.whole else ""
    return f"{counts.trained:,} parameters trained, {share:.2g}% of {counts.model:,}: {adapter.in_words}{beside}"
