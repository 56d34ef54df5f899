"""The marker of a whole folder, a checkpoint's or a converted model's: every other file in it with its size and
SHA-256, and whether they are still so. What checkpoints are called.

    COMPLETE    {"model/model.safetensors": {"bytes": 1234, "sha256": "ab12…"}, …}

Checkpoints of earlier versions have the size alone in the braces' place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from llama_dyt.core import files
from llama_dyt.core.store import MARKER, Location, store_of

_NAME = re.compile(r"step_\d+")
_STEP_FOLDER = re.compile(r"\.?step_(\d+)(\..*)?$")
_CHUNK = 1 << 22
_MOST_THREADS = 4


@dataclass(frozen=True)
class Written:
    """A file of a checkpoint as it was written; `sha256` is None in those of earlier versions."""

    bytes: int
    sha256: str | None


def step_folder(save_dir: Location, step: int) -> Location:
    return save_dir / f"step_{step:08d}"


def step_of(folder: Location) -> int | None:
    """The step in the name of a checkpoint's folder, published or set aside; None for other names."""
    match = _STEP_FOLDER.match(folder.name)
    return int(match.group(1)) if match else None


def is_step_name(name: str) -> bool:
    """Whether a folder of this name is a published checkpoint."""
    return _NAME.fullmatch(name) is not None


def is_whole(folder: Location) -> bool:
    """Whether a checkpoint is complete."""
    return why_incomplete(folder) is None


def find_steps(save_dir: Location) -> dict[int, Location]:
    """Step → its folder, whole or not, oldest first. Nothing is changed."""
    folders = store_of(save_dir).folders(save_dir, is_whole)
    return dict(sorted((step_of(save_dir / name), folder) for name, folder in folders.items() if is_step_name(name)))


def described(folder: Path) -> dict[str, Written]:
    """Every file below a folder, by its name in it; reads them whole."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: Written((folder / name).stat().st_size, sha256_of(folder / name)) for name in names}


def marker_of(written: Mapping[str, Written]) -> str:
    """The content of the marker of a checkpoint of these files."""
    return files.to_json({name: asdict(written[name]) for name in sorted(written)})


def read_marker(folder: Location) -> dict[str, Written]:
    """Name → what was written.

    Raises:
        ValueError, OSError: there is no marker that can be read.
    """
    content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    try:
        return {
            name: Written(entry, None) if isinstance(entry, int) else Written(entry["bytes"], entry["sha256"])
            for name, entry in content.items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a marker: {error}") from error


def why_incomplete(folder: Location) -> str | None:
    """What is missing from a checkpoint folder; None if every file its marker lists is there in full size."""
    if not (folder / MARKER).is_file():
        return f"it has no {MARKER} marker, so the save was interrupted"
    try:
        written = read_marker(folder)
    except ValueError:
        return f"its {MARKER} marker is damaged"
    sizes = store_of(folder).sizes(folder)
    for name, file in written.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != file.bytes:
            return f"{name} has {sizes[name]} bytes, {file.bytes} were written"
    return None


def damaged_files(folder: Path, names: Iterable[str], threads: int = _MOST_THREADS) -> list[str]:
    """Those of some files of a whole checkpoint whose bytes are not the ones that were written, one line each.

    A file without a checksum passes. Reads them whole: as fast as the disk and SHA-256 (1.5 to 2 GB/s a core) are.
    """
    written = read_marker(folder)

    def compare(name: str) -> str | None:
        expected = written[name].sha256
        try:
            found = sha256_of(folder / name) if expected else None
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found == expected:
            return None
        return f"{name} holds other bytes than were written (SHA-256 {found[:16]}…, not {expected[:16]}…)"

    with ThreadPoolExecutor(max(1, min(threads, _MOST_THREADS))) as pool:
        return [fault for fault in pool.map(compare, names) if fault is not None]


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(_CHUNK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def identity(folder: Path) -> tuple[int, int]:
    """Equal on two machines where they see the same checkpoint, not copies of it on disks of their own."""
    return identity_of(folder / MARKER)


def identity_of(file: Path) -> tuple[int, int]:
    """The same of one file."""
    found = os.stat(file)
    return found.st_ino, found.st_mtime_ns
