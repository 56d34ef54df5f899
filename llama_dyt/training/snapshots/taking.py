"""Taking snapshots: training stands still while a rank's masters and moments are copied into memory as they are; a
thread does the rest: fingerprint, the copy for the neighbouring machine, the marker.

A slot is written only once all ranks are known to have the other one whole, copies with neighbours included: whenever
ranks die, there is a step that all have, but for the first snapshot.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.core import console, ranks
from llama_dyt.core.errors import CheckpointError, LlamaDytError
from llama_dyt.core.store import Location, store_of
from llama_dyt.training.snapshots.choosing import neighbours
from llama_dyt.training.snapshots.folder import MachineFolder, RunOfFolder, StepCounter, left_behind
from llama_dyt.training.snapshots.found import Snapshot, machines_of
from llama_dyt.training.snapshots.layout import OwnLayout
from llama_dyt.training.snapshots.record import remove_run_id, write_run_id
from llama_dyt.training.snapshots.slot import SLOTS, Slot, fingerprint_of, slot_name
from llama_dyt.training.snapshots.transfer import Incoming, Outgoing, ship

_PREPARING = "preparing snapshots"
_NO_DEADLINE = timedelta(days=100)
_GIB = 2.0**30


class SnapshotTaker:
    """Takes the snapshots of a run; every method but `note` is collective."""

    def __init__(
        self,
        folder: MachineFolder,
        save_dir: Location,
        facts: dict[str, str],
        trained: Collection[str],
        resumed: Snapshot | None,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            facts: name → what a run that goes on from them must have alike.
            trained: names of the parameters that are.
            resumed: what this run went on from; None for a checkpoint, or nothing.
            say: takes a line, on the first rank.
        """
        self._folder = folder
        self._save_dir = save_dir
        self._facts = facts
        self._trained = trained
        self._resumed = resumed
        self._say = say
        self._run_id = ""
        self._steps: StepCounter | None = None
        self._layout: OwnLayout | None = None
        self._slots: list[Slot] = []
        self._copies: dict[int, list[Slot]] = {}  # rank of another machine → its slots here
        self._keeper: int | None = None  # the rank that has copies of this one's
        self._group: dist.ProcessGroup | None = None
        self._whole: dict[int, int] = {}  # number of a slot → its step, where own and copies are whole
        self._expected: set[str] = set()
        self._is_first_here = False
        self._untidy = False
        self._thread: threading.Thread | None = None
        self._fault: str | None = None
        self._last_step = 0

    def prepare(self, boosted: Boosted) -> None:
        """Have memory for them: before the first step, since that takes time.

        Raises:
            CheckpointError: there is no room, or the folder is somebody else's.
        """
        rank, resumed = dist.get_rank(), self._resumed
        self._layout = OwnLayout(boosted.state, self._trained)
        about = ranks.gather((self._folder.machine, self._layout.size), _PREPARING)
        machines = machines_of([machine for machine, _ in about])
        sizes = dict(enumerate(size for _, size in about))
        keepers = neighbours(machines)
        self._keeper = keepers.get(rank)
        mine = next(members for members in machines if rank in members)
        self._is_first_here = rank == mine[0]
        copied = [other for other, keeper in keepers.items() if keeper in mine]
        of_machine = {slot_name(one, number): sizes[one] for one in mine for number in SLOTS}
        of_machine |= {slot_name(one, number, copy=True): sizes[one] for one in copied for number in SLOTS}
        self._expected = set(of_machine)
        fresh = resumed is None
        self._run_id = ranks.from_first(lambda: secrets.token_hex(8) if fresh else resumed.run_id, _PREPARING)
        kept = {held.file for held in self._folder.held() if resumed is not None and held.step == resumed.step}
        self._untidy = bool(kept - self._expected)

        def have_folder() -> None:
            if not self._is_first_here:
                return
            if fresh:
                self._folder.remove()
            for line in left_behind(self._folder.path.parent, self._folder.path):
                console.say(line)
            self._folder.make(RunOfFolder.this_one(self._run_id, self._save_dir, self._facts))
            self._folder.remove_others(self._expected | kept)
            what = f"2 slots for each of {len(mine)} ranks" + (f" and {len(copied)} neighbours" if copied else "")
            self._folder.require_room(of_machine, f"{what}, of fp32 weights and moments")

        copies = [other for other, keeper in keepers.items() if keeper == rank]
        try:
            ranks.together(have_folder, _PREPARING)
            ranks.together(lambda: self._open_slots(sizes, copies), _PREPARING)
            if fresh:
                ranks.from_first(self._write_run_id, _PREPARING)
        except LlamaDytError:
            if fresh and self._is_first_here:
                self._folder.remove()
            raise
        if boosted.device.type == "cuda":
            for slot in self._slots:
                slot.pin()
        if keepers:
            self._group = dist.new_group(backend="gloo", timeout=_NO_DEADLINE)
        if resumed is not None:
            self._whole = {resumed.number: resumed.step}

    def _write_run_id(self) -> None:
        try:
            write_run_id(self._save_dir, self._run_id)
        except OSError as error:
            raise CheckpointError(f"{self._save_dir} cannot be written ({error.strerror or error})") from error

    def _open_slots(self, sizes: dict[int, int], copies: list[int]) -> None:
        rank, folder = dist.get_rank(), self._folder.path
        try:
            self._slots = [Slot(folder, rank, number, sizes[rank]) for number in SLOTS]
            self._copies = {
                other: [Slot(folder, other, number, sizes[other], copy=True) for number in SLOTS] for other in copies
            }
            self._steps = StepCounter(self._folder, rank)
        except OSError as error:
            size = f"{2 * sizes[rank] / _GIB:.2f} GiB"
            raise CheckpointError(
                f"rank {rank}: {folder} cannot hold snapshots of {size} ({error.strerror or error}): give it more, "
                "give --snapshot_dir, or leave --snapshot_interval out"
            ) from error

    def note(self, step: int) -> None:
        """A step is done. Where it is no later than the one before, the run went back: what was kept of later steps is
        of a course that was left."""
        if step <= self._last_step:
            self._join()
            for slots in (self._slots, *self._copies.values()):
                for slot in slots:
                    if self._whole.get(slot.number, 0) >= step:
                        slot.unmark()
            self._whole = {number: kept for number, kept in self._whole.items() if kept < step}
        self._last_step = step
        self._steps.note(step)

    def take(self, boosted: Boosted, step: int, counters: dict[str, Any], rng: dict[str, Any]) -> None:
        """Copy the state after `step`; it is whole some time later.

        Args:
            counters: of the first rank: what a checkpoint holds beside tensors.
            rng: this rank's generators.
        """
        number = self._free_slot()
        slot = self._slots[number]
        slot.unmark()
        for slots in self._copies.values():
            slots[number].unmark()
        pieces = self._layout.copy(boosted.state, slot.memory)
        boosted.synchronize()
        marker = {
            "step": step,
            "number": number,
            "run": self._run_id,
            "size": self._layout.size,
            "pieces": pieces,
            "rng": rng,
            **({"counters": counters} if dist.get_rank() == 0 else {}),
        }
        self._thread = threading.Thread(target=self._complete, args=(slot, marker), name="snapshot", daemon=True)
        self._thread.start()

    def _free_slot(self) -> int:
        """The one that is to be written: not that of the newest step that all ranks have. Collective."""
        self._join()
        fault, self._fault = self._fault, None
        reports = ranks.gather((self._whole, fault), "beginning a snapshot")
        for rank, (_, theirs) in enumerate(reports):
            if theirs is not None:
                self._say(f"warning: rank {rank}: {theirs}")
        common = set.intersection(*(set(whole.items()) for whole, _ in reports))
        if not common:
            return SLOTS[0]
        number, step = max(common, key=lambda one: one[1])
        if self._untidy and self._resumed is not None and step > self._resumed.step:
            self._untidy = False
            if self._is_first_here:
                self._folder.remove_others(self._expected)
        return 1 - number

    def _join(self) -> None:
        if self._thread is not None:
            with ranks.busy("finishing a snapshot"):
                self._thread.join()
            self._thread = None

    def _complete(self, slot: Slot, marker: dict[str, Any]) -> None:
        """In a thread: all but the copy."""
        number, step = slot.number, marker["step"]
        self._whole.pop(number, None)
        try:
            fingerprint, finite = fingerprint_of(slot.memory)
            whole = {**marker, "fingerprint": fingerprint} if finite else None
            if not finite:
                self._fault = f"a weight or moment is not finite after step {step}: its snapshot is not kept"
            if dist.get_rank() == 0:  # to a store far away, what was logged up to this step goes first
                with suppress(OSError):
                    store_of(self._save_dir).sync_spools()
            if self._group is not None and not self._exchange(slot, whole):
                return
            if whole is not None:
                slot.mark(whole)
                self._whole[number] = step
        except Exception as error:  # training goes on; the next snapshot says so
            self._fault = f"the snapshot of step {step} could not be kept: {' '.join(str(error).split())}"

    def _exchange(self, slot: Slot, whole: dict[str, Any] | None) -> bool:
        """Send this rank's slot to its neighbour, and take in those that it keeps; whether all of these are whole."""
        out = [Outgoing(self._keeper, slot.number, _text(whole), slot.memory)]
        coming = [
            Incoming(rank, lambda number, slots=slots: slots[number].memory) for rank, slots in self._copies.items()
        ]
        arrived = ship(self._group, out, coming)
        for (number, text), slots in zip(arrived, self._copies.values(), strict=True):
            if text:
                slots[number].mark(text)
        return all(text for _, text in arrived)

    def finish(self) -> None:
        """The run ends: what is being written becomes whole."""
        self._join()
        for rank, fault in enumerate(ranks.gather(self._fault, "finishing snapshots")):
            if fault is not None:
                self._say(f"warning: rank {rank}: {fault}")

    def remove(self) -> None:
        """The run has ended well: nothing is left behind."""
        self._join()
        ranks.gather(None, "removing snapshots")
        if self._is_first_here:
            self._folder.remove()
        if dist.get_rank() == 0:
            with suppress(OSError):
                remove_run_id(self._save_dir)


def _text(marker: dict[str, Any] | None) -> str:
    return "" if marker is None else json.dumps(marker)
