"""Compiled layers against layers as written, in turns: `torchrun --nproc_per_node 1 benchmarks/compiled.py`.

Both are the same run in one set of processes, so that whatever else the machine does meets both. What follows `--`
goes to the run, such as `-- -c 15m -p zero2`. The first process reports times of the first step, the ratio of the
others, and after how many steps compiling has paid for itself.
"""

from __future__ import annotations

import statistics
import time
from itertools import islice
from typing import Any

import torch
from common import arguments, keep_large_buffers, ratio_of_pairs, write_report

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.data.loaders.synthetic import SyntheticBatches
from llama_dyt.launch.process_group import launch, shutdown
from llama_dyt.models import InitialWeights, empty_model, recompute_activations
from llama_dyt.training.optimizer import parameter_groups
from llama_dyt.training.plan import Plan, make_plan

DEFAULTS = ["-c", "15m", "-p", "zero2", "--mixed_precision", "fp32", "-l", "256", "-b", "4"]
WARMUP = 2
"""Steps before; the first of them compiles."""


def boost(plan: Plan, compiled: bool) -> Boosted:
    run, config = plan.run.replace(compile=compiled), plan.model_config
    model = empty_model(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    recompute_activations(model, run.model.recomputed_share)
    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    return Boosted(run, model, groups, InitialWeights(shapes, config, run.run.seed).read)


def main() -> None:
    parser = arguments(__doc__, pairs=(20, "pairs of steps"))
    parser.add_argument("flags", nargs="*", help=f"of benchmark.py, after --; default: {' '.join(DEFAULTS)}")
    given = parser.parse_args()
    flags = [*DEFAULTS, *given.flags]
    plan = make_plan("benchmark", flags)
    launch(plan.run.run.seed, plan.environment, tensor_parallel=plan.run.booster.tp > 1)
    kinds = {"written": boost(plan, False), "compiled": boost(plan, True)}
    grid, run = kinds["written"].grid, plan.run
    batches = SyntheticBatches(
        plan.model_config.vocab_size, run.data.max_length, run.data.batch_size, 1, grid.dp_rank, grid.dp_size
    )
    rows: list[dict[str, Any]] = []
    for number, step in enumerate(islice(batches, given.pairs + WARMUP)):
        for kind, boosted in kinds.items() if number % 2 else reversed(kinds.items()):
            boosted.synchronize()
            start = time.perf_counter()
            boosted.set_learning_rate(run.optimizer.lr)
            (loss,) = sum_over_ranks([boosted.forward_backward(step)], boosted.device)
            boosted.optimizer_step()
            boosted.synchronize()
            rows.append({"step": number, "side": kind, "seconds": time.perf_counter() - start, "loss": loss})
    batches.close()
    if plan.is_first_process:
        report(given.results, flags, plan, rows)
    shutdown()


def report(results: Any, flags: list[str], plan: Plan, rows: list[dict[str, Any]]) -> None:
    seconds = {kind: [row["seconds"] for row in rows if row["side"] == kind] for kind in ("compiled", "written")}
    measured = {kind: values[WARMUP:] for kind, values in seconds.items()}
    saved = statistics.median(measured["written"]) - statistics.median(measured["compiled"])
    started_later = sum(seconds["compiled"][:WARMUP]) - sum(seconds["written"][:WARMUP])
    last = {row["side"]: row["loss"] for row in rows}
    summary = {
        **{f"{kind}: first step, s": values[0] for kind, values in seconds.items()},
        **{f"{kind}: median step, s": statistics.median(values) for kind, values in measured.items()},
        "written / compiled, time": ratio_of_pairs(measured["written"], measured["compiled"]),
        "steps until compiling has paid": started_later / saved if saved > 0 else "never",
        "relative distance of the last losses": f"{abs(last['compiled'] / last['written'] - 1):.1e}",
    }
    settings = {"flags": flags, "processes": plan.environment.world_size, "threads": torch.get_num_threads()}
    write_report(f"compiled-{plan.device}-x{plan.environment.world_size}", results, rows, summary, settings=settings)


if __name__ == "__main__":
    from llama_dyt.launch.parent_watch import end_with_launcher

    end_with_launcher()

    keep_large_buffers()
    main()
