"""Cases with documents apart: one step over packed rows, and the same by plain PyTorch over documents one by one.

Its own file because here rows are packed from documents, which those of `small_run` are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
from torch.nn import functional as F

from llama_dyt.boosters.boosted import sum_over_ranks
from llama_dyt.data.loaders.documents_apart import DocumentsApart
from llama_dyt.data.loaders.step import BatchShape, Step, make_micro_batch
from tests.distributed import small_run
from tests.distributed.cases import boost
from tests.distributed.small_run import GLOBAL_ROWS, LENGTH, VOCAB_SIZE, Layout

EOS = 2


@dataclass(frozen=True)
class Ways:
    """How documents are kept apart."""

    positions: bool
    attention: bool

    def __str__(self) -> str:
        return "-".join(name for name in ("positions", "attention") if getattr(self, name))


@dataclass(frozen=True)
class OneStep:
    """Of one step: the global batch's loss, how many targets it has, its loss by `evaluate`, and gradients."""

    loss: float
    num_label_tokens: int
    evaluated: float
    gradients: dict[str, torch.Tensor]


def rows() -> numpy.ndarray:
    """(GLOBAL_ROWS, LENGTH) ids; some rows are one document, some begin or end with an EOS."""
    generator = numpy.random.default_rng(7)
    ids = generator.integers(3, VOCAB_SIZE, (GLOBAL_ROWS, LENGTH))
    for row, places in enumerate([(6, 7, 15), (), (0, 12), (LENGTH - 1,), (11,), (3, 9, 20), (12,), (23, 1)]):
        ids[row, list(places)] = EOS
    return ids


def one_step(layout: Layout, precision: str, ways: Ways, accumulation: int = 1) -> OneStep:
    run = small_run.run_config(layout, precision, accumulation)
    boosted = boost(run)
    grid, ids = boosted.grid, rows()
    own = ids[BatchShape(run.data.batch_size, accumulation, grid.dp_rank, grid.dp_size).own_rows]
    packed = [make_micro_batch(part, part) for part in numpy.split(own, accumulation)]
    step = Step(packed, GLOBAL_ROWS * (LENGTH - 1), ids.size, {})
    step = next(DocumentsApart(iter([step]), EOS, ways.positions, ways.attention, boosted.sum_over_data_ranks))
    (evaluated,) = sum_over_ranks([boosted.evaluate(step)], boosted.device)
    (loss,) = sum_over_ranks([boosted.forward_backward(step)], boosted.device)
    gradients = {name: gradient for name, gradient in boosted.state.gradients() if gradient is not None}
    return OneStep(loss, step.num_label_tokens, evaluated, gradients)


def plain_step(ways: Ways) -> OneStep:
    """The same in this process. Attention within documents: each a sequence of its own; else rows, by a mask made by
    hand, with positions as they are to be."""
    model = small_run.small_model()
    total, count = torch.zeros(()), 0
    for row in torch.from_numpy(rows()):
        parts = row.tensor_split([place + 1 for place in (row == EOS).nonzero().flatten().tolist()])
        places = torch.arange(LENGTH)
        if ways.positions:
            places = torch.cat([torch.arange(len(part)) for part in parts])
        if not ways.attention:
            parts = [row]
        first = 0
        for part in parts:
            size = len(part)
            if size > 1:
                mask = torch.ones(1, 1, size, size, dtype=torch.bool).tril()
                positions = places[first : first + size][None]
                logits = model(part[None], attention_mask=mask, position_ids=positions, use_cache=False).logits
                total = total + F.cross_entropy(logits[0, :-1].float(), part[1:], reduction="sum")
                count += size - 1
            first += size
    loss = total / count
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return OneStep(loss.item(), count, loss.item(), gradients)
