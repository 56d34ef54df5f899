"""What all benchmarks share: their flags, processes of their own, ratios of pairs, and the form of their reports.

Its own file so that every benchmark says the same things about where and how it was measured, and scripts/
performance_tables.py can read them all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from llama_dyt.training.measurement.provenance import PACKAGES, provenance, write_json_aside  # noqa: E402

RESULTS = REPOSITORY / "benchmarks" / "results"
WORK = REPOSITORY / "data" / "benchmarks"
MEGABYTE = 2**20
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


def keep_large_buffers() -> None:
    """Start this process again under KEEP_LARGE_BUFFERS, unless it has such settings: glibc reads them at a start."""
    if any(os.environ.get(name) is None for name in KEEP_LARGE_BUFFERS):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**KEEP_LARGE_BUFFERS, **os.environ})


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


def ratio_of_pairs(
    ours: Sequence[float], theirs: Sequence[float], launches: Sequence[int] | None = None, resamples: int = 10_000
) -> dict[str, Any]:
    """The median of ours/theirs over pairs measured one right after the other, and its 95% bootstrap interval.

    Args:
        launches: of each pair, the number of the start of the processes that made it. Pairs of one launch have more in
            common than others, so launches are drawn first, and then pairs of them. None: they are all alike.

    Raises:
        ValueError: the two are not of the same length, or empty.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} figures of ours and {len(theirs)} of theirs make no pairs")
    ratios = [one / other for one, other in zip(ours, theirs)]
    groups: dict[int, list[float]] = {}
    for launch, ratio in zip(launches or [0] * len(ratios), ratios, strict=True):
        groups.setdefault(launch, []).append(ratio)
    draw = random.Random(0)

    def resampled() -> list[float]:
        chosen = draw.choices(list(groups.values()), k=len(groups))
        return [ratio for group in chosen for ratio in draw.choices(group, k=len(group))]

    medians = sorted(statistics.median(resampled()) for _ in range(resamples))
    low, high = medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]
    return {"median": statistics.median(ratios), "interval": [low, high], "pairs": len(ratios)}


def say_ratio(name: str, ratio: dict[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"{name}: {ratio['median']:.3f} (95% interval {low:.3f} to {high:.3f}, {ratio['pairs']} pairs)"


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
    script = Path(sys.argv[0]).resolve()
    script = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else script.name
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = ["torchrun", "--nproc_per_node", processes] if processes else ["python"]
    head = provenance(packages)
    report = {
        "benchmark": name,
        "command": shlex.join([*launcher, str(script), *sys.argv[1:]]),
        **head,
        **more,
        "summary": summary,
        "rows": rows,
    }
    file = results / f"{head['date'][:10]}-{name}.json"
    write_json_aside(file, report)
    for key, value in summary.items():
        if isinstance(value, dict) and "interval" in value:
            print(say_ratio(key, value))
        elif isinstance(value, float):
            print(f"{key}: {value:,.2f}")
        else:
            print(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}")
    print(file)
    return file
