"""Which snapshot ranks that come back go on from, by what each machine has: the newest of which all parts are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llama_dyt.training.snapshots.slot import Held

Machine = int
"""Number of a machine, in the order of their first ranks."""


@dataclass(frozen=True)
class Source:
    """Where one rank's state is: in a file of its own machine, or in one that another rank is to send."""

    held: Held
    machine: Machine


@dataclass(frozen=True)
class Parcel:
    """A slot that one rank sends another."""

    sender: int
    receiver: int
    held: Held


def newest_whole(inventories: Sequence[Sequence[Held]], world_size: int, at_least: int) -> dict[int, list[Source]]:
    """Rank → where its state of the newest step is that all ranks have; empty where there is none.

    Args:
        inventories: what each machine holds.
        at_least: no earlier step.
    """
    by_step: dict[int, dict[int, list[Source]]] = {}
    for machine, inventory in enumerate(inventories):
        for held in inventory:
            by_step.setdefault(held.step, {}).setdefault(held.rank, []).append(Source(held, machine))
    whole = [step for step, found in by_step.items() if step >= at_least and not set(range(world_size)) - found.keys()]
    return by_step[max(whole)] if whole else {}


def why_none(inventories: Sequence[Sequence[Held]], world_size: int, at_least: int) -> str:
    """Why there is no such step, in words."""
    steps = {held.step for inventory in inventories for held in inventory}
    if not steps:
        return "no machine's memory holds any of them"
    newest = max(steps)
    if newest < at_least:
        return f"they are of step {newest} and earlier"
    there = {held.rank for inventory in inventories for held in inventory if held.step == newest}
    missing = sorted(set(range(world_size)) - there)
    what = f"rank {missing[0]}'s" + (f" and {len(missing) - 1} more ranks'" if len(missing) > 1 else "")
    return f"{what} part of step {newest} is in no machine's memory" if missing else "they are of other steps"


def plan_of(
    sources: Mapping[int, Sequence[Source]], machines: Sequence[Sequence[int]]
) -> tuple[dict[int, Source], list[Parcel]]:
    """(rank → which of its sources is used, what has to be sent), the same on all ranks.

    Args:
        machines: the ranks of each machine.
    """
    home = {rank: machine for machine, ranks in enumerate(machines) for rank in ranks}
    chosen: dict[int, Source] = {}
    parcels: list[Parcel] = []
    for rank, found in sorted(sources.items()):
        near = [source for source in found if source.machine == home[rank]]
        source = chosen[rank] = (near or list(found))[0]
        if not near:
            ranks = machines[source.machine]
            parcels.append(Parcel(ranks[rank % len(ranks)], rank, source.held))
    return chosen, parcels


def neighbours(machines: Sequence[Sequence[int]]) -> dict[int, int]:
    """Rank → the rank of the next machine, counted round, that keeps a copy of its snapshots; empty on one machine."""
    if len(machines) < 2:
        return {}
    keeps = {}
    for number, ranks in enumerate(machines):
        following = machines[(number + 1) % len(machines)]
        keeps.update({rank: following[place % len(following)] for place, rank in enumerate(ranks)})
    return keeps
