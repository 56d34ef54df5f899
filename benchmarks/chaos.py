"""Disturbs training in every way that it meets in weeks on a cluster, and compares what comes out with a run that
nothing disturbed: `python benchmarks/chaos.py --minutes 60`.

A round is a run of several processes under torchrun, with a plugin, a number of processes and a kind of storage that
are drawn. It is disturbed again and again, while starting, between steps and in saves, and each time started again by
the same command with `--load auto`, until all its steps are done:

    kill       a rank gets SIGKILL                  launcher   torchrun gets SIGKILL, its workers nothing
    stop       a rank gets SIGSTOP, and stays so    term       torchrun gets SIGTERM, as from Slurm
    disk       the disk is full (a small tmpfs)     store      the object store fails until the run has ended
                                                    hiccups    it fails for some requests

Breaches, each of which makes it exit with 1: a loss, gradient norm, rate, number of tokens or file of weights and
moments that is not, to the last bit, the undisturbed run's; a step that is missing or stands twice in metrics.jsonl;
more than a save interval of steps done again (with `--snapshots K` more than K + 1, where an asynchronous save was
refused more than two intervals); a run that does not end in time after a disturbance (a hang); a process or a snapshot
that is left behind; an end that nothing caused.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import write_report
from data.kills import write_corpus
from disturbing.rounds import Figures, compare, disturbed, undisturbed
from disturbing.runs import SAVE_INTERVAL, Run, Setting
from disturbing.world import OF_STORAGE, World

PLUGINS = {"zero2": (), "ddp": (), "fsdp": (), "hybrid_parallel": (), "gemini": ("--mixed_precision", "bf16")}
"""With flags that they need."""
SAVES = {"synchronous": (), "asynchronous": ("--async_save",)}


def settings_of(arguments: argparse.Namespace, world: World, numbers: random.Random) -> Iterator[Setting]:
    """Of the rounds, one after the other."""
    plugins = [name for name in PLUGINS if arguments.plugin in (None, name)]
    storages = [name for name in world.storages if arguments.storage in (None, name)]
    saves = [name for name in SAVES if arguments.saves in (None, name)]
    while True:
        for storage in storages:  # each in turn; what is with it is drawn
            flags = SAVES[numbers.choice(saves)]
            processes = numbers.choice([count for count in (2, 3, 4) if count <= arguments.processes])
            plugin = numbers.choice(plugins)
            snapshots = numbers.choice(sorted({0, arguments.snapshots})) if arguments.mixed else arguments.snapshots
            yield Setting(plugin, processes, storage, (*PLUGINS[plugin], *flags), snapshots, world.memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="rounds begin within them; default: 3")
    parser.add_argument("--disturbances", type=int, default=6, help="of a round, at most; default: 6")
    parser.add_argument("--processes", type=int, default=4, choices=(2, 3, 4), help="at most; default: 4")
    parser.add_argument("--plugin", choices=PLUGINS, help="this one alone")
    parser.add_argument("--storage", choices=tuple(OF_STORAGE), help="this kind alone")
    parser.add_argument("--saves", choices=tuple(SAVES), help="saves of this kind alone")
    parser.add_argument("--snapshots", type=int, default=0, metavar="STEPS", help="between those in memory")
    parser.add_argument("--mixed", action="store_true", help="with --snapshots: rounds without them as well, as drawn")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--results", type=Path, help="folder for a dated file of the figures")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its runs and disks end with it
    numbers = random.Random(arguments.seed)
    figures, began = Figures(), time.monotonic()
    steps = 2 * SAVE_INTERVAL * max(2, arguments.disturbances)
    with tempfile.TemporaryDirectory(prefix="chaos_") as name, ExitStack() as stack:
        folder = Path(name)
        world = World(stack, folder)
        corpus = write_corpus(folder, 8 * steps)
        results: dict[tuple[str, int], Any] = {}
        for number, setting in enumerate(settings_of(arguments, world, numbers)):
            if number and time.monotonic() - began > 60 * arguments.minutes:
                break
            key = (setting.plugin, setting.processes)
            if key not in results:
                print(f"undisturbed: {setting.plugin} x {setting.processes}", flush=True)
                home = folder / f"undisturbed_{number}"
                plain = Setting(setting.plugin, setting.processes, "disk", PLUGINS[setting.plugin])
                results[key] = undisturbed(Run(plain, home, corpus, steps, str(home / "saved")), world)
            print(f"round {number + 1}: {setting}", flush=True)
            home = folder / f"round_{number}"
            run = Run(setting, home, corpus, steps, world.place(setting.storage, home))
            disturbed(run, world, numbers, arguments.disturbances, figures)
            try:
                compare(run, results[key], run.result(world.environment), figures)
            except OSError as error:
                figures.breach(f"{setting}: no result to compare: {error}")
            if left := list(world.memory.iterdir()):
                figures.breach(f"{setting}: {len(left)} folders of snapshots are left")
            world.clear(setting.storage)
            shutil.rmtree(home)
    report = {
        "rounds": number,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "disturbances": dict(sorted(Counter(row["kind"] for row in figures.rows).items())),
        "steps_compared": figures.steps,
        "tokens_lost": figures.tokens_lost,
        "hangs": figures.hangs,
        "left_behind": figures.left_behind,
        "most_steps_done_again": max(figures.redone, default=0),
        "from_memory": figures.from_memory,
        "seconds_to_end": _spread(figures.end_seconds),
        "seconds_to_next_step": _spread(figures.back_seconds),
        "breaches": len(figures.breaches),
    }
    if arguments.results is None:
        print(json.dumps(report))
    else:
        write_report("chaos", arguments.results, figures.rows, report)
    sys.exit(1 if figures.breaches else 0)


def _spread(seconds: list[float]) -> dict[str, float]:
    """Median and worst."""
    return {"median": round(statistics.median(seconds), 1), "worst": round(max(seconds), 1)} if seconds else {}


if __name__ == "__main__":
    main()
