"""What is minimised where a teacher is beside the text.

Everything is summed over the tokens that have a label and divided by those of the global batch, as the cross entropy
is: a token weighs the same however tokens and padding fall on ranks and micro batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llama_dyt.models.ops.loss import IGNORE_INDEX, shift_labels
from llama_dyt.training.distillation.settings import DistillationSettings


class Distillation:
    """The loss of a micro batch by student and teacher: an `Objective` of `boosters.Boosted`.

    Args:
        teacher: whole, on the device; it is frozen here and put into eval mode.
        settings: weights and temperature.
    """

    def __init__(self, teacher: nn.Module, settings: DistillationSettings) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._settings = settings

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor], denominator: float) -> Tensor:
        """A scalar whose value is the cross entropy and whose gradient that of

            (1 - weight) * cross entropy + weight * T^2 * KL(teacher || student) + hidden_weight * hidden states' error

        (arXiv 1503.02531), T dividing both models' logits; fp32.

        Args:
            model: the student, perhaps wrapped.
            inputs: of the model, labels (batch, sequence) among them.
            denominator: what sums over tokens are divided by.
        """
        settings = self._settings
        matching = settings.distill_hidden_weight > 0
        more = {"output_hidden_states": True} if matching else {}
        with torch.no_grad():
            teacher_inputs = {name: value for name, value in inputs.items() if name != "labels"}
            taught = self._teacher(**teacher_inputs, use_cache=False, **more)
        student = model(**inputs, use_cache=False, num_items_in_batch=denominator, skip_logits=False, **more)
        counted = shift_labels(inputs["labels"]) != IGNORE_INDEX
        divisor = denominator if denominator > 0 else 1.0
        weight = settings.distill_weight
        aim = (1 - weight) * student.loss
        if weight:
            divergence = divergence_of(student.logits[counted], taught.logits[counted], settings.distill_temperature)
            aim = aim + weight * divergence / divisor
        if matching:
            pairs = list(zip(student.hidden_states, taught.hidden_states, strict=True))[1:]  # the first: embeddings
            errors = [relative_error(own[counted], other[counted]) for own, other in pairs]
            aim = aim + settings.distill_hidden_weight * torch.stack(errors).mean() / divisor
        return student.loss.detach() + (aim - aim.detach())


def divergence_of(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student), summed over tokens.

    Args:
        student, teacher: logits (tokens, vocabulary), any dtype; computed in fp32.

    Returns:
        A scalar in fp32; 0 of no token.
    """
    own = F.log_softmax(student.float() / temperature, -1)
    other = F.log_softmax(teacher.float() / temperature, -1)
    return F.kl_div(own, other, reduction="sum", log_target=True) * temperature**2


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared size of the difference of hidden states (tokens, hidden_size) by that of the teacher's, token by token,
    summed over tokens; fp32. By a mean over tokens it would depend on which of them a micro batch has."""
    own, other = student.float(), teacher.float()
    return ((own - other).square().sum(-1) / other.square().sum(-1).clamp_min(1e-12)).sum()
