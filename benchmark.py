"""Measure training throughput on synthetic data: `python benchmark.py --help`, or docs/benchmark.md."""

if __name__ == "__main__":  # before what takes seconds to import
    from llama_dyt.launch.parent_watch import end_with_launcher
    from llama_dyt.training.plan.answer import answer

    end_with_launcher()
    checked = answer("benchmark")

from functools import partial
from pathlib import Path

from llama_dyt.training.entry import run_entry
from llama_dyt.training.measurement.benchmark import measure, write_measurement
from llama_dyt.training.plan import Checked, make_plan
from llama_dyt.training.sizing.dry_run import print_dry_run


def main(checked: Checked | None = None) -> None:
    plan = make_plan("benchmark", checked=checked)
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
    run_entry(partial(main, checked))
