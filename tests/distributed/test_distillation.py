"""A teacher beside the text: the same steps under every strategy that can, and gone on with exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_dyt.models import build_model
from tests.distributed import small_run
from tests.distributed.small_run import Layout, hybrid
from tests.distributed.training_cases import Trace, finish, follow, open_batches, start

pytestmark = pytest.mark.distributed

LAYOUTS = [Layout("ddp", 2), Layout("zero1", 2), Layout("zero2", 2), Layout("fsdp", 2), hybrid(2, zero=0)]
FLAGS = {"distill_weight": 0.6, "distill_temperature": 2.0, "distill_hidden_weight": 0.5}
SAVED, TOTAL = 2, 4


def taught(layout: Layout, folder: str, teacher: str | None) -> tuple[Trace, Trace]:
    """Some steps, and those after a save again in a run that began with other weights."""
    flags: dict[str, Any] = {"distill_from": teacher, **FLAGS} if teacher is not None else {}
    run = small_run.run_config(layout, "fp32", **flags)
    teacher_folder = Path(teacher) if teacher is not None else None
    straight, resumed = Trace(), Trace()
    trainer = start(run, Path(folder), teacher=teacher_folder)
    with open_batches(trainer, None) as batches:
        steps = iter(batches)
        follow(trainer, steps, straight, SAVED)
        trainer.save()
        follow(trainer, steps, straight, TOTAL - SAVED)
    path = trainer.checkpointing.writer.last_path
    finish(trainer, straight)
    trainer = start(run.replace(seed=small_run.SEED + 1), resume_from=path, teacher=teacher_folder)
    with open_batches(trainer, None) as batches:
        follow(trainer, iter(batches), resumed, TOTAL - SAVED)
    return straight, finish(trainer, resumed)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    build_model(small_run.model_config(num_layers=2, norm="rmsnorm"), seed=5).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def alone(pool, teacher, tmp_path_factory) -> Trace:
    """One process, which has nothing to agree on with others."""
    (result,) = pool(1).run(taught, layout=Layout("ddp", 1), folder=str(tmp_path_factory.mktemp("a")), teacher=teacher)
    return result[0]


def test_a_teacher_is_learned_from(pool, alone, tmp_path):
    ((untaught, _),) = pool(1).run(taught, layout=Layout("ddp", 1), folder=str(tmp_path), teacher=None)
    assert untaught.losses[0] == alone.losses[0]  # what is logged stays the cross entropy
    assert untaught.grad_norms[0] != pytest.approx(alone.grad_norms[0], rel=1e-2)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_takes_the_same_steps(layout, pool, alone, teacher, tmp_path):
    results = pool(layout.world_size).run(taught, layout=layout, folder=str(tmp_path), teacher=teacher)
    for straight, resumed in results:
        assert straight.losses == pytest.approx(alone.losses, rel=1e-5)
        assert straight.grad_norms == pytest.approx(alone.grad_norms, rel=1e-4)
        assert resumed.losses == straight.losses[SAVED:]
        assert resumed.grad_norms == straight.grad_norms[SAVED:]
    straight, resumed = results[0]
    assert straight.tensors.keys() == resumed.tensors.keys()
    assert straight.tensors and all(tensor.equal(resumed.tensors[name]) for name, tensor in straight.tensors.items())
