"""Has one rank of a run fail in every way and at every moment, and measures how long it takes until all have ended:
`python benchmarks/faults.py`.

A cell is a run of two processes under torchrun, of a plugin, in which the second rank fails once:

    kill     it gets SIGKILL          start    before the ranks meet
    stop     it gets SIGSTOP          step     in a step, in which the other waits for it
    raise    it raises                save     in a save
    memory   it asks for too much of it

Breaches, each of which makes it exit with 1: the run has not ended after `--limit` seconds, its reason is not the first
thing that is said of it, it does not say where each rank stood, or a process is left behind.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import write_report
from data.kills import write_corpus
from disturbing.failing import STEP, WORDS
from disturbing.rounds import LEFT_SECONDS, START_SECONDS
from disturbing.runs import SAVE_INTERVAL, Start

PLUGINS = ("ddp", "zero2", "fsdp", "gemini", "hybrid_parallel")
KINDS = ("kill", "stop", "raise", "memory")
MOMENTS = ("start", "step", "save")
FAILING = 1
FLAGS = {"gemini": ("-x", "bf16"), "hybrid_parallel": ("-x", "fp32", "--tp", "2")}
PHASES = {"step": f"step {STEP}, callbacks", "save": f"step {SAVE_INTERVAL}, save"}
REASONS = {
    "kill": "is gone and has said nothing: it was killed from outside",
    "stop": " s at least (by SIGSTOP",
    "raise": WORDS,
    "memory": "MemoryError",
}
FATES = {"kill": "gone", "stop": "stopped", "raise": "raised", "memory": "raised"}
OF_TORCHRUN = "torch/distributed/elastic/multiprocessing/api.py"


@dataclass(frozen=True)
class Cell:
    """A plugin, what becomes of its second rank, and when."""

    plugin: str
    kind: str
    moment: str

    def __str__(self) -> str:
        return f"{self.plugin}: {self.kind} ({self.moment})"


def run(cell: Cell, folder: Path, corpus: tuple[Path, Path], limit: float) -> tuple[float, list[str]]:
    """(Seconds from the failure to the end of the last process, what was wrong).

    Args:
        folder: to work in; made here.
        limit: seconds after which the run counts as hanging.
    """
    folder.mkdir(parents=True)
    text, tokenizer = corpus
    failed = folder / "failed_at"
    flags = ["--hidden_width", "32", "--num_layers", "2", "--num_heads", "4", "--intermediate_size", "64"]
    flags += ["-d", str(text), "--tokenizer", str(tokenizer), "-l", "32", "-b", "2", "-t", "none", "-s", "2"]
    flags += ["-p", cell.plugin, *FLAGS.get(cell.plugin, ("-x", "fp32")), "-i", str(SAVE_INTERVAL)]
    flags += ["--max_steps", str(2 * SAVE_INTERVAL), "-o", str(folder / "saved")]
    flags += ["--import", "disturbing.failing", "--callback", "fault"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "pretrain.py"]
    environment = {
        "FAULT": f"{cell.kind} {cell.moment} {FAILING}",
        "FAULT_TIME": str(failed),
        "PYTHONPATH": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
    }
    start = Start([*command, *flags], folder / "log", environment)
    try:
        start.wait_until(failed.exists, START_SECONDS)
        if not failed.exists():
            return 0.0, [f"it did not come to the failure\n{start.said()[-3000:]}"]
        start.wait_until(lambda: False, limit + 1)
        if not start.ended():
            return limit, [f"it had not ended after {limit:.0f} s\n{start.said()[-3000:]}"]
        last = time.monotonic() + LEFT_SECONDS
        while (left := start.processes()) and time.monotonic() < last:
            time.sleep(0.02)
        seconds = time.time() - float(failed.read_text())
        wrong = [f"{len(left)} processes were left behind"] if left else []
        if seconds > limit:
            wrong.append(f"it took {seconds:.1f} s to end, and {limit:.0f} were allowed")
        return seconds, wrong + why_it_says_too_little(cell, start.said())
    finally:
        start.kill()


def why_it_says_too_little(cell: Cell, said: str) -> list[str]:
    """What is not as it should be in what a run has printed."""
    ours, _, of_launcher = said.partition(OF_TORCHRUN)
    lines = [line for line in of_launcher.splitlines() if line.startswith(("error: ", "where ", "  rank"))]
    ours = "\n".join([ours, *lines])
    if cell.kind == "kill" and cell.moment == "start":  # nobody has met it: its launcher tells
        return [] if "SIGKILL" in said else [f"SIGKILL is not named\n{said[-3000:]}"]
    reason = ours.find(REASONS[cell.kind])
    if reason < 0:
        return [f"the reason is not told\n{said[-3000:]}"]
    if cell.moment == "start":
        return []
    stood = PHASES[cell.moment]
    expected = [f"rank {FAILING}: {FATES[cell.kind]}; {stood} for ", f"all ranks: {stood}\n"]
    if not any(line in ours[reason:] for line in expected):
        return [f"it does not say {expected[0]!r} after the reason\n{said[-3000:]}"]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", choices=PLUGINS, help="this one alone")
    parser.add_argument("--kind", choices=KINDS, help="this one alone")
    parser.add_argument("--moment", choices=MOMENTS, help="this one alone")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds a failed run may take to end; default: 30")
    parser.add_argument("--results", type=Path, help="folder for a dated file of the figures")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="faults_") as name:
        folder = Path(name)
        corpus = write_corpus(folder, 200)
        for number, words in enumerate(itertools.product(PLUGINS, KINDS, MOMENTS)):
            asked = (arguments.plugin, arguments.kind, arguments.moment)
            if any(one not in (None, word) for one, word in zip(asked, words, strict=True)):
                continue
            cell = Cell(*words)
            seconds, wrong = run(cell, folder / str(number), corpus, arguments.limit)
            rows.append({**vars(cell), "seconds": round(seconds, 1), "breaches": len(wrong)})
            print(f"{cell}: {seconds:.1f} s", flush=True)
            for line in wrong:
                print(f"BREACH: {cell}: {line}", flush=True)
    summary: dict[str, Any] = {"cells": len(rows), "breaches": sum(row["breaches"] for row in rows)}
    for kind in KINDS:
        seconds = [row["seconds"] for row in rows if row["kind"] == kind]
        if seconds:
            summary[f"seconds_{kind}"] = f"median {statistics.median(seconds):.1f}, worst {max(seconds):.1f}"
    if arguments.results is None:
        print(json.dumps(summary))
    else:
        write_report("faults", arguments.results, rows, summary)
    sys.exit(1 if summary["breaches"] else 0)


if __name__ == "__main__":
    main()
