"""Colossal-AI on a CPU: an accelerator that answers what the engine asks of a GPU, and the checks that refuse one.

None of this touches a CUDA run. gloo carries the collectives; every booster then runs, with real
sharding, on any laptop. Gemini's further needs are in `strategies/gemini/host.py`.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

import platform
import resource
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psutil
import torch
from colossalai.accelerator import get_accelerator, set_accelerator
from colossalai.accelerator.cpu_accelerator import CpuAccelerator
from colossalai.zero import LowLevelZeroOptimizer


class HostStream:
    """A stream of a device that runs everything in order: there is nothing to wait for."""

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> HostEvent:
        return event or HostEvent()

    def query(self) -> bool:
        return True


class HostEvent:
    """An event on such a stream: already past when asked."""

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class HostAccelerator(CpuAccelerator):
    """Upstream `CpuAccelerator`, answering the calls that it raises on and that training makes.

    Memory is the process's resident memory, in bytes: on a CPU that is what runs out.
    """

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any = None) -> None: ...

    def synchronize(self, device: Any = None) -> None: ...

    def device_count(self) -> int:
        return 1

    def get_device_name(self, device: Any = None) -> str:
        return platform.processor() or platform.machine()

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [torch.get_rng_state()]

    def set_rng_state_all(self, new_states: list[torch.Tensor]) -> None:
        torch.set_rng_state(new_states[0])

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def initial_seed(self) -> int:
        return torch.initial_seed()

    def empty_cache(self) -> None: ...

    def memory_allocated(self, device: Any = None) -> int:
        return psutil.Process().memory_info().rss

    def max_memory_allocated(self, device: Any = None) -> int:
        return peak_resident_bytes()

    max_memory_reserved = max_memory_allocated

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        reset_peak_resident_bytes()

    reset_max_memory_allocated = reset_peak_memory_stats
    reset_max_memory_cached = reset_peak_memory_stats

    def Stream(self, device: Any = None, priority: int = 0, **kwargs: Any) -> HostStream:
        return HostStream()

    def Event(self, *args: Any, **kwargs: Any) -> HostEvent:
        return HostEvent()

    def current_stream(self, device: Any = None) -> HostStream:
        return HostStream()

    default_stream = current_stream

    def set_stream(self, stream_: Any) -> None: ...

    def stream(self, stream_: Any) -> AbstractContextManager[None]:
        return nullcontext()


def peak_resident_bytes() -> int:
    """Largest resident memory of this process since its start or the last `reset_peak_resident_bytes()`."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # bytes there, kilobytes elsewhere


def reset_peak_resident_bytes() -> None:
    """Start a new peak. Only Linux can; elsewhere the peak stays that of the whole process."""
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")  # 5 resets VmHWM, see proc_pid_clear_refs(5)
    except OSError:
        pass


def use_host_accelerator() -> None:
    """Make this process train on its CPU. Called once at launch, after `apply_compat()`; again it does nothing."""
    if isinstance(get_accelerator(), HostAccelerator):
        return
    set_accelerator(HostAccelerator())
    _allow_zero_on_a_cpu()
    _allow_recording_host_streams()


def _allow_zero_on_a_cpu() -> None:
    """Upstream `LowLevelZeroOptimizer._sanity_checks` asserts a cuda or npu accelerator; keep its other check."""

    def _sanity_checks(self: LowLevelZeroOptimizer) -> None:
        for group in self.optim.param_groups:
            for param in group["params"]:
                if not getattr(param, "skip_zero_check", False) and param.dtype != self._dtype:
                    raise AssertionError(f"parameters of one dtype expected, {self._dtype}, got {param.dtype}")

    replace(LowLevelZeroOptimizer, "_sanity_checks", _sanity_checks)


def _allow_recording_host_streams() -> None:
    """`LowLevelZeroOptimizer._run_reduction` calls `Tensor.record_stream`, which torch refuses for CPU tensors."""
    upstream = torch.Tensor.record_stream

    def record_stream(self: torch.Tensor, stream: Any) -> None:
        if not isinstance(stream, HostStream):
            upstream(self, stream)

    torch.Tensor.record_stream = record_stream
