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
more than a save interval of steps done again; a run that does not end in time after a disturbance (a hang); a process
that is left behind; an end that nothing caused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import REPOSITORY, write_report
from data.kills import write_corpus

from llama_dyt.core.store import at, store_of
from llama_dyt.training.trackers.jsonl import METRICS_FILE, read_metrics

SAVE_INTERVAL = 6
TIMEOUT_SECONDS = 15
"""The runs' own --timeout: what a rank that is not heard of is given."""
END_SECONDS = TIMEOUT_SECONDS + 75
"""What a disturbed run is given to end: torchrun kills a worker that does not heed SIGTERM after 30 s, and one that was
stopped while starting is missed by the others when they have started."""
LEFT_SECONDS = 10
"""What the last process is given after the launcher."""
START_SECONDS = 180
PLUGINS = ("zero2", "ddp", "fsdp", "hybrid_parallel")
SAVES = {"synchronous": (), "asynchronous": ("--async_save",)}
COMPARED = ("loss", "grad_norm", "lr", "tokens_seen")
MARK = "CHAOS_MARK"


@dataclass
class Figures:
    """What is counted over all rounds."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    end_seconds: list[float] = field(default_factory=list)
    back_seconds: list[float] = field(default_factory=list)
    redone: list[int] = field(default_factory=list)
    steps: int = 0
    hangs: int = 0
    left_behind: int = 0
    tokens_lost: int = 0

    def breach(self, what: str) -> None:
        print(f"BREACH: {what}", flush=True)
        self.breaches.append(what)


@dataclass(frozen=True)
class Setting:
    """How the runs of a round are made.

    Attributes:
        storage: "disk" (a folder), "tmpfs" (a small disk that can be filled) or "s3".
        flags: more of the run's flags.
    """

    plugin: str
    processes: int
    storage: str
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([f"{self.plugin} x {self.processes} on {self.storage}", *self.flags])


class Start:
    """One start of a run's command, until all its processes are gone."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        self._log = log
        with log.open("w", encoding="utf-8") as file:
            self.launcher = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **environment, MARK: self._mark},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[int]:
        """Of all that came of this start, whoever their parent is now; those that have ended count no more."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    found += [int(folder.name)] if state not in "ZX" else []
            except OSError:
                continue
        return found

    def workers(self) -> list[int]:
        """The ranks: what torchrun started itself."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        try:
            return [int(pid) for pid in children.read_text().split()]
        except OSError:
            return []

    def ended(self) -> bool:
        return self.launcher.poll() is not None

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true before the time, and before the run ended."""
        last = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > last or self.ended():
                return condition()
            time.sleep(0.02)
        return True

    def kill(self) -> None:
        for pid in self.processes():
            _send(pid, signal.SIGKILL)
        self.launcher.wait()

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Run:
    """A run of a setting, in a folder of its own."""

    def __init__(self, setting: Setting, folder: Path, corpus: tuple[Path, Path], steps: int, place: str) -> None:
        self.setting = setting
        self.folder = folder
        folder.mkdir(parents=True)
        self.place = place
        self.steps = steps
        self.witness = folder / "witness"
        self._starts = 0
        mixture, tokenizer = corpus
        self._flags = ["--hidden_width", "32", "--num_layers", "2", "--num_heads", "4", "--intermediate_size", "64"]
        self._flags += ["-d", str(mixture), "--tokenizer", str(tokenizer), "-l", "64", "-b", "2", "-x", "fp32"]
        self._flags += ["-p", setting.plugin, "--load", "auto", "-t", "none", "-s", "2", "-i", str(SAVE_INTERVAL)]
        self._flags += ["--log_interval", "1", "--validation_freq", str(SAVE_INTERVAL), "--validation_batches", "1"]
        self._flags += ["--validation_fraction", "0.1", "--shuffle_buffer", "50", "--max_steps", str(steps)]
        self._flags += ["--timeout", str(TIMEOUT_SECONDS), "-o", place, *setting.flags]
        self._flags += ["--import", "chaos_witness", "--callback", "witness"]

    def start(self, environment: dict[str, str]) -> Start:
        self._starts += 1
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command += [str(self.setting.processes), "pretrain.py", *self._flags]
        own = {
            "CHAOS_WITNESS": str(self.witness),
            "PYTHONPATH": str(Path(__file__).parent),
            "OMP_NUM_THREADS": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "30",
        }
        return Start(command, self.folder / f"start_{self._starts}.log", {**environment, **own})

    def trained(self) -> list[int]:
        """Every step that was trained, in order, those done again again."""
        return [int(line) for line in self.witness.read_text().split()] if self.witness.exists() else []

    def is_saving(self) -> bool:
        folder = Path(self.place)
        return folder.is_dir() and any(name.startswith(".step_") for name in os.listdir(folder))

    def result(self, environment: dict[str, str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """(records, file → hash of the last checkpoint's weights and moments)."""
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            place = at(self.place)
            local = store_of(place).local(place)
            last = local / f"step_{self.steps:08d}"
            files = [file for part in ("model", "optimizer") for file in sorted((last / part).iterdir())]
            hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
            return read_metrics(local / METRICS_FILE), hashes
        finally:
            os.environ.clear()
            os.environ.update(before)


# --- what disturbs ---------------------------------------------------------------------------------------------------


class World:
    """What can be disturbed beside the processes: a disk that can be filled, a store that can fail.

    Attributes:
        storages: kinds of storage that this machine has.
        environment: for the runs, where they use the store.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.environment: dict[str, str] = {}
        self.storages = ["disk"]
        self._s3 = None
        self._disk = folder / "small_disk"
        self._disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "chaos", str(self._disk)]
        if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            stack.callback(subprocess.run, ["umount", "-l", str(self._disk)], check=False)
            self.storages.append("tmpfs")
        else:
            print("no disk is filled: a tmpfs can be mounted by root alone")
        try:
            import boto3  # noqa: F401
            import moto.server  # noqa: F401
        except ImportError:
            print("no object store fails: pip install -r requirements-dev.txt for moto's server")
        else:
            sys.path.insert(0, str(REPOSITORY))
            from tests.s3_server import BUCKET, Fault, serving

            self._s3, self._bucket, self._fault = stack.enter_context(serving()), BUCKET, Fault
            self.environment = {**self._s3.environment, "XDG_CACHE_HOME": str(folder / "cache")}
            self.storages.append("s3")

    def place(self, storage: str, folder: Path) -> str:
        """The --save_dir of a run."""
        if storage == "s3":
            return f"s3://{self._bucket}/{folder.parent.name}/{folder.name}"
        return str((self._disk if storage == "tmpfs" else folder) / f"{folder.name}_saved")

    def clear(self, storage: str) -> None:
        """Make room on the small disk for the next run."""
        if storage == "tmpfs":
            for saved in self._disk.iterdir():
                shutil.rmtree(saved)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Nothing more can be written."""
        ballast = self._disk / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(65536))
                except OSError:
                    pass
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def failing_store(self, kind: str, times: int | None) -> Iterator[None]:
        """The next requests fail so; None for all while inside."""
        fault = self._fault(".", kind, times)
        self._s3.faults.append(fault)
        try:
            yield
        finally:
            self._s3.faults.remove(fault)


