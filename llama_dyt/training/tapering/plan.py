"""What becomes of a model's norms in a run, and how far they are when it begins."""

from __future__ import annotations

from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.norms.by_name import norm_of
from llama_dyt.training.checkpoint.reader import Checkpoint
from llama_dyt.training.tapering.schedule import TaperSchedule


def schedule_of(run: RunConfig, config: Any) -> TaperSchedule | None:
    """The schedule that a run asks for; None where it asks for none.

    Args:
        config: the model's.

    Raises:
        ConfigurationError: the model's norm becomes no other.
    """
    settings = run.tapering
    if run.kind == "benchmark" or settings.taper_steps is None:
        return None
    norm = norm_of(config)
    if norm.gate is None:
        reason = f"the model's norm, {norm.name}, becomes no other"
        remedy = "make a model of it with convert.py --norm tapered --calibrate TEXT, or leave it out"
        raise ConfigurationError(Problem("taper_steps", settings.taper_steps, reason, remedy, also=("norm",)))
    sites = len(getattr(config, norm.gate.field))
    return TaperSchedule(sites, settings.taper_start, settings.taper_steps, settings.taper_overlap)


def fit_gates(run: RunConfig, config: Any, checkpoint: Checkpoint | None) -> list[str]:
    """Have the gates where the weights that are loaded were trained with them; gives what the run should be told.

    Args:
        config: the model's, with the gates of --model_path.
    """
    gate = norm_of(config).gate
    if gate is None:
        return []
    if checkpoint is not None and not checkpoint.holds_adapter:
        setattr(config, gate.field, checkpoint.model_field(gate.field))
    gates = getattr(config, gate.field)
    underway = sum(value < 1 for value in gates)
    if run.kind == "benchmark" or run.tapering.taper_steps is not None or not underway:
        return []
    return [
        f"{underway} of the model's {len(gates)} norms have not become {gate.becomes} and stay as they are; "
        "--taper_steps has them become it"
    ]
