"""The snapshots of one run: what it goes on from, and what takes more of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch.distributed as dist

from llama_dyt.boosters.training_state import TrainingState
from llama_dyt.core import ranks
from llama_dyt.core.ranks import Fact
from llama_dyt.core.store import at
from llama_dyt.training.callbacks.callback import Callback
from llama_dyt.training.callbacks.counters import Counters
from llama_dyt.training.callbacks.snapshotting import Snapshotting
from llama_dyt.training.plan import Plan, say
from llama_dyt.training.snapshots.folder import MachineFolder
from llama_dyt.training.snapshots.found import Snapshot, find_snapshot
from llama_dyt.training.snapshots.record import remove_run_id
from llama_dyt.training.snapshots.taking import SnapshotTaker
from llama_dyt.training.trackers.trackers import Trackers

_OTHERS = ("the checkpoint", "--snapshot_interval", "--load")
"""Facts that a run may have otherwise and go on from a snapshot."""


class RunSnapshots:
    """
    Attributes:
        found: what the run goes on from, newer than its checkpoint or as new; None for that one, or nothing.
    """

    def __init__(self, plan: Plan, facts: Mapping[str, Fact]) -> None:
        """Collective.

        Args:
            facts: what all ranks have resolved alike, of `facts_of`.
        """
        self._plan = plan
        self._trained: Collection[str] = ()
        self.found: Snapshot | None = None
        run = plan.run
        if plan.claims is None:
            return
        if not run.snapshots.snapshot_interval:
            if run.run.load == "auto" and ranks.from_first(lambda: remove_run_id(plan.claims), "looking for snapshots"):
                say(plan, "snapshots in memory are left alone from now on: there is no --snapshot_interval")
            return
        self._facts = {name: fact.value for name, fact in facts.items() if name not in _OTHERS}
        self._facts["the number of processes"] = str(dist.get_world_size())
        self._folder = MachineFolder(run.snapshots.snapshot_dir, plan.claims)
        if run.run.load != "auto":
            return
        step = plan.checkpoint.step if plan.checkpoint is not None else 1
        self.found, reason = find_snapshot(self._folder, plan.claims, self._facts, at_least=step)
        if reason is not None:
            instead = "there is no checkpoint either, so the run begins anew"
            if plan.checkpoint is not None:
                instead = f"the run goes on from {plan.checkpoint.path}"
            say(plan, f"snapshots in memory are not used: {reason}; {instead}")

    def fill(self, state: TrainingState, trained: Collection[str]) -> None:
        """Give a boosted run the tensors of `found`, if there is one. Collective.

        Args:
            trained: names of the parameters that are.
        """
        self._trained = trained
        if self.found is not None:
            self.found.fill(state)

    def callbacks(self, trackers: Trackers, batch: dict[str, int] | None) -> list[Callback]:
        """What takes more of them, in a list; empty where none are asked for."""
        run = self._plan.run
        if self._plan.claims is None or not run.snapshots.snapshot_interval:
            return []
        save_dir = at(run.run.save_dir)
        taker = SnapshotTaker(self._folder, save_dir, self._facts, self._trained, self.found, trackers.say)
        return [Snapshotting(run, taker, Counters(run, trackers, batch))]