def disturb(kind: str, start: Start, world: World, stack: ExitStack, numbers: random.Random) -> bool:
    """Do it; whether the run has to end of it. What has to be undone is, when the stack closes."""
    if kind in ("kill", "stop"):
        ranks = start.workers()
        if not ranks:
            return False
        _send(numbers.choice(ranks), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    elif kind == "launcher":
        _send(start.launcher.pid, signal.SIGKILL)
    elif kind == "term":
        _send(start.launcher.pid, signal.SIGTERM)
    elif kind == "disk":
        stack.enter_context(world.full_disk())
    elif kind == "store":
        stack.enter_context(world.failing_store(numbers.choice(["internal_error", "expired", "cut"]), None))
    elif kind == "hiccups":
        hiccup = numbers.choice(["internal_error", "slow_down", "cut", "lost", "half"])
        stack.enter_context(world.failing_store(hiccup, numbers.randint(1, 3)))
        return False
    return True


ALWAYS = ("kill", "stop", "launcher", "term")
OF_STORAGE = {"disk": (), "tmpfs": ("disk",), "s3": ("store", "hiccups")}
MOMENTS = ("start", "step", "save")


# --- a round ---------------------------------------------------------------------------------------------------------


def undisturbed(run: Run, world: World) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The result that all are compared with."""
    start = run.start(world.environment)
    start.launcher.wait()
    if start.launcher.returncode:
        raise SystemExit(f"the undisturbed run failed:\n{start.said()[-3000:]}")
    return run.result(world.environment)


def disturbed(run: Run, world: World, numbers: random.Random, most: int, figures: Figures) -> None:
    """Disturb a run so many times, if it lasts, and have it go on until its steps are done."""
    disturbances, failures = 0, 0
    while failures < 3:
        kind = numbers.choice(ALWAYS + OF_STORAGE[run.setting.storage]) if disturbances < most else None
        moment = numbers.choice(MOMENTS)
        with ExitStack() as stack:
            start, before, began = run.start(world.environment), run.trained(), time.monotonic()
            if moment != "start" or kind is None:
                _come_to_a_step(run, start, before, began, figures)
            has_to_end = False
            if kind is not None and _come_to_the_moment(run, start, len(before), moment, numbers):
                disturbances += 1
                row = {"setting": str(run.setting), "kind": kind, "moment": moment, "step": len(set(run.trained()))}
                print(f"  {kind} ({moment}) after step {row['step']}", flush=True)
                has_to_end = disturb(kind, start, world, stack, numbers)
                row["seconds_to_end"] = _end(run, start, f"{kind} ({moment})", has_to_end, figures)
                figures.rows.append(row)
            else:
                _end(run, start, "nothing", False, figures)
        if start.launcher.returncode == 0:
            return
        if not has_to_end:
            failures += 1
            status = start.launcher.returncode
            figures.breach(f"{run.setting}: it ended with {status} of its own accord\n{start.said()[-3000:]}")


def _come_to_a_step(run: Run, start: Start, before: list[int], began: float, figures: Figures) -> None:
    """Wait for the first step of a start, and look which it is."""
    if not start.wait_until(lambda: len(run.trained()) > len(before), START_SECONDS):
        return  # it has ended, or hangs: both are seen to where the end is waited for
    if before:
        figures.back_seconds.append(time.monotonic() - began)
        redone = max(before) + 1 - run.trained()[len(before)]
        figures.redone.append(redone)
        if not 0 <= redone <= SAVE_INTERVAL:
            figures.breach(f"{run.setting}: {redone} steps done again, with {SAVE_INTERVAL} between saves")


def _come_to_the_moment(run: Run, start: Start, before: int, moment: str, numbers: random.Random) -> bool:
    """Wait for when a run is to be disturbed; False where it has ended by then."""
    if moment == "start":
        start.wait_until(lambda: False, numbers.uniform(0, 8))
    else:
        further = numbers.randint(1, 2 * SAVE_INTERVAL - 1)
        start.wait_until(lambda: len(run.trained()) >= before + further, START_SECONDS)
        if moment == "save":
            start.wait_until(run.is_saving, 5)
        start.wait_until(lambda: False, numbers.uniform(0, 0.2))
    return not start.ended()


def _end(run: Run, start: Start, cause: str, has_to_end: bool, figures: Figures) -> float:
    """Wait until all processes of a start are gone, and end what is not in time; gives the launcher's seconds."""
    began, seconds = time.monotonic(), END_SECONDS if has_to_end else START_SECONDS
    start.wait_until(lambda: False, seconds)
    lasted = time.monotonic() - began
    if not start.ended():
        figures.hangs += 1
        figures.breach(f"{run.setting}: {cause}, and it had not ended after {seconds} s\n{start.said()[-3000:]}")
        start.kill()
    elif has_to_end:
        figures.end_seconds.append(lasted)
    last = time.monotonic() + LEFT_SECONDS
    while (left := start.processes()) and time.monotonic() < last:
        time.sleep(0.05)
    if left:
        figures.left_behind += len(left)
        figures.breach(f"{run.setting}: {cause}, and {len(left)} processes were left behind")
        start.kill()
    return round(lasted, 1)


def compare(run: Run, expected: tuple[list, dict], found: tuple[list, dict], figures: Figures) -> None:
    """Count what is other than in the undisturbed run."""
    records, hashes = found
    ended = sum(row["kind"] == "term" and row["setting"] == str(run.setting) for row in figures.rows)
    for key, may_miss in (("loss", 0), ("validation_loss", ended)):  # a signal cuts a validation short
        sides = [{record["step"]: record for record in side if key in record} for side in (expected[0], records)]
        steps = [record["step"] for record in records if key in record]
        if len(sides[0].keys() - sides[1].keys()) > may_miss or sides[1].keys() - sides[0].keys():
            figures.breach(f"{run.setting}: {METRICS_FILE} has the steps {steps} of {key}, not {list(sides[0])}")
        if len(steps) != len(sides[1]):
            figures.breach(f"{run.setting}: {METRICS_FILE} has a step twice among {steps} of {key}")
        names = COMPARED if key == "loss" else (key,)
        for step in sorted(sides[0].keys() & sides[1].keys()):
            unlike = [name for name in names if sides[0][step][name] != sides[1][step][name]]
            if unlike:
                figures.breach(f"{run.setting}: step {step} has another {' and '.join(unlike)}")
                break
    tokens = [max((record.get("tokens_seen", 0) for record in side), default=0) for side in (expected[0], records)]
    figures.tokens_lost += abs(tokens[0] - tokens[1])
    unlike = [name for name in expected[1] if hashes.get(name) != expected[1][name]]
    if unlike or set(hashes) != set(expected[1]):
        figures.breach(f"{run.setting}: other bytes in {', '.join(unlike) or 'the list of files'}")
    figures.steps += run.steps


def settings_of(arguments: argparse.Namespace, storages: list[str], numbers: random.Random) -> Iterator[Setting]:
    """Of the rounds, one after the other."""
    plugins = [name for name in PLUGINS if arguments.plugin in (None, name)]
    storages = [name for name in storages if arguments.storage in (None, name)]
    saves = [name for name in SAVES if arguments.saves in (None, name)]
    while True:
        for storage in storages:  # each in turn; what is with it is drawn
            flags = SAVES[numbers.choice(saves)]
            processes = numbers.choice([count for count in (2, 3, 4) if count <= arguments.processes])
            yield Setting(numbers.choice(plugins), processes, storage, flags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="rounds begin within them; default: 3")
    parser.add_argument("--disturbances", type=int, default=6, help="of a round, at most; default: 6")
    parser.add_argument("--processes", type=int, default=4, choices=(2, 3, 4), help="at most; default: 4")
    parser.add_argument("--plugin", choices=PLUGINS, help="this one alone")
    parser.add_argument("--storage", choices=tuple(OF_STORAGE), help="this kind alone")
    parser.add_argument("--saves", choices=tuple(SAVES), help="saves of this kind alone")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--results", type=Path, help="folder for a dated file of the figures")
    arguments = parser.parse_args()
    numbers = random.Random(arguments.seed)
    figures, began = Figures(), time.monotonic()
    steps = 2 * SAVE_INTERVAL * max(2, arguments.disturbances)
    with tempfile.TemporaryDirectory(prefix="chaos_") as name, ExitStack() as stack:
        folder = Path(name)
        world = World(stack, folder)
        corpus = write_corpus(folder, 8 * steps)
        results: dict[tuple[str, int], Any] = {}
        for number, setting in enumerate(settings_of(arguments, world.storages, numbers)):
            if number and time.monotonic() - began > 60 * arguments.minutes:
                break
            key = (setting.plugin, setting.processes)
            if key not in results:
                print(f"undisturbed: {setting.plugin} x {setting.processes}", flush=True)
                home = folder / f"undisturbed_{number}"
                plain = Setting(setting.plugin, setting.processes, "disk")
                results[key] = undisturbed(Run(plain, home, corpus, steps, str(home / "saved")), world)
            print(f"round {number + 1}: {setting}", flush=True)
            home = folder / f"round_{number}"
            run = Run(setting, home, corpus, steps, world.place(setting.storage, home))
            disturbed(run, world, numbers, arguments.disturbances, figures)
            try:
                compare(run, results[key], run.result(world.environment), figures)
            except OSError as error:
                figures.breach(f"{setting}: no result to compare: {error}")
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
