"""A snapshot that a run goes on from, and how ranks that come back agree on one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from llama_dyt.boosters.training_state import TrainingState
from llama_dyt.core import ranks
from llama_dyt.core.store import Location
from llama_dyt.training.snapshots.choosing import Parcel, Source, newest_whole, plan_of, why_none
from llama_dyt.training.snapshots.folder import MachineFolder, RunOfFolder
from llama_dyt.training.snapshots.layout import parts_in
from llama_dyt.training.snapshots.record import read_run_id
from llama_dyt.training.snapshots.slot import Held, fingerprint_of, map_slot, read_marker
from llama_dyt.training.snapshots.transfer import Incoming, Outgoing, ship

_AGREEING = "agreeing on a snapshot"
_MOST_DIFFERENCES = 3
_MOST_CHARACTERS = 60


class Snapshot:
    """This rank's part of one; it stands where a `Checkpoint` does for all but the tensors' names.

    Attributes:
        run_id: of the course that it belongs to.
        trainer_state, schedule, optimizer_scalars: as of a checkpoint, but for the random generators.
        lost_steps: how many were done after it; None where that is not known.
        last_step_at: when the last of them was, by this machine's clock; None likewise.
        seconds: how long agreeing took, checking and sending included.
    """

    def __init__(self, marker: dict[str, Any], memory: torch.Tensor, counters: dict[str, Any], run_id: str) -> None:
        self._marker = marker
        self._memory: torch.Tensor | None = memory
        self.run_id = run_id
        self.trainer_state = counters["trainer_state"]
        self.schedule = counters["schedule"]
        self.optimizer_scalars = counters["optimizer_scalars"]
        self.lost_steps: int | None = None
        self.last_step_at: float | None = None
        self.seconds = 0.0

    @property
    def step(self) -> int:
        return int(self._marker["step"])

    @property
    def number(self) -> int:
        """Of the slots that it is in, the same on all ranks."""
        return int(self._marker["number"])

    def generators(self, rank: int, world_size: int) -> dict[str, Any]:
        """Of this rank, for `set_rng_state`."""
        return self._marker["rng"]

    def fill(self, state: TrainingState) -> None:
        """Put this rank's masters and moments where they were, and have working weights follow. Collective."""
        state.take_own_parts(parts_in(self._memory, self._marker["pieces"]))
        self._memory = None  # done with

    def __str__(self) -> str:
        return f"the snapshot of step {self.step} in memory"

    @property
    def in_words(self) -> str:
        """What it is, and what the failure cost."""
        parts = [f"the snapshot in memory, step {self.step}"]
        if self.lost_steps is not None:
            plural = "" if self.lost_steps == 1 else "s"
            parts.append(f"{self.lost_steps} step{plural} lost")
            parts.append(f"{time.time() - self.last_step_at:.1f} s after the last one")
        return ", ".join([*parts, f"found and compared in {self.seconds:.1f} s"])


@dataclass(frozen=True)
class Inventory:
    """What a rank sees in its machine's folder."""

    machine: tuple
    run: RunOfFolder | None
    held: list[Held]
    differences: list[str]
    last_step: tuple[int, float] | None


def find_snapshot(
    folder: MachineFolder, save_dir: Location, facts: Mapping[str, str], at_least: int
) -> tuple[Snapshot | None, str | None]:
    """(the newest snapshot that all ranks have, or None; why there is none, where there were any). Collective.

    Args:
        facts: what must be the same in the run that took it.
        at_least: an earlier step is not worth it.
    """
    began = time.monotonic()
    run_id = ranks.from_first(lambda: read_run_id(save_dir), _AGREEING)
    if run_id is None:
        return None, None
    inventories = ranks.gather(_inventory(folder, run_id, facts), _AGREEING)
    differences = next((one.differences for one in inventories if one.differences), [])
    if differences:
        return None, "they are of a run with " + "; ".join(differences[:_MOST_DIFFERENCES])
    machines = machines_of([one.machine for one in inventories])
    held = [list(inventories[members[0]].held) for members in machines]
    damaged: set[tuple[int, str]] = set()
    world_size, rank = len(inventories), dist.get_rank()
    here = next(number for number, members in enumerate(machines) if rank in members)
    while sources := newest_whole(held, world_size, at_least):
        chosen, parcels = plan_of(sources, machines)
        wrong = ranks.together(
            lambda chosen=chosen: _damaged(folder, chosen, here, machines[here]),
            "comparing snapshots with their fingerprints",
        )
        wrong = {one for found in ranks.gather(wrong, _AGREEING) for one in found}
        damaged |= wrong
        if not wrong:
            snapshot = _open(folder, chosen[rank].held, parcels, run_id)
            _tell_time(snapshot, inventories, time.monotonic() - began)
            return snapshot, None
        held = [[one for one in there if (number, one.file) not in damaged] for number, there in enumerate(held)]
    reason = why_none(held, world_size, at_least)
    names = ", ".join(sorted({file for _, file in damaged}))
    return None, reason + (f" ({names} held other bytes than were written)" if damaged else "")


