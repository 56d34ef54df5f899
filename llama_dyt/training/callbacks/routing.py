"""What is watched of routers: how evenly they choose, how surely, and what their losses are, over all ranks."""

from __future__ import annotations

from typing import Any

import torch

from llama_dyt.config.run import RunConfig
from llama_dyt.models.ops.routing import RoutingBoard
from llama_dyt.training.callbacks.callback import Callback, Training
from llama_dyt.training.step import StepOutcome

LOADS_INTERVAL = 10
"""The load of each expert of each layer stands in every so many-th record."""


class Routing(Callback):
    """Adds to a record what routers did in the step's first micro batch, whose sums over the ranks are there already.

    router_balance_loss: 2 for two experts a token that are all chosen alike, more where they are not
    router_z: mean of logsumexp(logits)²
    router_entropy: mean over tokens and layers, in nats; ln of the number of experts where nothing is preferred
    expert_load_most, expert_load_least: the most and the least that any expert of any layer was chosen, as a
        multiple of an even share
    expert_load: that of each, by `layer.expert`, in every tenth record
    router_entropy_by_layer: in every tenth record

    and, where experts have a capacity, of all micro batches of the step, ranks and layers:

    router_dropped: choices of an expert that had no place at it
    router_dropped_share: that by all choices
    """

    order = 20

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        self._records = 0

    def record(self, trainer: Training, outcome: StepOutcome) -> dict[str, Any]:
        board = trainer.boosted.routing
        if board is None or not board.passes:
            return {}
        totals = board.passes[0].totals()
        loads = totals.choices / totals.choices.mean(1, keepdim=True)
        entropy = totals.entropies.sum() / totals.rows.sum()
        figures = torch.stack([totals.balance, totals.z, entropy, loads.max(), loads.min()])
        names = ("router_balance_loss", "router_z", "router_entropy", "expert_load_most", "expert_load_least")
        record: dict[str, Any] = dict(zip(names, figures.tolist(), strict=True))
        if board.limited:
            record.update(_dropped(board))
        if self._records % LOADS_INTERVAL == 0:
            record["expert_load"] = {
                f"{layer}.{expert}": load
                for layer, of_layer in enumerate(loads.tolist())
                for expert, load in enumerate(of_layer)
            }
            of_layers = (totals.entropies / totals.rows).tolist()
            record["router_entropy_by_layer"] = {str(layer): found for layer, found in enumerate(of_layers)}
        self._records += 1
        return record


def _dropped(board: RoutingBoard) -> dict[str, Any]:
    every = [routed.totals() for routed in board.passes]
    dropped = sum(totals.dropped.sum() for totals in every)
    chosen = sum(totals.choices.sum() for totals in every)
    dropped, share = torch.stack([dropped / board.alike, dropped / chosen]).tolist()
    return {"router_dropped": round(dropped), "router_dropped_share": share}
