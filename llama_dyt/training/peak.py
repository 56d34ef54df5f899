"""What a device could do at best: the rate that utilisation divides by, from data sheets or measured here.

Its own file because the table is data that grows with every new GPU.
"""

from __future__ import annotations

import re
import time

import torch

PEAK_TFLOPS = {
    # Dense bf16 tensor-core peaks with fp32 accumulation from the vendors' data sheets, TFLOP/s a device as torch names
    # it. The first whole word found in the name counts, so what a name adds ("H100 PCIe") comes before what it is.
    "GB300": 2500.0,
    "B300": 2250.0,
    "GB200": 2500.0,
    "B200": 2250.0,
    "B100": 1750.0,
    "GH200": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800 PCIe": 756.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX A6000": 154.8,
    "L40S": 362.0,
    "L40": 181.0,
    "L20": 119.5,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI355X": 2500.0,
    "MI350X": 2300.0,
    "MI325X": 1307.4,
    "MI300X": 1307.4,
    "MI250X": 191.5,  # one of its two dies, which torch shows as devices of their own
}

_SLICES = ("MIG", "Laptop", "Max-Q")
"""Words of a name that mean less than the data sheet's device: a part of one, or one with less power."""

MATMUL_SIZES = {"cuda": (4096, 8192), "cpu": (512, 1024, 1536)}


def listed_peak_tflops(name: str) -> float | None:
    """The data sheet's rate of a device with this name; None where no data sheet is known, or it would be too high."""
    if any(re.search(rf"\b{word}\b", name) for word in _SLICES):
        return None
    return next((tflops for key, tflops in PEAK_TFLOPS.items() if re.search(rf"\b{key}\b", name)), None)


def measured_matmul_tflops(device: torch.device, dtype: torch.dtype, size: int = 768, seconds: float = 0.3) -> float:
    """Best rate of one square matrix multiplication, in TFLOP/s.

    The best of several after a first one, each synchronised, so that neither a noisy neighbour nor the start-up of a
    library becomes the peak.
    """
    # A generator of its own: measuring must not move the run's, or a resumed run would end with another state.
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(size, size, device=device, generator=generator).to(dtype)
    right = torch.randn(size, size, device=device, generator=generator).to(dtype)
    out = left @ right
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best / 1e12


def best_matmul_tflops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> tuple[float, int]:
    """(TFLOP/s, size): the best over several sizes, since none is the best one everywhere.

    Args:
        seconds: of all sizes together; one multiplication of each is made however slow it is.
    """
    sizes = MATMUL_SIZES.get(device.type, MATMUL_SIZES["cpu"])
    return max((measured_matmul_tflops(device, dtype, size, seconds / len(sizes)), size) for size in sizes)


def peak_tflops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The rate MFU divides by, and where it comes from, for the log: a table for known GPUs, else a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    listed = listed_peak_tflops(name)
    if listed is not None:
        return listed, f"{name}: data sheet, dense bf16"
    # A processor without half-precision units emulates them far below its fp32 rate; its peak is what it can do at all,
    # and one small product tells which of the two that is.
    kind = max({dtype, torch.float32}, key=lambda kind: measured_matmul_tflops(device, kind, 256, 0.02))
    rate, size = best_matmul_tflops(device, kind)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return rate, f"{name}: measured {str(kind).removeprefix('torch.')} matmul of {size}x{size}{threads}"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