def _tell_time(snapshot: Snapshot, inventories: list[Inventory], seconds: float) -> None:
    """Say in it how many steps were done after it, and how long ago."""
    last = [one.last_step for one in inventories if one.last_step is not None]
    snapshot.seconds = seconds
    if last:
        snapshot.lost_steps = max(max(step for step, _ in last) - snapshot.step, 0)
        snapshot.last_step_at = time.time() - min(ago for _, ago in last)


def machines_of(seen: list[tuple]) -> list[list[int]]:
    """The ranks of each machine, in the order of their first; `seen`: what each rank sees as its machine."""
    found: dict[tuple, list[int]] = {}
    for rank, machine in enumerate(seen):
        found.setdefault(machine, []).append(rank)
    return list(found.values())


def _inventory(folder: MachineFolder, run_id: str, facts: Mapping[str, str]) -> Inventory:
    run = folder.run()
    if run is None or run.id != run_id:
        return Inventory(folder.machine, None, [], [], None)
    names = [name for name in dict.fromkeys([*run.facts, *facts]) if run.facts.get(name) != facts.get(name)]
    differences = [f"{name} {_in_short(run.facts.get(name))}, not {_in_short(facts.get(name))}" for name in names]
    held = [one for one in folder.held() if one.run == run_id]
    return Inventory(folder.machine, run, held, differences, folder.last_step())


def _in_short(value: str | None) -> str:
    """Of a fact, for a message."""
    if value is None:
        return "nothing"
    return value if len(value) <= _MOST_CHARACTERS else f"{value[:_MOST_CHARACTERS]}…"


def _damaged(
    folder: MachineFolder, chosen: Mapping[int, Source], here: int, members: list[int]
) -> list[tuple[int, str]]:
    """Those of this machine's chosen slots whose bytes are not the ones that were marked; ranks share the looking."""
    mine = [source.held for source in chosen.values() if source.machine == here]
    place = members.index(dist.get_rank())
    wrong = []
    for held in mine[place :: len(members)]:
        try:
            found, _ = fingerprint_of(map_slot(folder.path / held.file))
        except (OSError, ValueError):
            found = None
        if found != held.fingerprint:
            wrong.append((here, held.file))
    return wrong


def _open(folder: MachineFolder, held: Held, parcels: list[Parcel], run_id: str) -> Snapshot:
    """This rank's part, sent to it where its own machine has it no more."""
    came = _send(folder, parcels) if parcels else None
    if came is not None:
        marker, memory = came
    else:
        path = folder.path / held.file
        marker, memory = read_marker(path), map_slot(path)
    counters = ranks.from_first(lambda: marker["counters"], _AGREEING)
    return Snapshot(marker, memory, counters, run_id)


def _send(folder: MachineFolder, parcels: list[Parcel]) -> tuple[dict[str, Any], torch.Tensor] | None:
    """(marker, bytes) of what is sent to this rank, None where nothing is. Collective."""
    rank, group = dist.get_rank(), dist.new_group(backend="gloo")
    out, coming, memory = [], [], None
    for parcel in parcels:
        if parcel.sender == rank:
            path = folder.path / parcel.held.file
            out.append(Outgoing(parcel.receiver, 0, json.dumps(read_marker(path)), map_slot(path)))
        if parcel.receiver == rank:
            memory = torch.empty(max(parcel.held.size, 1), dtype=torch.uint8)
            coming.append(Incoming(parcel.sender, lambda number, memory=memory: memory))
    arrived = ship(group, out, coming)
    dist.destroy_process_group(group)
    return (json.loads(arrived[0][1]), memory) if arrived else None
