"""What snapshots in memory cost, and what they save: `python benchmarks/snapshots.py --config 100m --plugin zero2`.

One run of several processes trains without them, one with a snapshot every K steps; then a rank of a third is killed
after a snapshot, and it is started again, once from memory and once from its checkpoint. Told are

    blocked       seconds for which a snapshot stops training, beside a save's, both from metrics.jsonl
    slowed        how much longer steps take between snapshots, by the medians of both runs' steps
    back          seconds from the start of the command to the first step, from memory and from the checkpoint

All in one sitting, on a machine that does nothing else; --pairs repeats the first two in turn.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import REPOSITORY, write_report

from llama_dyt.training.trackers.jsonl import read_metrics

SAVE_AT = 4
"""The step of the one checkpoint."""


def command(arguments: argparse.Namespace, save_dir: Path, steps: int, more: list[str]) -> list[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    words += [str(arguments.processes), "pretrain.py", "-c", arguments.config, "-d", "sample", "-p", arguments.plugin]
    words += ["-x", arguments.mixed_precision, "-l", str(arguments.length), "-b", "1", "-t", "none"]
    return [*words, "--max_steps", str(steps), "-s", "1", "-o", str(save_dir), "--load", "auto", *more]


def train(arguments: argparse.Namespace, save_dir: Path, more: list[str]) -> list[dict[str, Any]]:
    """The records of a whole run."""
    ran = subprocess.run(
        command(arguments, save_dir, arguments.steps, more), cwd=REPOSITORY, capture_output=True, text=True
    )
    if ran.returncode:
        raise SystemExit(f"a run failed:\n{ran.stderr[-3000:]}")
    records = read_metrics(save_dir / "metrics.jsonl")
    shutil.rmtree(save_dir)
    return records


def start_until(arguments: argparse.Namespace, save_dir: Path, more: list[str], step: int) -> tuple[float, str]:
    """(seconds until this start has done `step`, what it said); it is killed then."""
    log, metrics = save_dir.with_suffix(".log"), save_dir / "metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else None  # a run that resumes writes the file anew
    began = time.monotonic()
    with log.open("w") as file:
        words = command(arguments, save_dir, 10_000, more)
        run = subprocess.Popen(words, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

        def is_there() -> bool:
            found = read_metrics(metrics) if metrics.exists() and metrics.stat().st_ino != before else []
            return any(record["step"] >= step for record in found)

        while not is_there():
            if run.poll() is not None:
                raise SystemExit(f"a run failed:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)
        seconds = time.monotonic() - began
        run.send_signal(signal.SIGKILL)  # its workers end with it
        run.wait()
    time.sleep(2.0)
    return seconds, log.read_text()


def seconds_of(records: list[dict[str, Any]], tokens_a_step: float) -> float:
    """Of a step: the median, the first two and those with a snapshot or save left out."""
    beside = ("snapshot_blocked_seconds", "save_blocked_seconds")
    plain = [record for record in records[2:] if not any(name in record for name in beside)]
    return statistics.median(tokens_a_step / record["tokens_per_second"] for record in plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="100m")
    parser.add_argument("--plugin", default="zero2")
    parser.add_argument("--mixed_precision", default="bf16")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--interval", type=int, default=6, help="steps between snapshots; default: 6")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--results", type=Path, help="folder for a dated file of the figures")
    arguments = parser.parse_args()
    taking = ["--snapshot_interval", str(arguments.interval)]
    tokens = arguments.length * arguments.processes
    rows = []
    with tempfile.TemporaryDirectory(prefix="snapshots_") as name:
        folder = Path(name)
        for pair in range(arguments.pairs):
            without = train(arguments, folder / "without", ["-i", str(arguments.steps)])
            taken = train(arguments, folder / "with", ["-i", str(arguments.steps // 2), *taking])
            blocked = [record["snapshot_blocked_seconds"] for record in taken if "snapshot_blocked_seconds" in record]
            saves = [record["save_blocked_seconds"] for record in taken if "save_blocked_seconds" in record]
            plain, beside = seconds_of(without, tokens), seconds_of(taken, tokens)
            rows.append(
                {
                    "pair": pair,
                    "step_seconds": round(plain, 3),
                    "step_seconds_with_snapshots": round(beside, 3),
                    "snapshot_blocked_seconds": [round(seconds, 3) for seconds in blocked],
                    "save_blocked_seconds": [round(seconds, 3) for seconds in saves],
                }
            )
            print(rows[-1], flush=True)
        save_dir, saving = folder / "killed", ["-i", str(SAVE_AT)]
        taking = ["--snapshot_interval", str(SAVE_AT + 1)]
        start_until(arguments, save_dir, [*saving, *taking], SAVE_AT + 3)
        kept = folder / "kept"
        shutil.copytree(save_dir, kept)
        memory, said = start_until(arguments, save_dir, [*saving, *taking], SAVE_AT + 2)
        shutil.rmtree(save_dir)
        shutil.copytree(kept, save_dir)
        disk, said_then = start_until(arguments, save_dir, saving, SAVE_AT + 1)
        for left in Path("/dev/shm").glob("llama_dyt-snapshots-*"):
            if str(save_dir) in (left / "run.json").read_text():
                shutil.rmtree(left)
    report = {
        name: {"seconds_to_first_step": round(seconds, 1), "resumed_from": re.findall("resumed from (.*)", text)}
        for name, seconds, text in (("memory", memory, said), ("checkpoint", disk, said_then))
    }
    if arguments.results is None:
        print(report)
    else:
        write_report("snapshots", arguments.results, rows, report)


if __name__ == "__main__":
    main()
