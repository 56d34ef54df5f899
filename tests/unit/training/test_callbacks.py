"""In which order callbacks come, and what is told where one fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import TrainingError
from llama_dyt.training.callbacks.callback import Callback, Callbacks

RUN = RunConfig.build("pretrain")
TRAINER = SimpleNamespace(progress=SimpleNamespace(step=4))


class Noting(Callback):
    """Notes each call under a name; `order` is where it comes."""

    def __init__(self, note: str, order: int, calls: list[str]) -> None:
        super().__init__(RUN)
        self.note, self.order, self.calls = note, order, calls

    def due(self, step):
        return step % 2 == 0

    def on_start(self, trainer):
        self.calls.append(f"{self.note} starts")

    def after_step(self, trainer, outcome):
        self.calls.append(f"{self.note} after {outcome.step}")

    def record(self, trainer, outcome):
        return {self.note: outcome.step}

    def on_end(self, trainer, ending):
        self.calls.append(f"{self.note} ends")


def test_they_come_by_their_order_then_as_asked_for_and_end_the_other_way():
    calls: list[str] = []
    callbacks = Callbacks([Noting("last", 80, calls), Noting("a", 50, calls), Noting("b", 50, calls)])
    callbacks.on_start(TRAINER)
    for step in (3, 4):
        callbacks.after_step(TRAINER, SimpleNamespace(step=step))
    callbacks.on_end(TRAINER, "finished")
    starts, after = ["a starts", "b starts", "last starts"], ["a after 4", "b after 4", "last after 4"]
    assert calls == [*starts, *after, "last ends", "a ends", "b ends"]


def test_what_they_add_to_a_record_is_theirs_alone():
    record = {"loss": 1.0}
    Callbacks([Noting("a", 50, [])]).record(TRAINER, SimpleNamespace(step=3), record)
    assert record == {"loss": 1.0, "a": 3}
    clash = Noting("loss", 50, [])
    clash.name = "mine"
    unwritten = SimpleNamespace(step=torch.tensor(3))
    with pytest.raises(TrainingError, match="--callback mine failed in record.*Tensor is not JSON serializable"):
        Callbacks([clash]).record(TRAINER, unwritten, {})
    with pytest.raises(TrainingError, match="--callback mine failed in record at step 3: ValueError: .*'loss' already"):
        Callbacks([clash]).record(TRAINER, SimpleNamespace(step=3), record)


def test_a_failure_of_ours_is_told_as_it_is_and_of_a_users_with_its_name():
    class Failing(Callback):
        def on_save(self, trainer, path):
            raise KeyError("gone")

    with pytest.raises(KeyError):
        Callbacks([Failing(RUN)]).on_save(TRAINER, "step_4")
    Failing.name = "mine"
    with pytest.raises(TrainingError, match="--callback mine failed in on_save at step 4: KeyError: 'gone'; mend it"):
        Callbacks([Failing(RUN)]).on_save(TRAINER, "step_4")
