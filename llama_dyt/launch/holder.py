"""Who made a claim's record: which process of which machine and job, and whether it lives as far as can be seen."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from llama_dyt.core.processes import boot_id, pid_namespace, start_time

_NO_RUN_ID = ("", "none")  # torchrun's, where none was given


@dataclass(frozen=True)
class Holder:
    """Who made a record.

    Attributes:
        program: in words, for messages.
        boot, pid_namespace: with `host` they tell where `pid` is one of ours; None where the system does not say.
        started: clock ticks from the machine's start to the process's, which tell it from a later one of the same pid.
        jobs: kind → (id, restarts): "Slurm job" and "torchrun run".
        since: the time in words, for messages: clocks differ.
        nonce: tells this record from every other.
        inode: of the record, which a copy of the folder does not have.
        writer: (pid, started) of a process of this one's that may outlive it to finish a checkpoint; None for none.
    """

    program: str
    host: str
    boot: str | None
    pid_namespace: int | None
    pid: int
    started: int | None
    jobs: dict[str, tuple[str, int]]
    since: str
    nonce: str
    inode: int = 0
    writer: tuple[int, int] | None = None

    @classmethod
    def this_process(cls, program: str, environment: Mapping[str, str]) -> Holder:
        return cls(
            program=program,
            host=socket.gethostname(),
            boot=boot_id(),
            pid_namespace=pid_namespace(),
            pid=os.getpid(),
            started=start_time(os.getpid()),
            jobs=_jobs(environment),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            nonce=secrets.token_hex(8),
        )

    @classmethod
    def read(cls, record: bytes) -> Holder | None:
        """The holder in a record; None where it is not whole: its maker is at it, or died over it."""
        head, end, _ = record.partition(b"\n")
        try:
            found = json.loads(head) if end else None
            jobs = {kind: (str(job), int(restarts)) for kind, (job, restarts) in found["jobs"].items()}
            writer = tuple(found["writer"]) if found.get("writer") else None
            return cls(**{**found, "jobs": jobs, "writer": writer})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def to_line(self) -> bytes:
        """What `read` reads."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def follows(self, other: Holder) -> bool:
        """Whether this is the same job after a further restart: the other was ended before that."""
        return any(
            kind in other.jobs and other.jobs[kind][0] == job and other.jobs[kind][1] < restarts
            for kind, (job, restarts) in self.jobs.items()
        )

    def writer_lives(self, seen_by: Holder) -> bool:
        """Whether its writing process is there, as far as `seen_by`'s machine can tell."""
        return self.writer is not None and self._is_near(seen_by) and start_time(self.writer[0]) == self.writer[1]

    def _is_near(self, other: Holder) -> bool:
        return (self.host, self.boot, self.pid_namespace) == (other.host, other.boot, other.pid_namespace)

    def lives(self, seen_by: Holder) -> bool | None:
        """Whether its process is there; None where `seen_by`'s machine cannot tell."""
        if not self._is_near(seen_by) or self.boot is None or self.pid_namespace is None or self.started is None:
            return None
        started = start_time(self.pid)
        if started is None and _is_hidden(self.pid):
            return None
        return started == self.started

    def __str__(self) -> str:
        jobs = "".join(f", {kind} {job}" for kind, (job, _) in self.jobs.items())
        return f"{self.program} (process {self.pid} on {self.host}{jobs}, since {self.since})"


def _jobs(environment: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    found = {
        "Slurm job": (environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_RESTART_COUNT", "")),
        "torchrun run": (
            environment.get("TORCHELASTIC_RUN_ID", ""),
            environment.get("TORCHELASTIC_RESTART_COUNT", ""),
        ),
    }
    return {
        kind: (job, int(restarts) if restarts.isdigit() else 0)
        for kind, (job, restarts) in found.items()
        if job not in _NO_RUN_ID
    }


def _is_hidden(pid: int) -> bool:
    """Whether a process is there that /proc does not show: another user's, where that is set up so."""
    if Path(f"/proc/{pid}").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
