"""The process that writes a rank's part of asynchronous checkpoints: files, checksums, the name, what is to go.

It is a program of its own, not a fork: a fork of a process with threads or CUDA has locks that nobody frees. It imports
neither torch nor the engine. One a rank that has something to write; the first rank's begins and publishes, the others
come to it over a socket with the checksums of what they wrote.

Its trainer gone, it finishes the checkpoint that was handed over, if all parts of it were, and ends; the claim on the
--save_dir names it, so that the next run waits for that. It never outlives its trainer by more than ORPHAN_SECONDS.

    python -m llama_dyt.training.checkpoint.writing_process DESCRIPTOR
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import select
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from llama_dyt.core import extensions, files
from llama_dyt.core.errors import CheckpointError, LlamaDytError
from llama_dyt.core.marker import Written, described, marker_of, step_folder
from llama_dyt.core.processes import leave_signals_to_parent
from llama_dyt.core.store import Staging, at, store_of
from llama_dyt.launch.claim import require_held
from llama_dyt.training.checkpoint.messages import Job, SetUp, TensorFile, job_of, receive, send, set_up_of
from llama_dyt.training.checkpoint.publishing import clear_leftovers, point_to_latest, write_texts
from llama_dyt.training.checkpoint.shared_memory import SharedMemory

ORPHAN_SECONDS = 900.0
_CHUNK = 1 << 24
_NICENESS = 5  # behind training, where both want a processor


def main() -> None:
    leave_signals_to_parent()  # what asks a run to end asks for a checkpoint
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    trainer = Connection(int(sys.argv[1]))
    try:
        WritingProcess(set_up_of(receive(trainer)), trainer).work()
    except EOFError:
        pass
    except Exception as error:
        with contextlib.suppress(OSError):
            send(trainer, {"error": in_words(error)})
    os._exit(0)


def in_words(error: Exception) -> str:
    """What went wrong, and what to do where that is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError):
        return f"{text}; free space or take another --save_dir, and resume with --load auto"
    return text if isinstance(error, LlamaDytError) else f"{type(error).__name__}: {text}"


