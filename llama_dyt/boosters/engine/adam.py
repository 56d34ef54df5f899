"""Adam for sharded, offloaded and half-precision states, over torch's own fused kernels, so that nothing is compiled.

Colossal-AI builds its Adam kernels with a compiler at first use (and finds none at all for a CPU without CUDA). Its
documented extension point, `KernelLoader.register_extension`, lets torch's `_fused_adamw_` take their place.
"""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from colossalai.kernel.extensions.base_extension import _Extension
from colossalai.kernel.kernel_loader import CPUAdamLoader, FusedOptimizerLoader
from colossalai.nn.optimizer import HybridAdam
from torch.distributed.tensor import DTensor

_ELEMENTS_A_LAUNCH = 2**26
"""Half-precision gradients are widened this many elements at a time (256 MB of fp32), not all at once."""


def fused_adam(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    steps: Sequence[int],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    adamw_mode: bool = True,
    div_scale: float | torch.Tensor = -1.0,
    found_inf: torch.Tensor | None = None,
    behind: torch.Tensor | None = None,
) -> None:
    """One Adam step in place on tensors of one device; equals `torch.optim.AdamW(fused=True)` bit for bit.

    Args:
        params, exp_avgs, exp_avg_sqs: fp32. grads: fp32, bf16 or fp16, overwritten if fp32 and div_scale is used.
        steps: the step number of each tensor, 1 for its first step.
        adamw_mode: decoupled weight decay; else L2 added to the gradient.
        div_scale: gradients are divided by it when positive (loss scale times clipping factor); a tensor, of any
            device, is taken as positive.
        found_inf: scalar; where it is not 0 on the device, nothing changes. None: always update.
        behind: scalar; so many of `steps` changed nothing and are not to count. None: none.

    Nothing here waits for a device that holds all of it: numbers of the host reach it as arguments of fills. Numbers
    that the host has are looked at, which on a CPU saves a pass over gradients that are not clipped.
    """
    if isinstance(found_inf, torch.Tensor) and found_inf.device.type == "cpu":
        if found_inf:
            return
        found_inf = None
    if isinstance(div_scale, torch.Tensor) and div_scale.device.type == "cpu":
        div_scale = -1.0 if div_scale == 1 else div_scale
    kernel = torch._fused_adamw_ if adamw_mode else torch._fused_adam_
    start = 0
    while start < len(params):
        end, elements = start, 0
        while end < len(params) and (end == start or elements + params[end].numel() <= _ELEMENTS_A_LAUNCH):
            elements += params[end].numel()
            end += 1
        device = params[start].device
        part = slice(start, end)
        divisor = _scalar(div_scale, device) if isinstance(div_scale, torch.Tensor) or div_scale > 0 else None
        if found_inf is not None:
            skip = _scalar(found_inf, device)
        else:
            skip = torch.zeros((), device=device) if divisor is not None else None
        # The kernel only reads the counts, so parameters of one age share one.
        counts = {step: _scalar(step, device) for step in set(steps[part])}
        if behind is not None:
            counts = {step: count - _scalar(behind, device) for step, count in counts.items()}
        kernel(
            list(params[part]),
            [grad.to(param.dtype) for grad, param in zip(grads[part], params[part], strict=True)],
            list(exp_avgs[part]),
            list(exp_avg_sqs[part]),
            [],
            [counts[step] for step in steps[part]],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=skip,
        )
        start = end


def _scalar(number: float | torch.Tensor, device: torch.device) -> torch.Tensor:
    """A number as an fp32 scalar on `device`, as the fused kernel wants it. `torch.tensor(number, device="cuda")` would
    be a copy that the host waits for, once a parameter and step."""
    if isinstance(number, torch.Tensor):
        return number.to(device, torch.float32)
    return torch.full((), float(number), dtype=torch.float32, device=device)


