"""When an operator of this package may be called: it has a plain backward pass, and no other rule of PyTorch's.

Under functorch (`jvp`, `grad`, `vmap`) and forward-mode derivatives PyTorch takes such an operator for a constant, or
refuses it; a program that was exported or traced with it would not load where this package is not installed. There
PyTorch's own operations serve.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def operators_apply() -> bool:
    """False under functorch's transforms, in a dual level, and while `torch.export` or `torch.jit.trace` looks on."""
    return not (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
    )
