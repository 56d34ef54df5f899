"""One snapshot of one rank in a file that processes map into memory, and the marker that says that it is whole.

    rank00003.0         bytes: a rank's parts of masters and moments (`layout.py`)
    rank00003.0.json    the marker, written last: step, fingerprint of the bytes, where each part lies, counters
    copy00003.1         the same of a rank of another machine

Two slots a rank, so that one is whole while the other is written. Without its marker a slot holds nothing.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama_dyt.core import files

SLOTS = (0, 1)
_NAME = re.compile(r"(rank|copy)(\d{5,})\.([01])")
_ROW_BYTES = 1 << 15
_BLOCK_BYTES = 1 << 24


class Slot:
    """A file of a fixed size, mapped.

    Attributes:
        number: 0 or 1.
        memory: its bytes, (size,) uint8.
    """

    def __init__(self, folder: Path, rank: int, number: int, size: int, copy: bool = False) -> None:
        """Make it, or open the one that is there if it has this size. `copy`: of a rank of another machine.

        Raises:
            OSError: there is no room for it.
        """
        self.number = number
        self._path = folder / slot_name(rank, number, copy)
        size = max(size, 1)
        if self._path.exists() and self._path.stat().st_size != size:
            self.unmark()
            self._path.unlink()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            # Populated: the first touch of a page takes longer than copying into it.
            self._map = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(descriptor)
        self.memory = torch.frombuffer(self._map, dtype=torch.uint8)

    def pin(self) -> bool:
        """Have a GPU copy straight into it; whether the driver does so. Otherwise copies take longer."""
        portable = 1  # cudaHostRegisterPortable
        return int(torch.cuda.cudart().cudaHostRegister(self.memory.data_ptr(), self.memory.numel(), portable)) == 0

    def mark(self, marker: dict[str, Any] | str) -> None:
        """Say that what is in it is whole."""
        text = marker if isinstance(marker, str) else json.dumps(marker)
        files.write_text(marker_path(self._path), text)

    def unmark(self) -> None:
        """Say that it holds nothing."""
        marker_path(self._path).unlink(missing_ok=True)


@dataclass(frozen=True)
class Held:
    """A whole slot as it was found in a folder.

    Attributes:
        rank: whose state it is.
        file: name of the slot.
        step, fingerprint, size: as the marker has them.
        run: id of the course that it belongs to.
    """

    rank: int
    file: str
    step: int
    fingerprint: str
    size: int
    run: str


def slot_name(rank: int, number: int, copy: bool = False) -> str:
    return f"{'copy' if copy else 'rank'}{rank:05d}.{number}"


def slot_of(name: str) -> str | None:
    """The slot that a file of a folder is, or is the marker of; None for other files."""
    name = name.removesuffix(".json")
    return name if _NAME.fullmatch(name) else None


def marker_path(slot: Path) -> Path:
    return slot.with_name(f"{slot.name}.json")


def read_marker(slot: Path) -> dict[str, Any] | None:
    """The marker of a slot; None where that holds nothing, or other than a marker says."""
    try:
        marker = json.loads(marker_path(slot).read_text(encoding="utf-8"))
        return marker if slot.stat().st_size == max(marker["size"], 1) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def held_in(folder: Path) -> list[Held]:
    """What a folder holds that is whole, of any course; the bytes are not looked at."""
    found = []
    for path in sorted(folder.glob("*.[01]")):
        name, marker = _NAME.fullmatch(path.name), read_marker(path)
        if name is not None and marker is not None:
            mine = (marker[key] for key in ("step", "fingerprint", "size", "run"))
            found.append(Held(int(name[2]), path.name, *mine))
    return found


def map_slot(path: Path) -> torch.Tensor:
    """The bytes of a slot that is there."""
    with open(path, "r+b") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)


def fingerprint_of(memory: torch.Tensor) -> tuple[str, bool]:
    """(what tells these bytes from others, whether they are finite as numbers of fp32).

    It is for half-written and damaged memory, not against anybody: the sums of the words of every 32 KiB, hashed;
    nearly as fast as memory is read.
    """
    digest, finite = hashlib.sha256(str(memory.numel()).encode()), True
    whole = memory.numel() // _ROW_BYTES * _ROW_BYTES
    for block in memory[:whole].split(_BLOCK_BYTES):
        digest.update(block.view(torch.int64).view(-1, _ROW_BYTES // 8).sum(1).numpy().tobytes())
        finite = finite and _is_finite(block)
    rest = memory[whole:]
    digest.update(rest.numpy().tobytes())
    return digest.hexdigest()[:32], finite and _is_finite(rest)


def _is_finite(memory: torch.Tensor) -> bool:
    numbers = memory[: memory.numel() // 4 * 4].view(torch.float32)
    return not numbers.numel() or bool(torch.isfinite(torch.stack(numbers.aminmax())).all())
