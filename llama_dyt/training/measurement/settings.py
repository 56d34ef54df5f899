"""The settings of benchmark.py alone, and what is wrong with them; training has none of these flags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.config.options import Kind, option
from llama_dyt.config.run import RunConfig
from llama_dyt.core.files import why_not_writable
from llama_dyt.core.problem import Problem

BENCHMARK: tuple[Kind, ...] = ("benchmark",)


@dataclass(frozen=True)
class BenchmarkSettings:
    """What the benchmark measures."""

    num_steps: int = option(5, "Steps run in all.", short="-s", entries=BENCHMARK, at_least=1)
    ignore_steps: int = option(
        2, "First steps, among them, that are not measured.", short="-i", entries=BENCHMARK, at_least=0
    )
    json: str | None = option(
        None,
        "File for the result as JSON: the printed figures, every step's time, settings, versions and date.",
        entries=BENCHMARK,
        metavar="PATH",
        path=True,
    )
    profile: str | None = option(
        None,
        "Profile two more steps after the measured ones: a trace for chrome://tracing or Perfetto and a table of the "
        "largest operators, in this folder; --profile alone takes `profile`.",
        entries=BENCHMARK,
        metavar="FOLDER",
        bare="profile",
        path=True,
    )


def benchmark_problems(run: RunConfig) -> Iterator[Problem]:
    """Problems of the benchmark's flags among themselves, and of where it is to write."""
    if run.kind != "benchmark":
        return
    settings = run.benchmark
    if settings.ignore_steps >= settings.num_steps:
        reason = f"leaves none of --num_steps {settings.num_steps} to measure"
        remedy = f"give --num_steps {settings.ignore_steps + 1} or more"
        yield Problem("ignore_steps", settings.ignore_steps, reason, remedy, also=("num_steps",), clause=True)
    if settings.json is not None:
        file = Path(settings.json)
        reason = "it is a folder" if file.is_dir() else why_not_writable(file.parent)
        if reason is not None:
            yield Problem("json", settings.json, reason, "give a file that can be written")
    if settings.profile is not None:
        reason = why_not_writable(settings.profile)
        if reason is not None:
            yield Problem("profile", settings.profile, reason, "give a folder that can be written")
