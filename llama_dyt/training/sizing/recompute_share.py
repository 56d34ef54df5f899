"""How many layers recompute their activations when the memory of the device decides: `--auto_checkpointing`.

It joins an estimate (`memory.py`) with what a device has.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from transformers import PretrainedConfig

from llama_dyt.config.run import RunConfig
from llama_dyt.core.environment import ProcessEnvironment
from llama_dyt.models.adapters import Adapter
from llama_dyt.training.measurement.figures import figure
from llama_dyt.training.sizing.memory import estimate_memory, stage_parts

MARGIN = 0.1
"""Share of the memory left to what the estimate does not count: buffers of collectives, fragments, the libraries."""
_MEGABYTE = 2.0**20
_GIB = 2.0**30


@dataclass(frozen=True)
class ChosenShare:
    """The smallest share of layers by which a run fits.

    Attributes:
        share: 0 to 1.
        num_recomputing, num_layers: how many recompute, of how many.
        needed, allowed: bytes of the rank that needs most by the estimate, and what it may have.
    """

    share: float
    num_recomputing: int
    num_layers: int
    needed: float
    allowed: float

    @property
    def fits(self) -> bool:
        return self.needed <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.num_recomputing} of {self.num_layers} layers recompute: about {figure(self.needed / _GIB)} GiB a "
            f"rank, of {figure(self.allowed / _GIB)} GiB it may have"
        )


def allowed_bytes(run: RunConfig, environment: ProcessEnvironment, device: str) -> float:
    """What a rank may plan with: --memory_limit as it is, else the device's memory less a margin.

    On a CPU it is what is free on the machine now, divided among its processes.
    """
    if run.booster.memory_limit is not None:
        return run.booster.memory_limit * _MEGABYTE
    if device == "cuda":
        return torch.cuda.get_device_properties(environment.local_rank).total_memory * (1 - MARGIN)
    processes = environment.local_world_size or environment.world_size
    return psutil.virtual_memory().available / processes * (1 - MARGIN)


def choose_share(
    run: RunConfig,
    config: PretrainedConfig,
    environment: ProcessEnvironment,
    device: str,
    adapter: Adapter | None = None,
) -> ChosenShare:
    """The smallest share of layers, evenly spread, with which the estimate is within the bounds; 1 where none is."""
    allowed = allowed_bytes(run, environment, device)
    parts = stage_parts(run, config, adapter)
    num_layers = config.num_hidden_layers
    for num_recomputing in range(num_layers + 1):
        chosen = run.replace(selective_checkpointing=num_recomputing / num_layers)
        estimates = estimate_memory(chosen, config, environment.world_size, environment.local_world_size, parts)
        # On a CPU what is kept "on the host" is in the same memory.
        needed = max(e.device_total + (e.host if device == "cpu" else 0.0) for e in estimates)
        if needed <= allowed:
            break
    return ChosenShare(num_recomputing / num_layers, num_recomputing, num_layers, needed, allowed)
