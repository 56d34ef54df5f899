"""What all benchmarks share: their flags, processes of their own, ratios of pairs, and the form of their reports.

Its own file so that every benchmark says the same things about where and how it was measured, and scripts/
performance_tables.py can read them all.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

RESULTS = REPOSITORY / "benchmarks" / "results"
WORK = REPOSITORY / "data" / "benchmarks"
PACKAGES = ("torch", "transformers", "colossalai", "triton", "liger-kernel", "flash-attn", "torchao", "accelerate")
MEGABYTE = 2**20
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables that change what memory costs; a report says what they were."""
KEEP_LARGE_BUFFERS = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""As scripts/common.sh sets them for runs on a CPU."""


def arguments(description: str, *, work: bool = False, **flags: Any) -> argparse.ArgumentParser:
    """A parser with --results, and a flag for each `name=(default, help)`.

    Args:
        work: add --work, a folder for what is made once and kept.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if work:
        parser.add_argument("--work", type=Path, default=WORK, help="folder for what is made; kept for the next time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    for name, (value, text) in flags.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{text}; default: {value}")
    return parser


def in_a_process_of_its_own(file: str, *words: Any, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """What `python FILE measure WORDS` prints last, as JSON. Memory and caches of one measurement stay out of another.

    Args:
        variables: of the environment, beside this process' own.

    Raises:
        SystemExit: it failed; what it said stands above.
    """
    command = [sys.executable, file, "measure", *map(str, words)]
    environment = {**os.environ, **(variables or {})}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY, env=environment)
    if ended.returncode:
        raise SystemExit(f"{shlex.join(command)} failed, exit status {ended.returncode}")
    return json.loads(ended.stdout.splitlines()[-1])


def median_of(rows: list[dict[str, Any]], side: str, figure: str) -> float:
    return statistics.median(row[figure] for row in rows if row["side"] == side)


def ratio_of_pairs(ours: Sequence[float], theirs: Sequence[float], resamples: int = 10_000) -> dict[str, Any]:
    """The median of ours/theirs over pairs measured one right after the other, and its 95% bootstrap interval.

    Raises:
        ValueError: the two are not of the same length, or empty.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} figures of ours and {len(theirs)} of theirs make no pairs")
    ratios = [one / other for one, other in zip(ours, theirs)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(resamples))
    low, high = medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]
    return {"median": statistics.median(ratios), "interval": [low, high], "pairs": len(ratios)}


def say_ratio(name: str, ratio: dict[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"{name}: {ratio['median']:.3f} (95% interval {low:.3f} to {high:.3f}, {ratio['pairs']} pairs)"


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python's version and those of the packages that are there."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor and, where torch was loaded and shows one, the GPU."""
    name = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return f"{cores} cores of {name}{gpu}"


def write_aside(file: Path, report: dict[str, Any]) -> None:
    """Write JSON under another name, then rename: a reader never meets half a report."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, file)


def write_report(
    name: str,
    results: Path,
    rows: list[dict[str, Any]],
    summary: dict[str, Any],
    packages: Sequence[str] = PACKAGES,
    **more: Any,
) -> Path:
    """Print the summary and write everything to a dated file, `DATE-NAME.json`.

    Args:
        rows: every measurement.
        summary: what they come to; numbers and words are printed a line each.
        more: what else the report holds, such as settings.
    """
    now = datetime.datetime.now(datetime.UTC)
    script = Path(sys.argv[0]).resolve()
    script = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else script.name
    report = {
        "benchmark": name,
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(["python", str(script), *sys.argv[1:]]),
        "versions": versions(packages),
        "machine": machine(),
        "allocator": {variable: os.environ[variable] for variable in ALLOCATOR if variable in os.environ},
        "load_average": os.getloadavg(),
        **more,
        "summary": summary,
        "rows": rows,
    }
    file = results / f"{now:%Y-%m-%d}-{name}.json"
    write_aside(file, report)
    for key, value in summary.items():
        if isinstance(value, dict) and "interval" in value:
            print(say_ratio(key, value))
        elif isinstance(value, float):
            print(f"{key}: {value:,.2f}")
        else:
            print(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}")
    print(file)
    return file
