"""A checkpoint of experts that are spread goes on, from its files, under any other layout, and the other way round.

Weights and moments arrive to the last bit, and losses are those of the run that was never moved.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from llama_dyt.models.mixtral import MixtralDytForCausalLM
from tests.distributed import moving_cases, small_run
from tests.distributed.expert_cases import FAMILY
from tests.distributed.moving_cases import Leg, all_tensors
from tests.distributed.small_run import Layout, hybrid, micro_batch_rows, spread

pytestmark = pytest.mark.distributed

STEPS = (2, 3)
"""Before the checkpoint and after it."""
LAYOUTS = {
    str(layout): layout
    for layout in (
        spread("ddp", 2, ep=2),
        Layout("zero1", 2),
        spread("fsdp", 2, ep=2),
        Layout("ddp", 1),
        hybrid(4, tp=2, ep=2),
        spread("zero2", 4, ep=4),
        Layout("fsdp", 2),
        hybrid(4, pp=2, ep=2),
    )
}
EVERY_TIME = {("ddp-ep2-2ranks", "fsdp-ep2-2ranks"), ("ddp-ep2-2ranks", "hybrid_parallel-tp2-zero0-ep2-4ranks")}
PAIRS = [
    pair if pair in EVERY_TIME else pytest.param(*pair, marks=pytest.mark.matrix)
    for pair in ((source, target) for source in LAYOUTS for target in LAYOUTS if source != target)
]

Saved = Callable[[str, int], tuple[Path, list[Leg]]]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return small_run.write_counting(tmp_path_factory.mktemp("text") / "text.jsonl", 100)


@pytest.fixture(scope="module")
def saved(pool, tmp_path_factory, text) -> Saved:
    """Layout and micro batches a step → its checkpoint, and how its own run went on; each made when first asked for."""
    runs: dict[tuple[str, int], tuple[Path, list[Leg]]] = {}

    def of(name: str, accumulation: int) -> tuple[Path, list[Leg]]:
        if (name, accumulation) not in runs:
            layout, folder = LAYOUTS[name], tmp_path_factory.mktemp(name)
            legs = pool(layout.world_size).run(
                moving_cases.save,
                layout=layout,
                text=text,
                folder=str(folder),
                steps=STEPS,
                accumulation=accumulation,
                family=FAMILY,
            )
            runs[name, accumulation] = (folder / f"step_{STEPS[0]:08d}", legs)
        return runs[name, accumulation]

    return of


def accumulations(source: Layout, target: Layout) -> tuple[int, int]:
    """Micro batches a step that each is told to have: as many as the other's pipeline sends by itself."""
    if source.pp == target.pp:
        return 1, 1
    return tuple(1 if layout.pp > 1 else 2 for layout in (source, target))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_experts_go_on_under_another_layout(pool, saved, text, source: str, target: str):
    """The first loss is one of weights alone; those after it depend on which rows are balanced together."""
    layout = LAYOUTS[target]
    first, second = accumulations(LAYOUTS[source], layout)
    path, straight = saved(source, first)
    moved = pool(layout.world_size).run(
        moving_cases.load,
        layout=layout,
        text=text,
        path=str(path),
        num_steps=STEPS[1],
        accumulation=second,
        family=FAMILY,
    )
    expected, arrived = all_tensors(straight), all_tensors(moved)
    assert expected.keys() == arrived.keys()
    assert {name.split(".")[0] for name in arrived} == {"param", "exp_avg", "exp_avg_sq"}
    for name, tensor in expected.items():
        assert torch.equal(tensor, arrived[name]), name
    assert moved[0].lrs == straight[0].lrs
    alike = set(micro_batch_rows(LAYOUTS[source], first)) == set(micro_batch_rows(layout, second))
    compared = STEPS[1] if alike else 1
    np.testing.assert_allclose(moved[0].losses[:compared], straight[0].losses[:compared], rtol=0, atol=1e-4)


def test_its_files_have_whole_experts_and_one_process_reads_them_as_an_ordinary_model(saved):
    path, straight = saved("ddp-ep2-2ranks", 1)
    tensors = all_tensors(straight)
    model = MixtralDytForCausalLM.from_pretrained(path / "model")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, tensors[f"param.{name}"]), name
    shapes = {}
    for file in sorted((path / "optimizer").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    of_experts = {tuple(shape) for name, shape in shapes.items() if "gate_up_proj" in name}
    assert of_experts == {(4, 192, 48)}
