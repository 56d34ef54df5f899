"""What a rank and its writing process tell each other, as JSON over a pipe; writing processes among themselves too."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from llama_dyt.training.checkpoint.retention import Keep


@dataclass(frozen=True)
class TensorFile:
    """A file of safetensors whose tensors lie in the shared memory one after the other.

    Attributes:
        folder, name: in the checkpoint.
        head: what it begins with, in base64.
        begin, end: the bytes of the memory that follow.
    """

    folder: str
    name: str
    head: str
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return len(base64.b64decode(self.head)) + self.end - self.begin


@dataclass(frozen=True)
class Job:
    """A checkpoint whose tensors have been copied.

    Attributes:
        files: of this rank.
        refused: why it must not be written; None: it may.
        texts: "folder/name" → content of the small files, before the tensors and after; of the first rank.
    """

    step: int
    files: list[TensorFile]
    refused: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    indices: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SetUp:
    """What a writing process has to know, once.

    Attributes:
        save_dir, nonce: of the run's checkpoints.
        claim: (number, nonce) of the run's on `save_dir`; None without one.
        imports, import_folder: the user's modules, for a store among them, and where they are found.
        memory, size: descriptor and bytes of the shared memory.
        fixed: folder with the files that every checkpoint has in `fixed_name`; the process removes it. First rank's.
        others: how many other ranks write; their processes come to the first one's.
        meeting: (host, port) of that one, for the others.
        keyword: with which they know each other, hexadecimal.
    """

    save_dir: str
    nonce: str
    rank: int
    claim: tuple[int, str] | None
    imports: list[str]
    import_folder: str
    memory: int
    size: int
    fixed: str | None
    fixed_name: str
    others: int
    keyword: str
    meeting: tuple[str, int] | None
    keep: Keep


def send(pipe: Connection, value: Any) -> None:
    pipe.send_bytes(json.dumps(value).encode())


def receive(pipe: Connection) -> Any:
    """Raises EOFError where the other side is gone."""
    try:
        return json.loads(pipe.recv_bytes())
    except ConnectionError as error:
        raise EOFError from error


def set_up_of(value: dict[str, Any]) -> SetUp:
    return SetUp(**{**value, "keep": Keep(**value["keep"])})


def job_of(value: dict[str, Any]) -> Job:
    return Job(**{**value, "files": [TensorFile(**file) for file in value["files"]]})


def as_json(value: SetUp | Job) -> dict[str, Any]:
    return asdict(value)
