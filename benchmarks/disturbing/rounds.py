"""A round: a run that is disturbed until its steps are done, and its comparison with one that nothing disturbed."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from disturbing.runs import SAVE_INTERVAL, TIMEOUT_SECONDS, Run, Start
from disturbing.world import ALWAYS, MOMENTS, OF_STORAGE, REFUSING, World, disturb
from llama_dyt.training.trackers.jsonl import METRICS_FILE

END_SECONDS = TIMEOUT_SECONDS + 75
"""What a disturbed run is given to end: torchrun kills a worker that does not heed SIGTERM after 30 s, and one that was
stopped while starting is missed by the others when they have started."""
LEFT_SECONDS = 10
"""What the last process is given after the launcher."""
START_SECONDS = 180
COMPARED = ("loss", "grad_norm", "lr", "tokens_seen")


@dataclass
class Figures:
    """What is counted over all rounds."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    end_seconds: list[float] = field(default_factory=list)
    back_seconds: list[float] = field(default_factory=list)
    redone: list[int] = field(default_factory=list)
    from_memory: int = 0
    steps: int = 0
    hangs: int = 0
    left_behind: int = 0
    tokens_lost: int = 0

    def breach(self, what: str) -> None:
        print(f"BREACH: {what}", flush=True)
        self.breaches.append(what)


def undisturbed(run: Run, world: World) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The result that all are compared with."""
    with run.start(world.environment) as start:
        start.launcher.wait()
    if start.launcher.returncode:
        raise SystemExit(f"the undisturbed run failed:\n{start.said()[-3000:]}")
    return run.result(world.environment)


def disturbed(run: Run, world: World, numbers: random.Random, most: int, figures: Figures) -> None:
    """Disturb a run so many times, if it lasts, and have it go on until its steps are done."""
    disturbances, failures, refused = 0, 0, False
    while failures < 3:
        kind = numbers.choice(ALWAYS + OF_STORAGE[run.setting.storage]) if disturbances < most else None
        moment = numbers.choice(MOMENTS)
        with ExitStack() as stack:
            start = stack.enter_context(run.start(world.environment))
            before, began = run.trained(), time.monotonic()
            if moment != "start" or kind is None:
                _come_to_a_step(run, start, before, began, run.setting.most_done_again(refused), figures)
                refused = False
            has_to_end = False
            if kind is not None and _come_to_the_moment(run, start, len(before), moment, numbers):
                disturbances += 1
                row = {"setting": str(run.setting), "kind": kind, "moment": moment, "step": len(set(run.trained()))}
                print(f"  {kind} ({moment}) after step {row['step']}", flush=True)
                has_to_end = disturb(kind, start, world, stack, numbers)
                row["seconds_to_end"] = _end(run, start, f"{kind} ({moment})", has_to_end, figures)
                figures.rows.append(row)
                refused = refused or kind in REFUSING
            else:
                _end(run, start, "nothing", False, figures)
        if start.launcher.returncode == 0:
            return
        if not has_to_end:
            failures += 1
            status = start.launcher.returncode
            figures.breach(f"{run.setting}: it ended with {status} of its own accord\n{start.said()[-3000:]}")


def _come_to_a_step(run: Run, start: Start, before: list[int], began: float, most: int, figures: Figures) -> None:
    """Wait for the first step of a start, and look whether no more than `most` are done again."""
    if not start.wait_until(lambda: len(run.trained()) > len(before), START_SECONDS):
        return  # it has ended, or hangs: both are seen to where the end is waited for
    if before:
        figures.back_seconds.append(time.monotonic() - began)
        redone = max(before) + 1 - run.trained()[len(before)]
        figures.redone.append(redone)
        figures.from_memory += "resumed from the snapshot in memory" in start.said()
        if not 0 <= redone <= most:
            figures.breach(f"{run.setting}: {redone} steps done again, and {most} may be")


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
    ended = any(row["kind"] == "term" and row["setting"] == str(run.setting) for row in figures.rows)
    # Of a signal in the last step comes no validation any more.
    for key, may_miss in (("loss", set()), ("validation_loss", {run.steps} if ended else set())):
        sides = [{record["step"]: record for record in side if key in record} for side in (expected[0], records)]
        steps = [record["step"] for record in records if key in record]
        if sides[0].keys() - sides[1].keys() - may_miss or sides[1].keys() - sides[0].keys():
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
