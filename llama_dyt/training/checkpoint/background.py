"""Asynchronous checkpoints: tensors are copied into shared memory, a process of their own does the rest
(`writing_process.py`). The files are those of a synchronous save, to the byte.

The copy is what a writing rank has of a checkpoint: the fp32 weights and moments of its pipeline stage, gathered as for
a synchronous save, but all at once. So it takes 12 bytes a parameter of host memory there, from the start. What is
training's own memory is copied while the next forward and backward read it, in a thread; the next update waits for
that. What has to be gathered from ranks is copied before `save` returns: their collectives would mix with training's.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from llama_dyt.core import extensions, ranks
from llama_dyt.core.environment import read_environment
from llama_dyt.core.errors import CheckpointError
from llama_dyt.core.store import Location, store_of
from llama_dyt.training.checkpoint.copying import Copying, Pair, lock_for_gpu
from llama_dyt.training.checkpoint.marker import step_folder
from llama_dyt.training.checkpoint.memory_plan import MemoryPlan
from llama_dyt.training.checkpoint.messages import Job, SetUp, as_json, receive, send
from llama_dyt.training.checkpoint.shared_memory import SharedMemory
from llama_dyt.training.checkpoint.writer import CheckpointWriter, on_first_stage, texts_of

_LOOK_SECONDS = 0.2
_START_SECONDS = 300.0
_END_SECONDS = 5.0
_PACKAGES = Path(__file__).resolve().parents[3]
_LOOPBACK = "127.0.0.1"


class BackgroundWriter(CheckpointWriter):
    """A `CheckpointWriter` whose `save` returns once the tensors are copied, or are being copied (`before_change`)."""

    looks_for_finite = True

    _plan: MemoryPlan | None = None
    _memory: SharedMemory | None = None
    _process: subprocess.Popen | None = None
    _pipe: multiprocessing.connection.Connection | None = None
    _pending: Location | None = None
    _copying: Copying | None = None
    _failure: Exception | None = None

    @property
    def process_id(self) -> int | None:
        """Of this rank's writing process; None where it has none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Have memory and writing processes: before the first step, since both take time. Collective.

        Raises:
            CheckpointError: there is no room for the copy, or a process does not start; on all ranks.
        """
        if self._plan is not None:
            return
        what = "starting the process that writes checkpoints"
        self._plan = self._make_plan()
        keyword = ranks.from_first(lambda: secrets.token_hex(32), what)
        about = ranks.gather((self._plan.size > 0, socket.gethostname()), what)
        others = sum(writes for writes, _ in about[1:])
        near = len({host for writes, host in about if writes}) <= 1
        meeting = (_LOOPBACK if near else "", 0)
        if others:
            port = ranks.from_first(lambda: self._begin_process(keyword, others, meeting)["port"], what)
            meeting = (_LOOPBACK if near else read_environment().place.address, port)
        ranks.together(lambda: self._process or self._begin_process(keyword, others, meeting), what)
        ranks.together(self._has_begun, what)

    def save(
        self,
        step: int,
        trainer_state: dict[str, Any],
        schedule: dict[str, Any],
        optimizer_scalars: dict[str, Any],
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> Location:
        """Begin to copy what the checkpoint of `step` holds and return its path; `conclude` says when it is whole.

        An earlier one has been concluded. Until `before_change` has returned no weight or moment may change.
        """
        self.start()
        final = step_folder(self.save_dir, step)
        self._began = time.monotonic()
        own_memory = self._copy_gathered()
        mine = self._plan.files()
        sizes = {f"{file.folder}/{file.name}": file.size for file in mine}
        together = ranks.gather(sizes, f"beginning {final}")
        job = Job(step, mine)
        if dist.get_rank() == 0:
            total = {name: size for theirs in together for name, size in theirs.items()}
            job.texts.update(texts_of(trainer_state, schedule, optimizer_scalars, beside))
            job.indices.update(self._indices(self._plan.all_shards, total))
        if self._process is not None:
            self._copying = Copying(own_memory, then=lambda: self._hand_over(job))
        self._pending = final
        return final

    def before_change(self) -> None:
        if self._copying is not None:
            self._copying.wait()

    def conclude(self, wait: bool) -> Location | None:
        if self._pending is None:
            return None
        final = self._pending
        try:
            outcome = ranks.from_first(lambda: self._outcome(wait), f"writing {final}")
        except CheckpointError:
            self._pending = None
            raise
        if outcome is None:
            return None
        self._pending = None
        self._seconds = outcome["seconds"]
        if dist.get_rank() == 0:
            for line in outcome["said"]:
                self._say(line)
        self.last_path = final
        return final

    def close(self) -> None:
        """A checkpoint that was begun is finished by the writing process alone, which ends then."""
        if self._pipe is None:
            return
        if self._copying is not None:
            self._copying.join()
        self._pipe.close()
        self._pipe = None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS if self._pending is None else 0)

    # --- the copy ------------------------------------------------------------------------------------------------

    def _make_plan(self) -> MemoryPlan:
        contents, grid = self._contents, self._grid
        sizes, first = self._state.sizes(), 0
        shards = all_shards = self._plan_shards()
        writes = grid.is_writer
        if grid.pp_group is not None:
            stages = ranks.gather((sizes, shards), "planning asynchronous checkpoints", grid.pp_group)
            if contents.in_one_file:
                sizes = {name: size for theirs, _ in stages for name, size in theirs.items()}
                shards = all_shards = [list(sizes)]
                writes = writes and grid.pp_rank == 0
            else:
                all_shards = [names for _, theirs in stages for names in theirs]
                first = sum(len(theirs) for _, theirs in stages[: grid.pp_rank])
        return MemoryPlan(contents, sizes, shards if writes else [], first, all_shards)

    def _copy_gathered(self) -> list[Pair]:
        """This stage's weights and moments into the memory of its writing rank. Collective.

        Returns:
            What was not copied, since training only reads it for now.
        """
        contents, grid = self._contents, self._grid
        own = {_storage(part) for _, _, part in self._state.own_parts()}
        left: list[Pair] = []

        def put(name: str, key: str, tensor: torch.Tensor) -> None:
            pair = self._plan.place_of(self._memory, name, key, tensor), tensor
            if _storage(tensor) in own:
                left.append(pair)
            else:
                pair[0].copy_(tensor)

        on_first = contents.in_one_file and grid.is_writer and grid.pp_group is not None
        for names in self._plan_shards():
            found = {}
            for name, tensors in self._state.gather(names, lend=not on_first):
                if tensors is None:
                    continue
                for key, tensor in tensors.items():
                    if on_first:
                        found[name, key] = tensor
                    else:
                        put(name, key, tensor)
            if on_first:
                for (name, key), tensor in on_first_stage(found, grid).items():
                    put(name, key, tensor)
        return left

    # --- the process ---------------------------------------------------------------------------------------------

    def _begin_process(self, keyword: str, others: int, meeting: tuple[str, int]) -> dict[str, Any] | None:
        """Start it. The first rank's tells where the others are to come to."""
        rank = dist.get_rank()
        if rank and not self._plan.size:
            return None
        try:
            self._memory = SharedMemory(self._plan.size)
        except OSError as error:
            raise CheckpointError(
                f"rank {rank}: an asynchronous checkpoint needs {self._plan.size / 2**30:.2f} GiB of this machine's "
                f"memory ({error.strerror}); leave --async_save out, or take more processes a model (--tp, --pp)"
            ) from error
        lock_for_gpu(self._plan.whole(self._memory))
        fixed = None
        if rank == 0:
            fixed = tempfile.mkdtemp(prefix="llama_dyt-writing-")
            try:
                self._save_model_files(Path(fixed))
            except BaseException:
                shutil.rmtree(fixed, ignore_errors=True)
                raise
        self._pipe, theirs = multiprocessing.Pipe()
        program = [sys.executable, "-m", "llama_dyt.training.checkpoint.writing_process", str(theirs.fileno())]
        path = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH", "")]))
        with theirs:
            self._process = subprocess.Popen(
                program,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), self._memory.descriptor],
                start_new_session=True,  # Ctrl-C and a launcher's signals are the trainer's to answer
            )
        claim = None if self._claim is None else (self._claim.number, self._claim.nonce)
        given = SetUp(
            save_dir=str(self.save_dir),
            nonce=self._nonce,
            rank=rank,
            claim=claim,
            imports=list(extensions.names()),
            import_folder=os.getcwd(),
            memory=self._memory.descriptor,
            size=self._plan.size,
            fixed=fixed,
            fixed_name=self._contents.folder,
            others=others if rank == 0 else 0,
            keyword=keyword,
            meeting=meeting,
            keep=self._keep,
        )
        self._send(as_json(given))
        return self._receive(_START_SECONDS) if rank == 0 and others else None

    def _has_begun(self) -> None:
        if self._process is not None:
            pid = self._receive(_START_SECONDS)["ready"]
            if self._claim is not None:
                self._claim.name_writer(pid)

    def _hand_over(self, job: Job) -> None:
        """In a thread: to a store far away, what was logged up to this step goes first."""
        try:
            spoiled = self._plan.first_not_finite(self._memory)
            if spoiled is not None:
                what = f"{spoiled} is not finite after step {job.step}: not saved; go on from the one before"
                job = replace(job, refused=f"{what} with a lower --lr")
            if dist.get_rank() == 0:
                store_of(self.save_dir).sync_spools()
            self._send(as_json(job))
        except Exception as error:
            self._failure = error

    def _outcome(self, wait: bool) -> dict[str, Any] | None:
        """What the first rank's process says of the checkpoint; None where it says nothing yet."""
        while True:
            told = self._receive(_LOOK_SECONDS if wait else 0.0, needed=False)
            if self._failure is not None:
                raise self._could_not_write(str(self._failure))
            if told is not None and "error" in told:
                raise self._could_not_write(f"rank 0: {told['error']}")
            if told is not None:
                return {**told, "seconds": time.monotonic() - self._began}
            if not wait:
                return None

    def _send(self, value: Any) -> None:
        try:
            send(self._pipe, value)
        except OSError:
            raise CheckpointError(self._is_gone()) from None

    def _receive(self, seconds: float, needed: bool = True) -> Any:
        try:
            if self._pipe.poll(seconds):
                return receive(self._pipe)
        except (EOFError, OSError):
            raise self._could_not_write(self._is_gone()) from None
        if needed:
            raise CheckpointError(f"the process that is to write checkpoints said nothing for {seconds:g} s")
        return None

    def _is_gone(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        status = self._process.returncode
        how = f"killed by signal {-status}" if status is not None and status < 0 else f"status {status}"
        more = ", most often for want of memory (dmesg tells)" if status == -9 else ""
        return f"the process that writes checkpoints (pid {self._process.pid}) is gone: {how}{more}"

    def _could_not_write(self, reason: str) -> CheckpointError:
        if self._pending is None:
            return CheckpointError(reason)
        return self.failed(self._pending, reason)


def _storage(tensor: torch.Tensor) -> tuple[torch.device, int]:
    """Of two tensors it is the same where they share memory."""
    return tensor.device, tensor.untyped_storage().data_ptr()