class WritingProcess:
    """One rank's."""

    def __init__(self, given: SetUp, trainer: Connection) -> None:
        self._given = given
        self._trainer = trainer
        self._staging: Staging | None = None
        problems = extensions.load(given.imports, given.import_folder)
        if problems:
            raise CheckpointError("; ".join(map(str, problems)))
        self._save_dir = at(given.save_dir)
        self._memory = SharedMemory.inherited(given.memory, given.size)
        self._fixed: dict[str, bytes] = {}
        if given.fixed is not None:
            folder = Path(given.fixed)
            found = (path for path in folder.rglob("*") if path.is_file())
            self._fixed = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
            shutil.rmtree(folder)
        self._others = self._meet()
        threading.Thread(target=self._end_in_time, daemon=True).start()
        send(trainer, {"ready": os.getpid()})
        quiet = os.open(os.devnull, os.O_RDWR)  # whoever reads what the run prints is not kept waiting by this process
        os.dup2(quiet, 2)

    def work(self) -> None:
        """Write what the trainer hands over, until it is gone."""
        while True:
            job = job_of(receive(self._trainer))
            begin = time.monotonic()
            said: list[str] = []
            try:
                if self._given.rank == 0:
                    self._write_and_publish(job, said.append)
                else:
                    self._write_for_first(job)
            except Exception as error:
                if self._staging is not None:
                    self._staging.discard()
                self._tell({"step": job.step, "error": in_words(error), "said": said})
                return  # the run ends, and nothing is written after a failure
            self._tell({"step": job.step, "seconds": time.monotonic() - begin, "said": said})

    def _tell(self, message: dict) -> None:
        with contextlib.suppress(OSError):
            send(self._trainer, message)

    # --- the first rank's ----------------------------------------------------------------------------------------

    def _write_and_publish(self, job: Job, say: Callable[[str], None]) -> None:
        if job.refused is not None:
            raise CheckpointError(job.refused)
        final = step_folder(self._save_dir, job.step)
        self._require_held()
        if self._given.claim is not None:
            clear_leftovers(self._save_dir, say)
        staging = self._staging = store_of(final).stage(final, self._given.nonce)
        staging.begin(say)
        for name, content in self._fixed.items():
            path = staging.folder(self._given.fixed_name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            files.sync(path)
        write_texts(staging, job.texts)
        written = described(staging.folder())
        staging.hand_over()
        for other in self._others:
            with _other_side():
                send(other, {"begin": job.step})
        written |= self._write_tensors(staging, job.files)
        for other in self._others:
            with _other_side():
                told = receive(other)
            if "error" in told:
                raise CheckpointError(told["error"])
            written |= {name: Written(*entry) for name, entry in told["written"].items()}
        written |= write_texts(staging, job.indices)
        staging.hand_over()
        self._require_held()
        staging.publish(marker_of(written), say)
        self._staging = None
        point_to_latest(self._save_dir, job.step, say)
        self._given.keep.remove_others(self._save_dir, job.step, say)

    def _require_held(self) -> None:
        if self._given.claim is not None:
            number, nonce = self._given.claim
            require_held(self._save_dir, store_of(self._save_dir).records(self._save_dir, "claim"), number, nonce)

    # --- the others' ---------------------------------------------------------------------------------------------

    def _write_for_first(self, job: Job) -> None:
        (first,) = self._others
        with _other_side():
            receive(first)  # it has begun
        final = step_folder(self._save_dir, job.step)
        try:
            if job.refused is not None:
                raise CheckpointError(job.refused)
            self._staging = store_of(final).stage(final, self._given.nonce)
            written = self._write_tensors(self._staging, job.files)
        except Exception as error:
            send(first, {"error": f"rank {self._given.rank}: {in_words(error)}"})
            raise
        send(first, {"written": {name: [file.bytes, file.sha256] for name, file in written.items()}})

    def _meet(self) -> list[Connection]:
        """The other writing processes' connections; the first one's for all but that."""
        given, keyword = self._given, bytes.fromhex(self._given.keyword)
        if given.rank == 0:
            if not given.others:
                return []
            with Listener(("", 0), "AF_INET", backlog=given.others, authkey=keyword) as listener:
                send(self._trainer, {"port": listener.address[1]})
                found: list[Connection] = []
                while len(found) < given.others:
                    with contextlib.suppress(AuthenticationError, EOFError, ConnectionError):  # a stranger's
                        found.append(listener.accept())
                return found
        return [Client(tuple(given.meeting), "AF_INET", authkey=keyword)]

    # --- both ----------------------------------------------------------------------------------------------------

    def _write_tensors(self, staging: Staging, tensor_files: list[TensorFile]) -> dict[str, Written]:
        written = {}
        for file in tensor_files:
            path = staging.folder(file.folder) / file.name
            name = f"{file.folder}/{file.name}"
            written[name] = self._write_tensor_file(file, path)
            staging.hand_over()
        return written

    def _write_tensor_file(self, file: TensorFile, path: Path) -> Written:
        """Hashed in a thread beside the writing: both let go of Python's lock."""
        digest = hashlib.sha256()
        pieces = [memoryview(base64.b64decode(file.head))]
        pieces += [
            self._memory.view[begin : min(begin + _CHUNK, file.end)] for begin in range(file.begin, file.end, _CHUNK)
        ]
        with open(path, "wb", buffering=0) as out, ThreadPoolExecutor(1) as hashing:
            for piece in pieces:
                hashed = hashing.submit(digest.update, piece)
                left = piece
                while left:
                    left = left[out.write(left) :]
                hashed.result()
        files.sync(path)
        return Written(sum(map(len, pieces)), digest.hexdigest())

    def _end_in_time(self) -> None:
        """Look whether the trainer is gone; from then on the time is bounded."""
        poll = select.poll()
        poll.register(self._trainer.fileno(), select.POLLHUP)
        poll.poll()
        time.sleep(ORPHAN_SECONDS)
        if self._staging is not None:
            self._staging.discard()
        os._exit(1)


@contextlib.contextmanager
def _other_side() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise CheckpointError(
            "the writing process of another rank is gone: it was killed, or its rank was, before its part was written"
        ) from None


if __name__ == "__main__":
    main()
