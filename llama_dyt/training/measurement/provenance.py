"""Where and with what figures were measured, and how they are written down; shared by benchmark.py and benchmarks/.

A figure without it says nothing. What measures start-up must not load torch for it.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llama_dyt.core import files

PACKAGES = ("torch", "transformers", "colossalai", "triton", "liger-kernel", "flash-attn", "torchao", "accelerate")
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables that change what memory costs."""


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python's version and those of the packages that are there."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor and, where torch was loaded and shows one, the GPU."""
    name = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return f"{cores} cores of {name}{gpu}"


def provenance(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The head of a report: date (UTC), versions, machine, its load, and settings of the allocator."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(packages),
        "machine": machine(),
        "allocator": {variable: os.environ[variable] for variable in ALLOCATOR if variable in os.environ},
        "load_average": os.getloadavg(),
    }


def write_json_aside(file: Path, report: dict[str, Any]) -> None:
    """Write JSON under another name in the same folder, then rename: a reader never meets half a report."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, report)
