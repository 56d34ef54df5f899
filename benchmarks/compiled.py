"""Compiled layers against layers as written, in turns: `torchrun --nproc_per_node 1 benchmarks/compiled.py`.

Both are the same run in one set of processes, so that whatever else the machine does meets both. Arguments go to the
run as they are, such as `-c 15m -p zero2`. The first process prints one JSON object: times of the first step, medians
and quartiles of the others' ratio, and after how many steps compiling has paid for itself.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.boosters.launch import launch, shutdown
from llama_dyt.data.synthetic import SyntheticBatches
from llama_dyt.models import InitialWeights, empty_model, recompute_activations
from llama_dyt.training.optimizer import parameter_groups
from llama_dyt.training.plan import Plan, make_plan

PAIRS = 20
DEFAULTS = ["-c", "15m", "-p", "zero2", "--mixed_precision", "fp32", "-l", "256", "-b", "4"]


def boost(plan: Plan, compiled: bool) -> Boosted:
    run, config = plan.run.replace(compile=compiled), plan.model_config
    model = empty_model(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    recompute_activations(model, run.model.recomputed_share)
    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    return Boosted(run, model, groups, InitialWeights(shapes, config, run.run.seed).read)


def main() -> None:
    plan = make_plan("benchmark", [*DEFAULTS, *sys.argv[1:]])
    launch(plan.run.run.seed, plan.environment)
    kinds = {"written": boost(plan, False), "compiled": boost(plan, True)}
    grid, run = kinds["written"].grid, plan.run
    batches = SyntheticBatches(
        plan.model_config.vocab_size, run.data.max_length, run.data.batch_size, 1, grid.dp_rank, grid.dp_size
    )
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    losses: dict[str, float] = {}
    for step in islice(batches, PAIRS + 2):
        for kind, boosted in kinds.items():
            boosted.synchronize()
            start = time.perf_counter()
            boosted.set_learning_rate(run.optimizer.lr)
            (losses[kind],) = sum_over_ranks([boosted.forward_backward(step)], boosted.device)
            boosted.optimizer_step()
            boosted.synchronize()
            seconds[kind].append(time.perf_counter() - start)
    batches.close()
    ratios = [c / w for c, w in zip(seconds["compiled"][2:], seconds["written"][2:], strict=True)]
    saved = statistics.median(seconds["written"][2:]) - statistics.median(seconds["compiled"][2:])
    started_later = sum(seconds["compiled"][:2]) - sum(seconds["written"][:2])
    if plan.is_first_process:
        figures = {
            "flags": [*DEFAULTS, *sys.argv[1:]],
            "processes": plan.environment.world_size,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "first_step_seconds": {kind: values[0] for kind, values in seconds.items()},
            "median_seconds": {kind: statistics.median(values[2:]) for kind, values in seconds.items()},
            "ratio_quartiles": statistics.quantiles(ratios, n=4),
            "last_losses": losses,
            "steps_to_pay": started_later / saved if saved > 0 else None,
        }
        print(json.dumps(figures, indent=1))
    shutdown()


if __name__ == "__main__":
    main()
