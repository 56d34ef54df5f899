"""Decoder layers compiled one by one, with `torch.compile`, and back to eager for the steps that look inside.

The one place that touches the compiler. Only `forward` of each layer is compiled, in place:
modules keep their names, so checkpoints do; what a booster hangs on a layer (FSDP's gathering, a pipeline's or
sequence parallelism's hooks) stays outside of the graph and runs as it is; and since parameters are inputs of the
graph, one serves all layers. It is made again for another shape, for evaluation, and where a mask comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

BACKEND = "inductor"
"""What turns graphs into code; tests take another, which needs no C++ compiler and no half a minute."""


class CompiledLayers:
    """Decoder layers whose `forward` is compiled, at the first call of each kind.

    Args:
        layers: transformers decoder layers, as a booster left them.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._eager = False
        # DDP would have graphs cut at its buckets, for overlap; a graph a layer overlaps as it is.
        torch._dynamo.config.optimize_ddp = False
        # Beyond so many graphs of one layer torch gives up. Masks, evaluation and lengths that vary make eight.
        torch._dynamo.config.recompile_limit = 32
        for layer in layers:
            layer.forward = self._switched(layer.forward)

    def _switched(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        # fullgraph: a graph break is an error at the first step, not a slow run.
        compiled = torch.compile(forward, backend=BACKEND, fullgraph=True)

        def run(*args: Any, **kwargs: Any) -> Any:
            return (forward if self._eager else compiled)(*args, **kwargs)

        return run

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Inside it the layers run as they were written, forward and backward: hooks within a layer are called, which
        graphs made before them do not know. A flag of our own and not `torch.compiler.set_stance`, which is of the
        thread, where a backward pass on CUDA recomputes activations in another one."""
        self._eager = True
        try:
            yield
        finally:
            self._eager = False
