"""The language model's loss, in fp32: of logits, or of the hidden states before the head, without whole logits.

The promise: logits are upcast first and nothing is rounded to half precision afterwards. It is the piece of the model
that parallelism swaps (`model.loss_function`), and a saved model carries it along. The arithmetic that needs no whole
logits is in `linear_loss.py`, which the package plugs in here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

IGNORE_INDEX = -100


def shift_labels(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Labels (batch, sequence) moved one to the left, so that position t holds the token that t must predict.

    The labels are shifted and not the logits, because a slice of the logits would be a copy of the largest tensor
    there is.
    """
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:]


@dataclass(frozen=True)
class VocabularyPart:
    """The rows of the head that one rank of a tensor-parallel group holds.

    Attributes:
        group: the ranks that hold the vocabulary together.
        first: the token of the first row.
        rows: how many rows are tokens; what the head has beyond is padding. 0 where a rank has padding alone.
    """

    group: dist.ProcessGroup
    first: int
    rows: int


@dataclass(frozen=True)
class CausalLmLoss:
    """Cross entropy of the next token, and the gradient of the z-loss where that is asked for.

    What is returned is the cross entropy alone, so that losses compare with and without z-loss; backward gives the
    gradient of cross entropy + z_loss * logsumexp(logits)^2, both averaged over the same tokens.

    Attributes:
        z_loss: coefficient of the squared logarithm of the softmax's denominator, at least 0 (PaLM, arXiv 2204.02311).
        shifted: labels come shifted already, as slices of sequences need it.
        part: this rank's part of the vocabulary; None: all of it.
        prepare: what a parallel head does with hidden states before it multiplies, such as gathering them.
        fused: the loss may be computed from hidden states (`of_hidden_states`); False where the head's weight gradient
            must be left to the head itself.
    """

    z_loss: float = 0.0
    shifted: bool = False
    part: VocabularyPart | None = None
    prepare: Callable[[Tensor], Tensor] | None = None
    fused: bool = True

    # `linear_cross_entropy`, set by the package; None in a copy that came out of an exported folder.
    linear: ClassVar[Callable[..., Tensor] | None] = None

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        num_items_in_batch: float | Tensor | None = None,
        *,
        shift_labels: Tensor | None = None,
        vocab_size: int | None = None,
    ) -> Tensor:
        """The loss of logits that are there.

        Args:
            logits: (batch, sequence, vocabulary or this rank's part), any dtype; computed on in fp32.
            labels: (batch, sequence) token ids, not shifted unless `shifted`; -100 where there is nothing to learn.
            num_items_in_batch: what the sum over tokens is divided by: the label tokens of the whole global batch,
                where micro batches and ranks are to add up to one mean. None: the label tokens of this call.
            shift_labels: (batch, sequence) ids to be predicted at their own places, in the stead of labels: what
                trainers give that cut sequences into slices.
            vocab_size: of no use here; trainers made for transformers' loss functions give it.

        Returns:
            A scalar in fp32. With no label at all it is 0 and its gradient is 0, never nan.

        Raises:
            ValueError: there are not as many targets as positions.
        """
        targets = self._targets(labels, shift_labels, logits)
        scores = logits.float().flatten(0, -2)
        if self.part is None and not self.z_loss:
            total = F.cross_entropy(scores, targets, ignore_index=IGNORE_INDEX, reduction="sum")
        else:
            total = token_losses(scores, targets, self.z_loss, self.part).sum()
        return _mean(total, targets, num_items_in_batch)

    def takes(self, head: nn.Module) -> bool:
        """Whether `of_hidden_states` may stand for calling `head` and then the loss.

        Not for a head that is more than its weight: of another class (adapters, quantized), or with hooks.
        """
        if not self.fused or self.linear is None:
            return False
        plain = type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks
        return (plain or self.part is not None) and head.bias is None

    def of_hidden_states(
        self,
        head: nn.Module,
        hidden_states: Tensor,
        labels: Tensor | None,
        num_items_in_batch: float | Tensor | None = None,
        *,
        shift_labels: Tensor | None = None,
    ) -> Tensor:
        """The same loss of what goes into the head, (batch, sequence, hidden_size), without whole logits."""
        if self.prepare is not None:
            hidden_states = self.prepare(hidden_states)
        targets = self._targets(labels, shift_labels, hidden_states)
        total = self.linear(hidden_states, head.weight, targets, z_loss=self.z_loss, part=self.part)
        return _mean(total, targets, num_items_in_batch)

    def _targets(self, labels: Tensor | None, aligned: Tensor | None, scored: Tensor) -> Tensor:
        """The ids to be predicted, (batch * sequence,), at the positions of `scored` (batch, sequence, features)."""
        if aligned is None:
            labels = labels.to(scored.device)
            aligned = labels if self.shifted else shift_labels(labels)
        if aligned.shape != scored.shape[:-1]:
            raise ValueError(
                f"labels of shape {tuple(aligned.shape)} do not fit positions of shape {tuple(scored.shape[:-1])}; "
                "give one label for every position, -100 where there is nothing to learn"
            )
        return aligned.to(scored.device).reshape(-1)


