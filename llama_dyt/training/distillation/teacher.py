"""The teacher that --distill_from names: judged before the run, read whole onto every rank when it starts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PretrainedConfig

from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.models import build_config, count_parameters, load_pretrained, read_pretrained
from llama_dyt.training.distillation.objective import Distillation
from llama_dyt.training.distillation.settings import DistillationSettings


def require_teacher(folder: Path, settings: DistillationSettings, config: PretrainedConfig) -> None:
    """Raises ConfigurationError where the model in a HF folder cannot teach; of its weights only shapes are read.

    Args:
        config: of the student.
    """
    name = settings.distill_from
    try:
        teacher = build_config(folder)
        with read_pretrained(folder, teacher):
            pass
    except CheckpointError as error:
        raise ConfigurationError(Problem("distill_from", name, str(error))) from error
    if teacher.vocab_size != config.vocab_size:
        reason = f"its vocabulary has {teacher.vocab_size} pieces, the model's {config.vocab_size}"
        raise ConfigurationError(Problem("distill_from", name, reason, "give a teacher of the same tokenizer"))
    if settings.distill_hidden_weight:
        for figure in ("hidden_size", "num_hidden_layers"):
            own, its = getattr(config, figure), getattr(teacher, figure)
            if own != its:
                reason = f"its {figure} is {its}, the model's {own}, so that hidden states cannot be compared"
                remedy, also = "leave --distill_hidden_weight out", ("distill_hidden_weight",)
                raise ConfigurationError(Problem("distill_from", name, reason, remedy, also=also))


def teacher_of(folder: Path, settings: DistillationSettings, device: torch.device, dtype: torch.dtype) -> Distillation:
    """The loss with the teacher in a HF folder, its weights in `dtype`."""
    return Distillation(load_pretrained(folder, dtype=dtype).to(device), settings)


def teacher_parameters(folder: Path) -> int:
    """How many numbers a rank holds of it."""
    return count_parameters(build_config(folder))
