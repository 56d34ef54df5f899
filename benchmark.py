"""Measure training throughput on synthetic data: `python benchmark.py --help`, or docs/benchmark.md."""

from pathlib import Path

from llama_dyt.training.dry_run import print_dry_run
from llama_dyt.training.measurement import measure, write_measurement
from llama_dyt.training.plan import make_plan
from llama_dyt.training.session import run_entry


def main() -> None:
    plan = make_plan("benchmark")
    settings = plan.run.benchmark
    if plan.run.run.dry_run:
        print_dry_run(plan, settings.num_steps)
        return
    measurement = measure(plan)
    if plan.is_first_process:
        print(measurement.report())
        if settings.json is not None:
            write_measurement(Path(settings.json), plan, measurement)


if __name__ == "__main__":
    run_entry(main)