causal_lm_loss = CausalLmLoss()
"""The loss of a model that nothing has cut: `causal_lm_loss(logits, labels, num_items_in_batch)`."""


def _mean(total: Tensor, targets: Tensor, num_items_in_batch: float | Tensor | None) -> Tensor:
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum()
    if isinstance(num_items_in_batch, Tensor):
        return total / num_items_in_batch.to(total.device, torch.float32).clamp(min=1)
    # Below 1 where a global batch of few tokens is averaged over more ranks.
    return total / (num_items_in_batch if num_items_in_batch > 0 else 1)


def token_losses(scores: Tensor, targets: Tensor, z_loss: float, part: VocabularyPart | None) -> Tensor:
    """Loss of every token, 0 where ignored. scores (tokens, vocabulary or part of it) in fp32, targets (tokens,)."""
    counted = targets != IGNORE_INDEX
    if part is None:
        log_sum = scores.logsumexp(-1)
        target_score = scores.gather(1, torch.where(counted, targets, 0)[:, None])[:, 0]
    else:
        log_sum, target_score = _over_ranks(scores, targets, part)
    penalty = z_loss * log_sum.square()
    losses = log_sum - target_score + (penalty - penalty.detach())
    return torch.where(counted, losses, 0.0)


def _over_ranks(scores: Tensor, targets: Tensor, part: VocabularyPart) -> tuple[Tensor, Tensor]:
    """log-sum-exp and the target's score over the whole vocabulary, with the gradient for this rank's scores."""
    own = targets - part.first
    here = (own >= 0) & (own < part.rows)
    if part.rows == 0:
        scores = F.pad(scores, (0, 1), value=torch.finfo(scores.dtype).min)
    local_sum = scores.logsumexp(-1)
    local_target = scores.gather(1, torch.where(here, own, 0)[:, None])[:, 0]
    log_sum, target_score = combine_ranks(local_sum.detach(), local_target.detach(), here, part.group)
    share = (local_sum.detach() - log_sum).exp() * local_sum
    local_target = torch.where(here, local_target, 0.0)
    return share + (log_sum - share).detach(), local_target + (target_score - local_target).detach()


def combine_ranks(log_sum: Tensor, target: Tensor, here: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """From every rank's part of the vocabulary, the log-sum-exp and the score of the target over all of it.

    Args:
        log_sum: (tokens,) fp32, over this rank's part.
        target: (tokens,) fp32, the target's score where it is `here`.

    Returns:
        Both for the whole vocabulary, the same on all ranks; the target's is -inf where no rank has it, which makes
        the loss infinite. One collective.
    """
    mine = torch.stack((log_sum, torch.where(here, target, -torch.inf)))
    ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(ranks, mine, group=group)
    gathered = torch.stack(ranks)
    return gathered[:, 0].logsumexp(0), gathered[:, 1].amax(0)
