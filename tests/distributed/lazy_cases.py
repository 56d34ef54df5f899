"""What the processes of `test_lazy.py` run: a model is boosted, and what it reads of the whole tensors is counted."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.models import InitialWeights, empty_model
from llama_dyt.training.optimizer import parameter_groups
from tests.distributed import small_run
from tests.distributed.small_run import Layout


class _Counted:
    def __init__(self, name: str, tensor: Any, read: Counter[str]) -> None:
        self._name, self._tensor, self._read = name, tensor, read

    def __getitem__(self, index: Any) -> Any:
        part = self._tensor[index]
        self._read[self._name] += part.numel()
        return part


def elements_read(layout: Layout, precision: str) -> tuple[dict[str, int], dict[str, int]]:
    """Parameter → numbers this rank asked for to start, and → numbers it has altogether in the whole model."""
    run = small_run.run_config(layout, precision)
    model = empty_model(small_run.model_config())
    assert all(parameter.is_meta for parameter in model.parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    initial, read = InitialWeights(shapes, model.config, small_run.SEED), Counter()

    def counted(name: str) -> dict[str, Any]:
        return {key: _Counted(name, tensor, read) for key, tensor in initial.read(name).items()}

    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    boosted = Boosted(run, model, groups, counted)
    assert not any(parameter.is_meta for parameter in boosted.module.parameters())
    return dict(read), {name: math.prod(shape) for name, shape in shapes.items()}