@torch.no_grad()
def hybrid_adam_step(
    self: HybridAdam,
    closure: Callable[[], float] | None = None,
    div_scale: float | torch.Tensor = -1,
    found_inf: torch.Tensor | None = None,
    behind: torch.Tensor | None = None,
) -> float | None:
    """`HybridAdam.step` through `fused_adam`, on a CPU and on CUDA, offloaded or not, whatever the gradients' dtype.

    Upstream forgets `div_scale` where gradients are bf16 and on the host (its `torch_adam_update` has no such
    argument), so Gemini with offloading in bf16 does not clip, without a word.
    """
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in self.param_groups:
        _require_bias_correction(group["bias_correction"])
        by_device: dict[torch.device, list[torch.nn.Parameter]] = {}
        for param in group["params"]:
            if param.grad is None:
                continue
            state = self.state[param]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(_own_part(param.data))
                state["exp_avg_sq"] = torch.zeros_like(_own_part(param.data))
            state["step"] = int(state.get("step", 0)) + 1
            by_device.setdefault(param.device, []).append(param)
        for params in by_device.values():
            states = [self.state[param] for param in params]
            fused_adam(
                [_own_part(param.data) for param in params],
                [_own_part(param.grad) for param in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [state["step"] for state in states],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                adamw_mode=self.adamw_mode,
                div_scale=div_scale,
                found_inf=found_inf,
                behind=behind,
            )
    return loss


def _own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor that `fully_shard` cut; else the tensor. Adam needs no more of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class _TorchCpuAdam:
    """Upstream `CPUAdamOptimizer` (kernel/extensions/csrc/kernel/x86/cpu_adam.h), which CPUAdam and HybridAdam call."""

    def __init__(
        self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, adamw_mode: bool
    ) -> None:
        self._adamw_mode = adamw_mode

    def step(
        self, step, lr, beta1, beta2, eps, weight_decay, bias_correction, param, grad, exp_avg, exp_avg_sq, div_scale
    ) -> None:
        _require_bias_correction(bias_correction)
        fused_adam(
            [param],
            [grad],
            [exp_avg],
            [exp_avg_sq],
            [step],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            adamw_mode=self._adamw_mode,
            div_scale=div_scale,
        )


def _multi_tensor_adam(
    chunk_size, noop_flag, tensors, lr, beta1, beta2, eps, step, adamw_mode, bias_correction, weight_decay, div_scale
) -> None:
    """Upstream `multi_tensor_adam` (csrc/kernel/cuda/multi_tensor_adam_kernel.cu), which FusedAdam calls; tensors are
    [grads, params, exp_avgs, exp_avg_sqs]."""
    _require_bias_correction(bias_correction)
    grads, params, exp_avgs, exp_avg_sqs = tensors
    fused_adam(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [step] * len(params),
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        adamw_mode=bool(adamw_mode),
        div_scale=div_scale,
    )


def _require_bias_correction(bias_correction: bool | int) -> None:
    if not bias_correction:
        raise NotImplementedError("Adam without bias correction: torch's fused kernel always corrects; leave it on")


class _TorchExtension(_Extension):
    """A kernel that is part of torch: always available, never built."""

    def is_available(self) -> bool:
        return True

    def assert_compatible(self) -> None:
        pass

    def build_aot(self) -> None:
        raise NotImplementedError(f"{self.name} is part of torch; there is nothing to build")

    build_jit = build_aot


class TorchCpuAdamExtension(_TorchExtension):
    """`torch._fused_adamw_` as the engine's CPU Adam kernel."""

    def __init__(self) -> None:
        super().__init__(name="cpu_adam_torch", support_aot=False, support_jit=False, priority=100)

    def load(self) -> SimpleNamespace:
        return SimpleNamespace(CPUAdamOptimizer=_TorchCpuAdam)


class TorchFusedOptimizerExtension(_TorchExtension):
    """`torch._fused_adamw_` as the engine's CUDA multi-tensor Adam kernel."""

    def __init__(self) -> None:
        super().__init__(name="fused_optim_torch", support_aot=False, support_jit=False, priority=100)

    def load(self) -> SimpleNamespace:
        return SimpleNamespace(multi_tensor_adam=_multi_tensor_adam)


def register_adam_kernels() -> None:
    """Register the kernels with the engine's loaders and give its HybridAdam the step above. Again it does nothing."""
    for loader, extension in (
        (CPUAdamLoader, TorchCpuAdamExtension),
        (FusedOptimizerLoader, TorchFusedOptimizerExtension),
    ):
        if extension not in loader.REGISTRY:
            # Alone, not beside the compiled ones: with several usable kernels `KernelLoader.load` warns at each use.
            loader.REGISTRY.clear()
            loader.register_extension(extension)
    replace(HybridAdam, "step", hybrid_adam_step)
