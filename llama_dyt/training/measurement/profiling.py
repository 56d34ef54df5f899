"""A few training steps under torch's profiler: a trace file and a table of the largest operators.

It is of the benchmark's --profile and of the breakdown of a step, which drive the steps themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from llama_dyt.core import files
from llama_dyt.data.loaders.step import Step
from llama_dyt.training.loop import Trainer

PROFILED_STEPS = 2
TRACE_FILE, TABLE_FILE = "trace.json.gz", "operators.txt"
ROWS = 25


def profiled(trainer: Trainer, steps: Iterator[Step], count: int = PROFILED_STEPS) -> profile:
    """`count` steps under the profiler; collective like any step."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(count):
            trainer.train_step(next(steps))
        trainer.boosted.synchronize()
    return profiler


def profile_steps(trainer: Trainer, steps: Iterator[Step], folder: Path, write: bool) -> str:
    """Profile PROFILED_STEPS steps; collective.

    Args:
        folder: where the trace and the table go.
        write: whether this process writes them; one does.

    Returns:
        The table of the largest operators by their own time on the device, with the files' names below it.
    """
    profiler = profiled(trainer, steps)
    by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        with files.written_whole(folder / TRACE_FILE) as aside:
            compressed = aside.with_name(f"{aside.name}.gz")  # torch compresses what is named so
            profiler.export_chrome_trace(str(compressed))
            compressed.rename(aside)
        files.write_text(folder / TABLE_FILE, table + "\n")
    return f"{table}\n{PROFILED_STEPS} steps profiled: {folder / TRACE_FILE}, {folder / TABLE_FILE}"
