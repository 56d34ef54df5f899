"""What the processes of `test_float8.py` run: the small model with emulated 8-bit products under a plugin."""

from __future__ import annotations

from itertools import islice

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.models import empty_model, use_float8
from llama_dyt.training.optimizer import parameter_groups
from tests.distributed import small_run
from tests.distributed.small_run import Layout


def losses(layout: Layout, scaling: str | None, steps: int) -> list[float]:
    run = small_run.run_config(layout, "fp32")
    model = empty_model(small_run.model_config())
    if scaling is not None:
        use_float8(model, scaling, emulate=True)
    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    boosted = Boosted(run, model, groups, small_run.weights(model))
    found = []
    for step in islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), steps):
        boosted.set_learning_rate(small_run.LR)
        found += sum_over_ranks([boosted.forward_backward(step)], boosted.device)
        boosted.optimizer_step()
    return found
