"""The language model's loss, in fp32.

Its own file because it is the piece of the model that tensor parallelism swaps (`model.loss_function`), and because
of one promise: the logits are upcast first and nothing is rounded to half precision afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100


def shift_labels(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Labels (batch, sequence) moved one to the left, so that position t holds the token that t must predict.

    The labels are shifted and not the logits, because a slice of the logits would be a copy of the largest tensor
    there is.
    """
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: float | Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Cross entropy of the next token.

    Args:
        logits: (batch, sequence, vocabulary), any dtype; computed on in fp32.
        labels: (batch, sequence) token ids, not shifted; `ignore_index` where there is nothing to learn.
        num_items_in_batch: what the sum over tokens is divided by: the label tokens of the whole global batch, where
            micro batches and ranks are to add up to one mean. None: the label tokens of this call.

    Returns:
        A scalar in fp32. With no label at all it is 0 and its gradient is 0, never nan.
    """
    targets = shift_labels(labels.to(logits.device), ignore_index).reshape(-1)
    token_loss_sum = F.cross_entropy(
        logits.float().view(-1, logits.shape[-1]), targets, ignore_index=ignore_index, reduction="sum"
    )
    if num_items_in_batch is None:
        num_items_in_batch = (targets != ignore_index).sum()
    if isinstance(num_items_in_batch, Tensor):
        return token_loss_sum / num_items_in_batch.to(logits.device, torch.float32).clamp(min=1)
    return token_loss_sum / max(num_items_in_batch, 1)
