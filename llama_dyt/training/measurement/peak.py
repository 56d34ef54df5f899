"""What a device could do at best: the rate that utilisation divides by, from data sheets or measured here.

The table is data that grows with every new GPU.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import psutil
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

_SETTLED_ROUNDS = 3
_SETTLED_GAIN = 0.01
"""Measuring ends once so many rounds in a row have not raised the best rate by more than this share of it."""
_BUSY_PROCESSORS = 0.2
"""Work of others, in processors, that makes a peak doubtful: a hardware thread takes its core's other half with it."""


def listed_peak_tflops(name: str) -> float | None:
    """The data sheet's rate of a device with this name; None where no data sheet is known, or it would be too high."""
    if any(re.search(rf"\b{word}\b", name) for word in _SLICES):
        return None
    return next((tflops for key, tflops in PEAK_TFLOPS.items() if re.search(rf"\b{key}\b", name)), None)


@dataclass(frozen=True)
class MatmulPeak:
    """The best rate of a square matrix multiplication.

    Attributes:
        tflops: TFLOP/s.
        size: of the matrices that reached it, since no size is the best one everywhere.
        busy_processors: how many processors worked for others meanwhile; 0 on a GPU, which nobody shares.
    """

    tflops: float
    size: int
    busy_processors: float = 0.0

    @property
    def is_doubtful(self) -> bool:
        return self.busy_processors > _BUSY_PROCESSORS


def measure_matmul(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...] | None = None, seconds: float = 1.0, own: int = 1
) -> MatmulPeak:
    """The best of several sizes, each measured once a round until more rounds find nothing better.

    The best and not the mean, and sizes in turn, so that neither a noisy neighbour nor the start-up of a library nor a
    clock that is still rising becomes the peak.

    Args:
        seconds: after which no further round begins.
        own: processes of this run on this machine, whose measuring is nobody else's work.
    """
    sizes = sizes or MATMUL_SIZES.get(device.type, MATMUL_SIZES["cpu"])
    # A generator of its own: measuring must not move the run's, or a resumed run would end with another state.
    generator = torch.Generator(device).manual_seed(0)
    sides = [torch.randn(2, size, size, device=device, generator=generator).to(dtype) for size in sizes]
    outs = [left @ right for left, right in sides]
    best, settled = MatmulPeak(0.0, sizes[0]), 0
    others = _WorkOfOthers()
    deadline = time.perf_counter() + seconds
    while settled < _SETTLED_ROUNDS and (not best.tflops or time.perf_counter() < deadline):
        reached = max((_rate(left, right, out, device), size) for (left, right), out, size in zip(sides, outs, sizes))
        settled = settled + 1 if reached[0] <= best.tflops * (1 + _SETTLED_GAIN) else 0
        best = max(best, MatmulPeak(*reached), key=lambda peak: peak.tflops)
    if device.type != "cpu":
        return best
    return MatmulPeak(best.tflops, best.size, others.processors(own))


def _rate(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, device: torch.device) -> float:
    """TFLOP/s of one multiplication."""
    _synchronize(device)
    start = time.perf_counter()
    torch.mm(left, right, out=out)
    _synchronize(device)
    return 2.0 * len(left) ** 3 / (time.perf_counter() - start) / 1e12


class _WorkOfOthers:
    """How many of this machine's processors other processes used since this was made, in whole or in part."""

    def __init__(self) -> None:
        self._wall, self._own, self._all = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of the clock, of this process and of all processors at work, a hypervisor's for others included."""
        times = psutil.cpu_times()._asdict()
        idle = ("idle", "iowait", "guest", "guest_nice")  # a guest's time stands in its user time too
        return time.perf_counter(), time.process_time(), sum(v for k, v in times.items() if k not in idle)

    def processors(self, own: int) -> float:
        wall, mine, everybody = (now - then for now, then in zip(self._now(), (self._wall, self._own, self._all)))
        return max(0.0, (everybody - mine * own) / wall)


def peak_tflops(device: torch.device, dtype: torch.dtype, own: int = 1) -> tuple[float, str]:
    """The rate MFU divides by, and where it comes from, for the log: a table for known GPUs, else a measurement.

    Args:
        own: as for `measure_matmul`.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    listed = listed_peak_tflops(name)
    if listed is not None:
        return listed, f"{name}: data sheet, dense bf16"
    # A processor without half-precision units emulates them far below its fp32 rate; its peak is what it can do at all,
    # and one small product tells which of the two that is.
    kind = max({dtype, torch.float32}, key=lambda kind: measure_matmul(device, kind, (256,), 0.02).tflops)
    peak = measure_matmul(device, kind, own=own)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    source = f"{name}: measured {str(kind).removeprefix('torch.')} matmul of {peak.size}x{peak.size}{threads}"
    if peak.is_doubtful:
        source += f", not idle: {peak.busy_processors:.1f} processors worked for others"
    return peak.tflops, source


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
