"""What workers run for the tests of the loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from llama_dyt.boosters.boosted import sum_over_ranks
from llama_dyt.models import CausalLmLoss, VocabularyPart, linear_cross_entropy
from llama_dyt.models.ops import linear_loss
from llama_dyt.models.partition import padded_vocabulary
from tests.distributed import cases, small_run
from tests.distributed.small_run import Layout


def over_ranks(vocabulary: int, z_loss: float, chunk_rows: int, fused: bool, ignored: float) -> dict[str, float]:
    """The loss of a vocabulary cut over all ranks: how far value and gradients are from those in double precision."""
    rank, size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, 13, 8, generator=generator)
    weight = torch.randn(vocabulary, 8, generator=generator)
    targets = torch.randint(0, vocabulary, (2, 13), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = -100

    whole_hidden, whole_weight = (tensor.double().requires_grad_() for tensor in (hidden, weight))
    logits = whole_hidden @ whole_weight.T
    exact = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    (exact + (z_loss * logits.logsumexp(-1).square())[targets != -100].sum()).backward()

    rows = padded_vocabulary(vocabulary, size) // size
    padded = F.pad(weight, (0, 0, 0, rows * size - vocabulary), value=5.0)  # what stands in padding must not matter
    own = padded[rank * rows : (rank + 1) * rows].clone().requires_grad_()
    part = VocabularyPart(dist.group.WORLD, rank * rows, max(0, min(rows, vocabulary - rank * rows)))
    hidden.requires_grad_()
    if fused:
        loss = linear_cross_entropy(hidden, own, targets, z_loss=z_loss, part=part, chunk_rows=chunk_rows)
    else:
        logits = F.linear(hidden, own)[..., : part.rows]
        loss = CausalLmLoss(z_loss=z_loss, part=part, shifted=True)(logits, targets, 1)
    loss.backward()
    dist.all_reduce(hidden.grad)
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own.grad)
    gradient = torch.cat(parts)

    def distance(value: torch.Tensor, reference: torch.Tensor) -> float:
        return float((value - reference).norm() / reference.norm().clamp(min=1e-30))

    return {
        "loss": distance(loss.detach(), exact.detach()),
        "hidden": distance(hidden.grad, whole_hidden.grad),
        "weight": distance(gradient[:vocabulary], whole_weight.grad),
        "padding": float(gradient[vocabulary:].abs().sum()),
    }


def lost_target() -> float:
    """The loss where no rank has a token's target."""
    part = VocabularyPart(dist.group.WORLD, 4 * dist.get_rank(), 4)
    return linear_cross_entropy(torch.ones(1, 2), torch.ones(4, 2), torch.tensor([99]), part=part).item()


def train(layout: Layout, precision: str, chunk_rows: int, z_loss: float, **flags: Any) -> tuple[cases.RankResult, int]:
    """`cases.train` of one step with chunks of so many tokens; also, how often the loss was made of hidden states."""
    calls = 0
    fused, most = CausalLmLoss.linear, linear_loss.CHUNK_BYTES

    def counting(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return fused(*args, **kwargs)

    CausalLmLoss.linear = staticmethod(counting)
    # The padded vocabulary of this rank is what a chunk's logits are wide.
    width = padded_vocabulary(small_run.VOCAB_SIZE, layout.tp) // layout.tp if layout.tp > 1 else small_run.VOCAB_SIZE
    linear_loss.CHUNK_BYTES = {"cpu": 4 * width * chunk_rows}
    try:
        return cases.train(layout, precision, accumulation=1, num_steps=1, z_loss=z_loss, **flags), calls
    finally:
        CausalLmLoss.linear, linear_loss.CHUNK_BYTES = staticmethod(fused), most


def validate_with_z_loss(layout: Layout, precision: str) -> list[float]:
    """The validation loss of one batch without and with z-loss, and with logits."""
    losses = []
    for z_loss, fused in ((0.0, True), (0.1, True), (0.0, False)):
        run = small_run.run_config(layout, precision, z_loss=z_loss)
        boosted = cases.boost(run)
        boosted.module.loss_function = replace(boosted.module.loss_function, fused=fused)
        step = next(islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), 1))
        losses += sum_over_ranks([boosted.evaluate(step)], boosted.device)
    return losses
