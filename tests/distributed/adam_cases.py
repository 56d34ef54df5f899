"""What the processes of `test_adam_flags.py` run."""

from __future__ import annotations

from typing import Any

from tests.distributed import small_run
from tests.distributed.cases import boost
from tests.distributed.small_run import Layout


def hyperparameters(layout: Layout, **flags: Any) -> list[tuple[tuple[float, float], float]]:
    """(betas, eps) of every parameter group of the Adam that steps."""
    boosted = boost(small_run.run_config(layout, layout.precisions[0], **flags))
    return [(tuple(group["betas"]), group["eps"]) for group in boosted.optimizer.optim.param_groups]
