"""What every booster is measured against: plain PyTorch in one process, over the same global batches.

Its own file because it must share nothing with the code it judges but the model: its loss, its clipping and its
optimizer are torch's own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests.distributed import small_run
from tests.distributed.masked_experts import Together, masked

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Trajectory:
    """What a run computed.

    Attributes:
        gradients: of the first step, before clipping, by parameter name.
        grad_norms: of every step, before clipping.
        losses: of every step, mean over its label tokens.
        weights: after the last step.
    """

    gradients: dict[str, torch.Tensor]
    grad_norms: list[float]
    losses: list[float]
    weights: dict[str, torch.Tensor]


@cache
def train(
    norm: str = "dyt",
    precision: str = "fp32",
    num_steps: int = small_run.NUM_STEPS,
    tied: bool = False,
    z_loss: float = 0.0,
    family: str = "15m",
    together: Together | None = None,
) -> Trajectory:
    """Train the small run in one process.

    Args:
        precision: "fp32"; or "bf16" or "fp16" for a copy of the model in it that computes the gradients, while fp32
            weights are kept and updated. The distance between the two is the noise of half precision itself.
        together: of a family with experts, the tokens whose routing is balanced together, and that contend for places.
    """
    model = small_run.small_model(norm, tied=tied, family=family)
    if together is not None:  # only what `routing_losses_of` says is to have a gradient
        model.model.routing_board.balance = model.model.routing_board.z = 0.0
    worker = model if precision == "fp32" else copy.deepcopy(model).to(HALF[precision])
    # fp16 gradients as small as these would vanish; a power of two changes nothing else.
    scale = 2.0**16 if precision == "fp16" else 1.0
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=small_run.LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=small_run.WEIGHT_DECAY
    )
    gradients, grad_norms, losses = {}, [], []
    for step in range(num_steps):
        with torch.no_grad():
            for copied, master in zip(worker.parameters(), model.parameters()):
                copied.copy_(master)
        worker.zero_grad()
        of_routers: torch.Tensor | float = 0.0
        if together is None:
            loss, penalty = losses_of(worker, step)
        else:
            with masked(worker, together):
                loss, penalty = losses_of(worker, step)
            of_routers = routing_losses_of(worker, step, together)
        ((loss + z_loss * penalty + of_routers) * scale).backward()
        for copied, master in zip(worker.parameters(), model.parameters()):
            master.grad = copied.grad.float() / scale
        if not gradients:
            gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        grad_norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), small_run.CLIPPING).item())
        losses.append(loss.item())
        optimizer.step()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return Trajectory(gradients, grad_norms, losses, weights)


def grad_norm_at_start(step: int, num_layers: int) -> float:
    """Norm of the gradient of the initial weights on the global batch of `step`."""
    model = small_run.small_model(num_layers=num_layers)
    loss_of(model, step).backward()
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()]).item()


def loss_of(model: torch.nn.Module, step: int) -> torch.Tensor:
    """Mean loss over the label tokens of a global batch, in fp32 whatever the model is in."""
    return losses_of(model, step)[0]


def losses_of(model: torch.nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """That, and the mean of the squared logarithm of the softmax's denominator over the same tokens."""
    ids, labels = (torch.from_numpy(array) for array in small_run.global_batch(step))
    logits = model(ids).logits[:, :-1].float()
    targets = labels[:, 1:]
    count = (targets != -100).sum()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / count
    return loss, logits.logsumexp(-1).square()[targets != -100].sum() / count


def routing_losses_of(model: torch.nn.Module, step: int, together: Together) -> torch.Tensor:
    """The routers' losses, a mean over micro batches: the balance by transformers' own function, the z-loss by hand."""
    config, (ids, _) = model.config, small_run.global_batch(step)
    total = torch.zeros(())
    for rows in together.micro_batches:
        logits: list[torch.Tensor] = []
        hooks = [
            layer.mlp.gate.register_forward_hook(lambda *call, logits=logits: logits.append(call[2]))
            for layer in model.model.layers
        ]
        with masked(model, replace(together, micro_batches=(tuple(range(len(rows))),))):
            model(torch.from_numpy(ids)[list(rows)])
        for hook in hooks:
            hook.remove()
        balance = load_balancing_loss_func(tuple(logits), config.num_local_experts, config.num_experts_per_tok)
        z = torch.cat(logits).logsumexp(-1).square().mean()
        total = total + config.router_aux_loss_coef * balance + config.router_z_loss_coef * z
    return total / len(together.micro_batches)


def distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference by the norm of the reference."""
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def by_kind(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every kind of parameter (`self_attn.q_proj.weight`, `model.norm.alpha`) over all layers, as one flat tensor."""
    kinds: dict[str, list[torch.Tensor]] = {}
    for name in sorted(tensors):
        kind = name.split(".", 3)[3] if name.startswith("model.layers.") else name
        kinds.setdefault(kind, []).append(tensors[name].flatten())
    return {kind: torch.cat(parts) for kind, parts in kinds.items()}


def distances(values: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> dict[str, float]:
    """`distance` of every kind of parameter."""
    values, reference = by_kind(values), by_kind(reference)
    return {kind: distance(values[kind], reference[kind]) for kind in reference}


def gradient_noise(precision: str, **model: Any) -> dict[str, float]:
    """How far half precision alone moves the gradient of each kind of parameter.

    An alpha or scale has one number a site, a sum over all that passes it, whose rounding errors cancel by luck. So the
    worst of these kinds stands for all of them.
    """
    noise = distances(train(precision=precision, **model).gradients, train(**model).gradients)
    scalars = [kind for kind in noise if kind.endswith((".alpha", ".scale"))]
    worst = max((noise[kind] for kind in scalars), default=0.0)
    return noise | dict.fromkeys(scalars, worst)
