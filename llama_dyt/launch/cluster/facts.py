"""What a machine tells of itself: versions, code, files, room on its disk, GPUs. Nothing here imports torch."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llama_dyt.core.code import code_digest
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.store import SCHEME, at, store_of
from llama_dyt.core.store_matches import found_at

PACKAGES = ("torch", "colossalai", "transformers", "numpy", "safetensors")
_GPU_FIELDS = {
    "index": "index",
    "name": "name",
    "driver": "driver_version",
    "memory_mb": "memory.total",
    "used_mb": "memory.used",
    "celsius": "temperature.gpu",
    "uncorrected": "ecc.errors.uncorrected.volatile.total",
    "slowed_by_hardware": "clocks_throttle_reasons.hw_slowdown",
    "slowed_by_heat": "clocks_throttle_reasons.hw_thermal_slowdown",
}
_SAMPLE_FILES = 8
_SAMPLE_BYTES = 65536
_LONGEST_SECONDS = 30


def facts(paths: list[str], save_dir: str | None, token: str | None) -> dict[str, Any]:
    """All of it, as JSON.

    Args:
        paths: data and checkpoints that every machine must see alike; may hold wildcards, and be in a store.
        save_dir: where the run is to write; its nearest folder that exists is looked at, or whether its store answers.
        token: name of a file in that folder, put there by another machine; None where this one is to put one.
    """
    gpus, why_no_gpus = _gpus()
    return {
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "code": code_digest(),
        "commit": _commit(),
        "files": {path: _seen(path) for path in paths},
        "save_dir": None if save_dir is None else _room(save_dir, token),
        "gpus": gpus,
        "why_no_gpus": why_no_gpus,
    }


def take_over(environment: dict[str, str]) -> None:
    """Set variables as a run is given them here, credentials of a store among them."""
    os.environ.update(environment)


def clock() -> float:
    """Seconds since the epoch by this machine's clock."""
    return time.time()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _commit() -> str | None:
    """The commit of the working tree, marked where it was changed since; None outside of git."""
    folder = Path(__file__).parent
    said = _output(["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"])
    return said.strip() or None if said is not None else None


def _output(words: list[str]) -> str | None:
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=_LONGEST_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout if ended.returncode == 0 else None


def _seen(pattern: str) -> dict[str, Any]:
    """What a path or pattern leads to: files, bytes, a hash of names, sizes and parts of the contents (in a store, of
    names and sizes)."""
    if SCHEME.match(pattern):
        return _seen_in_store(pattern)
    found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    files: list[Path] = []
    for path in map(Path, found):
        files += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    try:
        sizes = [file.stat().st_size for file in files]
        for file, size in zip(files, sizes, strict=True):
            digest.update(f"{file}\0{size}\n".encode(errors="surrogateescape"))
        step = max(len(files) // _SAMPLE_FILES, 1)
        for file, size in list(zip(files, sizes, strict=True))[::step]:
            with file.open("rb") as open_file:
                digest.update(open_file.read(_SAMPLE_BYTES))
                open_file.seek(max(size - _SAMPLE_BYTES, 0))
                digest.update(open_file.read(_SAMPLE_BYTES))
    except OSError as error:
        return {"files": len(files), "bytes": 0, "hash": "", "error": f"{error.filename}: {error.strerror}"}
    return {"files": len(files), "bytes": sum(sizes), "hash": digest.hexdigest()[:16], "error": None}


def _seen_in_store(address: str) -> dict[str, Any]:
    told: dict[str, Any] = {"files": 0, "bytes": 0, "hash": "", "error": None}
    try:
        sizes = found_at(address, "path").sizes
    except (ConfigurationError, OSError) as error:
        return {**told, "error": _in_words(error)}
    digest = hashlib.sha256("".join(f"{name}\0{size}\n" for name, size in sizes.items()).encode())
    return {**told, "files": len(sizes), "bytes": sum(sizes.values()), "hash": digest.hexdigest()[:16]}


def _in_words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _room(save_dir: str, token: str | None) -> dict[str, Any]:
    """Free bytes where the run is to write, whether it may, and whether it is the folder that the first machine has.

    A store has room, and is the same to all: of it, whether it answers."""
    told: dict[str, Any] = {"folder": save_dir, "free": None, "error": None, "token": None}
    if SCHEME.match(save_dir):
        try:
            told["error"] = store_of(save_dir).why_not_writable(at(save_dir))
        except ConfigurationError as error:
            told["error"] = _in_words(error)
        return told
    folder = Path(save_dir).expanduser().absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    told |= {"folder": str(folder), "free": shutil.disk_usage(folder).free}
    try:
        if token is None:
            file, name = tempfile.mkstemp(prefix=".check_cluster-", dir=folder)
            os.close(file)
            told["token"] = os.path.basename(name)
        else:
            told["token"] = token if (folder / token).exists() else None
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        told["error"] = _in_words(error)
    return told


def remove(folder: str, token: str) -> None:
    """Take the file away that `facts` put in a folder."""
    Path(folder, token).unlink(missing_ok=True)


def _gpus() -> tuple[list[dict[str, str]], str | None]:
    """(each GPU as nvidia-smi has it, why there are none)."""
    if shutil.which("nvidia-smi") is None:
        return [], None
    query = ",".join(_GPU_FIELDS.values())
    said = _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"])
    if said is None:
        return [], "nvidia-smi fails or does not answer"
    rows = [[word.strip() for word in line.split(",")] for line in said.splitlines() if line.strip()]
    return [dict(zip(_GPU_FIELDS, row, strict=False)) for row in rows], None
