"""What the processes of `test_families.py` run beside the training of all tests: dropout of what ranks hold alike."""

from __future__ import annotations

from itertools import islice

import torch

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.models import empty_model, family_of
from llama_dyt.training.optimizer import parameter_groups
from tests.distributed import small_run
from tests.distributed.small_run import Layout


def norms_after_training_with_dropout(layout: Layout) -> dict[str, list[float]]:
    """This rank's own copies of a Phi's norms after three steps with `resid_pdrop`."""
    run = small_run.run_config(layout, layout.precisions[0])
    config = small_run.model_config(family="phi_2")
    config.resid_pdrop = 0.3
    model = empty_model(config)
    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    boosted = Boosted(run, model, groups, small_run.weights(model))
    torch.manual_seed(small_run.SEED)  # as processes of a run have it; cases before this one have drawn numbers
    for step in islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), 3):
        boosted.set_learning_rate(run.optimizer.lr)
        boosted.forward_backward(step)
        boosted.optimizer_step()
    norms = tuple(f"{name}." for name in family_of(config).layer_norms)
    return {
        name: parameter.flatten().tolist()
        for name, parameter in boosted.module.named_parameters()
        if any(norm in name for norm in norms)
    }
