"""A whole training step, ours against others', and DyT against RMSNorm: `python benchmarks/steps.py --config 15m`.

Each side is a process of its own (see `step_sides.py`) that waits until it is told to make a step. Ours and another
take turns, a step each, so that whatever else the machine does hits both; the order changes with every pair. Where in
memory a process happens to lie makes it a few percent faster or slower for as long as it lives, so both are started
anew several times. First, unmeasured, come the steps that must have the same losses on all sides: another model, other
weights or other data would make a ratio of nothing. Ratios are of the two steps of a pair; the median and its 95%
bootstrap interval are printed, by the clock and by the time of the cores, which other programs disturb less (with one
thread: OMP_NUM_THREADS=1).

What follows `--` goes to our side alone, such as `-- --compile`. HuggingFace's Trainer needs `accelerate`
(requirements-dev.txt); without it that side is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import KEEP_LARGE_BUFFERS, REPOSITORY, arguments, ratio_of_pairs, say_ratio, write_report
from step_sides import SIDES, Work

PEERS = ("bare", "huggingface", "colossalai", "rmsnorm")
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}
"""How far losses of the first steps may be apart, relatively: rounding, and the paths of bf16 weights and autocast."""


class Side:
    """A process that trains a step when told to; it is started at once, and waited for at its first step."""

    def __init__(self, name: str, side: str, work: Work) -> None:
        self.name = name
        command = [sys.executable, str(Path(__file__).with_name("step_sides.py")), side, json.dumps(asdict(work))]
        environment = {**KEEP_LARGE_BUFFERS, "HF_HUB_OFFLINE": "1", **os.environ}
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ready = False

    def step(self) -> dict[str, Any]:
        """Its seconds, loss and memory.

        Raises:
            SystemExit: the process ended; what it said stands above.
        """
        if not self._ready:
            self._ready = bool(self._answer())
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it; it holds nothing worth a farewell."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the side {self.name} ended, exit status {self._process.wait()}")
        return json.loads(line)


def compare_losses(losses: dict[str, list[float]], tolerance: float) -> float:
    """The largest relative distance of a side's losses from ours.

    Raises:
        SystemExit: it is larger than `tolerance`.
    """
    largest = 0.0
    for name, own in losses.items():
        for number, (mine, other) in enumerate(zip(losses["ours"], own), 1):
            distance = abs(mine - other) / mine
            largest = max(largest, distance)
            if distance > tolerance:
                raise SystemExit(f"step {number}: {name} has loss {other}, ours {mine}: not the same training")
    return largest


def measure_pairs(works: dict[str, tuple[str, Work]], given: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """Every pair of steps, and the largest distance of the first losses, 0.0 where they need not agree.

    Args:
        works: of the two sides, ours first: name → (loop, work).
        given: the command line.

    Raises:
        SystemExit: the sides do not train the same.
    """
    rows, distance = [], 0.0
    _, peer = works
    same = all(name in SIDES for name in works)
    for launch in range(given.launches):
        with ExitStack() as stack:
            sides = {name: stack.enter_context(closing(Side(name, *work))) for name, work in works.items()}
            losses = {name: [side.step()["loss"] for _ in range(given.warmup)] for name, side in sides.items()}
            if same:  # not so for two norms
                distance = max(distance, compare_losses(losses, LOSS_TOLERANCE[given.mixed_precision]))
            for turn, number in enumerate(range(launch, given.pairs, given.launches)):
                order = list(sides) if (turn + launch) % 2 == 0 else reversed(sides)
                answers = {name: sides[name].step() for name in order}
                about = {"launch": launch, "pair": number, "against": peer}
                rows += [{**about, "side": name, **answer} for name, answer in answers.items()]
    return rows, distance


def tokens_ratio(rows: list[dict[str, Any]], peer: str, figure: str) -> dict[str, Any]:
    """Tokens a second of ours over the peer's, seconds being of `figure`."""
    mine, theirs = ([row for row in rows if row["against"] == peer and row["side"] == side] for side in ("ours", peer))
    speeds = ([1 / row[figure] for row in side] for side in (mine, theirs))
    return ratio_of_pairs(*speeds, launches=[row["launch"] for row in mine])


def main() -> None:
    parser = arguments(
        __doc__,
        config=("15m", "size of the model"),
        mixed_precision=("fp32", "fp32 or bf16"),
        batch_size=(4, "sequences"),
        max_length=(256, "tokens a sequence"),
        plugin=("ddp", "our plugin"),
        pairs=(24, "pairs of each comparison"),
        launches=(6, "times that both sides are started, to share the pairs"),
        warmup=(3, "steps before, on each side, whose losses must agree"),
        name=("steps", "of the report"),
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help=f"default: {' '.join(PEERS)}")
    parser.add_argument("flags", nargs="*", help="further flags of benchmark.py for our side, after --")
    given = parser.parse_args()
    peers = list(given.peers)
    left_out = {}
    if "huggingface" in peers and find_spec("accelerate") is None:
        left_out["huggingface"] = "accelerate is not installed (requirements-dev.txt)"
        print(f"left out: huggingface: {left_out['huggingface']}", file=sys.stderr)
        peers.remove("huggingface")
    plain = Work(given.config, "dyt", given.mixed_precision, given.batch_size, given.max_length, given.plugin)
    work = replace(plain, flags=tuple(given.flags))
    tokens = given.batch_size * given.max_length

    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    largest = 0.0
    for peer in peers:
        other = ("ours", replace(work, norm="rmsnorm")) if peer == "rmsnorm" else (peer, plain)
        found, distance = measure_pairs({"ours": ("ours", work), peer: other}, given)
        rows += found
        largest = max(largest, distance)
        key = "DyT / RMSNorm" if peer == "rmsnorm" else f"ours / {peer}"
        summary[f"{key}, tokens/s"] = tokens_ratio(rows, peer, "seconds")
        summary[f"{key}, tokens a second of the cores"] = tokens_ratio(rows, peer, "cpu_seconds")
        print(say_ratio(key, summary[f"{key}, tokens/s"]), file=sys.stderr)
    for name in ("ours", *peers):
        times = sorted(row["seconds"] for row in rows if row["side"] == name)
        summary[f"{name}: median tokens/s"] = tokens / times[len(times) // 2]
        summary[f"{name}: memory, MB"] = max(row["memory_mb"] for row in rows if row["side"] == name)
    summary["largest relative distance of the first losses"] = f"{largest:.1e}"
    settings = {"pairs": given.pairs, "launches": given.launches, "threads": os.environ.get("OMP_NUM_THREADS")}
    setting = {"settings": {**asdict(work), **settings}}
    name = f"{given.name}-{given.config}-{given.mixed_precision}"
    write_report(name, given.results, rows, summary, **setting, left_out=left_out, ours_allocator=KEEP_LARGE_BUFFERS)


if __name__ == "__main__":
    main()
