"""Numbers on their way from the device to the host, so that asking for them and having them are two moments.

It is the one way by which a step's outcome reaches the host. On CUDA the copy goes into pinned
memory behind what computes the numbers; nobody waits until they are asked for. On a CPU they are there at once.
"""

from __future__ import annotations

import torch


class HostCopy:
    """The values of a small tensor, copied now and read later.

    Args:
        values: one dimension, any device; may be changed afterwards.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = values.clone()

    def values(self) -> list[float]:
        """The numbers; waits until the device has come that far, and for nothing it was asked for later."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.tolist()
