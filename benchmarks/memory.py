"""What every rank holds and needs at its peak, plugin against plugin: `python benchmarks/memory.py --help`.

Every measurement has processes of its own, started by torchrun, since memory that a plugin gave back stays with the
process. Results go to a dated JSON file in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import MEGABYTE, RESULTS, write_report

from llama_dyt.boosters.strategy import STRATEGIES

PLUGINS = ("ddp", "zero1", "zero2", "gemini", "fsdp")
STEPS = 2
"""Adam's moments are there after the first; the second one's backward meets all a run holds."""
PACKAGES = ("torch", "transformers", "colossalai")


def measure(file: str, flags: list[str]) -> None:
    """One process of a measurement: train two steps; rank 0 writes what every rank held to `file`."""
    from llama_dyt.boosters.engine.host import reset_peak_resident_bytes

    import psutil

    from llama_dyt.boosters.boosted import peak_memory_mb
    from llama_dyt.boosters.state_bytes import measure_state_bytes
    from llama_dyt.core import ranks
    from llama_dyt.data.loaders.synthetic import SyntheticBatches
    from llama_dyt.training.plan import make_plan
    from llama_dyt.training.session import Session

    plan = make_plan("benchmark", flags)
    run = plan.run
    before = psutil.Process().memory_info().rss / MEGABYTE if plan.device == "cpu" else 0.0
    reset_peak_resident_bytes()
    session = Session(plan)
    boosted, grid = session.boosted, session.grid
    batches = SyntheticBatches(
        plan.model_config.vocab_size,
        run.data.max_length,
        run.data.batch_size,
        dp_rank=grid.dp_rank,
        dp_size=grid.dp_size,
        num_steps=STEPS,
    )
    boosted.set_learning_rate(run.optimizer.lr)
    with batches:
        for step in batches:
            boosted.forward_backward(step)
            held = measure_state_bytes(boosted)
            boosted.optimizer_step()
    after = measure_state_bytes(boosted)  # gradients can take the place of weights until the step
    own = {
        "peak_mb": peak_memory_mb(),
        "before_mb": before,
        "weights_bytes": after.weights,
        "weights_and_gradients_bytes": held.weights + held.gradients,
        "masters_bytes": after.masters,
        "moments_bytes": after.moments,
    }
    all_ranks = ranks.gather(own, "comparing what ranks hold")
    if plan.is_first_process:
        Path(file).write_text(json.dumps(all_ranks), encoding="utf-8")


def row_of(plugin: str, processes: int, precision: str, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """One measurement: of each figure the largest over the ranks, and all of them."""
    largest = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
    state = max(rank["masters_bytes"] + rank["moments_bytes"] for rank in ranks)
    return {
        "plugin": plugin,
        "processes": processes,
        "precision": precision,
        **largest,
        "optimizer_state_bytes": state,
        "ranks": ranks,
    }


def run_one(plugin: str, processes: int, precision: str, flags: list[str]) -> dict[str, Any]:
    """Measure one plugin in processes of its own.

    Raises:
        SystemExit: they failed; what they said stands above.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ranks.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*launcher, __file__, "measure", str(file), "--plugin", plugin, "--mixed_precision", precision]
        ended = subprocess.run([*command, *flags], env=environment, check=False)
        if ended.returncode or not file.is_file():
            raise SystemExit(f"{plugin} on {processes} processes failed, exit status {ended.returncode}")
        return row_of(plugin, processes, precision, json.loads(file.read_text(encoding="utf-8")))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; optimizer states also as a share of the same plugin's on one process, if that was run."""
    alone = {row["plugin"]: row["optimizer_state_bytes"] for row in rows if row["processes"] == 1}
    heads = ["plugin", "precision", "processes", "peak a rank, MB", "above start, MB"]
    heads += ["weights + gradients, MB", "optimizer state, MB", "of one process's"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        of_one = alone.get(row["plugin"])
        share = f"1/{of_one / row['optimizer_state_bytes']:.2f}" if of_one else "–"
        figures = (
            row["peak_mb"],
            max(rank["peak_mb"] - rank["before_mb"] for rank in row["ranks"]),
            row["weights_and_gradients_bytes"] / MEGABYTE,
            row["optimizer_state_bytes"] / MEGABYTE,
        )
        cells = [row["plugin"], row["precision"], str(row["processes"]), *(f"{value:,.0f}" for value in figures), share]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def precision_of(plugin: str) -> str:
    """fp32 where the plugin has it: a CPU without half-precision units takes minutes for a step in bf16."""
    can = STRATEGIES.get(plugin).capability
    stage = can.default_zero_stage
    return "fp32" if "fp32" in can.precisions and (stage is None or stage in can.float32_zero_stages) else "bf16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugins", nargs="+", default=PLUGINS, help=f"default: {' '.join(PLUGINS)}")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--mixed_precision", choices=("fp16", "bf16", "fp32"), help="default: fp32, or bf16 without it")
    parser.add_argument("--config", default="100m", help="model size; default: 100m")
    parser.add_argument("--max_length", type=int, default=16, help="tokens a sequence, one a rank; default: 16")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("flags", nargs="*", help="further flags of benchmark.py, after --")
    arguments = parser.parse_args()
    for plugin in arguments.plugins:
        if STRATEGIES.find(plugin) is None:
            parser.error(f"--plugins: no plugin {plugin!r}; see docs/boosters.md")

    flags = ["--config", arguments.config, "--max_length", str(arguments.max_length), "--batch_size", "1"]
    rows = []
    for plugin in arguments.plugins:
        for processes in arguments.processes:
            precision = arguments.mixed_precision or precision_of(plugin)
            rows.append(run_one(plugin, processes, precision, [*flags, *arguments.flags]))
            print(f"{plugin} on {processes}: peak {rows[-1]['peak_mb']:,.0f} MB a rank", file=sys.stderr)
    print(table(rows))
    write_report(f"memory-{arguments.config}", arguments.results, rows, {}, PACKAGES)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        from llama_dyt.launch.parent_watch import end_with_launcher

        end_with_launcher()

        from llama_dyt.training.entry import run_entry

        run_entry(lambda: measure(sys.argv[2], sys.argv[3:]))
    main()
