"""Norms that become Dynamic Tanh by a schedule: the same steps under every strategy, and gone on with exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_dyt.models.build import norm_sites
from tests.distributed import small_run
from tests.distributed.small_run import Layout, hybrid
from tests.distributed.training_cases import Trace, finish, follow, open_batches, start

pytestmark = pytest.mark.distributed

LAYOUTS = [
    Layout("zero2", 2),
    *(
        pytest.param(layout, marks=pytest.mark.matrix)
        for layout in (
            *(Layout("ddp", 2), Layout("zero1", 2), Layout("fsdp", 2), Layout("gemini", 2), hybrid(2, tp=2)),
            *(hybrid(2, pp=2), hybrid(2, tp=2, sp_mode="split_gather")),
        )
    ),
]
FLAGS = {"taper_steps": 5, "taper_start": 1}
SAVED, TOTAL = 3, 7


def tapered(layout: Layout, folder: str, precision: str = "fp32") -> tuple[Trace, Trace, list[float], list[float]]:
    """Some steps, and those after a save again in a run that began with other weights; and the gates of a rank's norms
    at the save and at the end."""
    run = small_run.run_config(layout, precision, **FLAGS)
    straight, resumed = Trace(), Trace()

    def go(trainer, steps, trace, number):
        for _ in range(number):
            trainer.callbacks.before_step(trainer, trainer.progress.step + 1)
            follow(trainer, steps, trace, 1)
        return [layer.gate.item() for _, layer in norm_sites(trainer.boosted.module)]

    trainer = start(run, Path(folder), norm="tapered")
    with open_batches(trainer, None) as batches:
        steps = iter(batches)
        saved_gates = go(trainer, steps, straight, SAVED)
        trainer.save()
        gates = go(trainer, steps, straight, TOTAL - SAVED)
    path = trainer.checkpointing.writer.last_path
    finish(trainer, straight)
    trainer = start(run.replace(seed=small_run.SEED + 1), resume_from=path, norm="tapered")
    with open_batches(trainer, None) as batches:
        go(trainer, iter(batches), resumed, TOTAL - SAVED)
    return straight, finish(trainer, resumed), saved_gates, gates


@pytest.fixture(scope="module")
def alone(pool, tmp_path_factory) -> Trace:
    """One process, which has nothing to agree on with others."""
    (result,) = pool(1).run(tapered, layout=Layout("ddp", 1), folder=str(tmp_path_factory.mktemp("a")))
    return result[0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_takes_the_same_steps(layout, pool, alone, tmp_path):
    precision = layout.precisions[0]
    results = pool(layout.world_size).run(tapered, layout=layout, folder=str(tmp_path), precision=precision)
    near = 1e-5 if precision == "fp32" else 2e-2
    for straight, resumed, saved_gates, gates in results:
        assert saved_gates == pytest.approx([1.0, 0.8, 0.2, 0.0, 0.0], abs=0.21) and 0 < saved_gates[1] < 1
        assert gates == [1.0] * 5
        assert straight.losses == pytest.approx(alone.losses, rel=near)
        assert resumed.losses == straight.losses[SAVED:]
        assert resumed.grad_norms == straight.grad_norms[SAVED:]
    straight, resumed, saved_gates, _ = results[0]
    assert straight.tensors.keys() == resumed.tensors.keys()
    assert straight.tensors and all(tensor.equal(resumed.tensors[name]) for name, tensor in straight.tensors.items())
    config = json.loads(next(tmp_path.glob("step_*/model/config.json")).read_text())
    assert config["taper_gates"] == pytest.approx(saved_gates)
