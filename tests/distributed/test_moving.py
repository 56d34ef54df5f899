"""A checkpoint of any layout goes on under any other: a ring through seven layouts, and under the matrix every pair.

Weights and moments arrive to the last bit, the text goes on with the very next row, and the next ten losses are
those of the run that was never moved.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from llama_dyt.models import LlamaDytForCausalLM
from tests.distributed import moving_cases, small_run
from tests.distributed.moving_cases import SAVE_AT, STEPS_AFTER, Leg, all_tensors
from tests.distributed.small_run import GLOBAL_ROWS, Layout, hybrid

pytestmark = pytest.mark.distributed

LAYOUTS = {
    str(layout): layout
    for layout in (
        Layout("zero2", 2),
        Layout("gemini", 2),
        hybrid(2, tp=2),
        hybrid(2, pp=2),
        hybrid(4, tp=2, pp=2),
        Layout("fsdp", 2),
        hybrid(1),
    )
}
LOSSES = {"fp32": 1e-4, "bf16": 2e-2}
"""By the coarser precision of the two layouts; as in the parity test."""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return small_run.write_counting(tmp_path_factory.mktemp("text") / "text.jsonl", 300)


@pytest.fixture(scope="module")
def saved(pool, tmp_path_factory, text) -> dict[str, tuple[Path, list[Leg]]]:
    """Layout → its checkpoint, and how its own run went on."""
    runs = {}
    for name, layout in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(name)
        legs = pool(layout.world_size).run(moving_cases.save, layout=layout, text=text, folder=str(folder))
        runs[name] = (folder / f"step_{SAVE_AT:08d}", legs)
    return runs


def global_batches(legs: list[Leg]) -> list[torch.Tensor]:
    """Every step's rows in their order, put together from the data-parallel ranks; those of one rank agree."""
    by_rank: dict[int, list[torch.Tensor]] = {}
    for leg in legs:
        for first, again in zip(by_rank.setdefault(leg.dp_rank, leg.rows), leg.rows, strict=True):
            assert torch.equal(first, again)
    return [torch.cat([by_rank[rank][step] for rank in sorted(by_rank)]) for step in range(STEPS_AFTER)]


def ring() -> list:
    """Each layout goes on from the one before it, so that every one is left once and entered once."""
    names = list(LAYOUTS)
    pairs = [(source, target) for target in names for source in names]
    around = set(zip(names, [*names[1:], names[0]]))
    return [pair if pair in around else pytest.param(*pair, marks=pytest.mark.matrix) for pair in pairs]


@pytest.mark.parametrize(("source", "target"), ring())
def test_a_checkpoint_goes_on_under_another_layout(pool, saved, text, source: str, target: str):
    layout = LAYOUTS[target]
    path, straight = saved[source]
    moved = pool(layout.world_size).run(moving_cases.load, layout=layout, text=text, path=str(path))
    expected, arrived = all_tensors(straight), all_tensors(moved)
    assert expected.keys() == arrived.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, arrived[name]), name
    for step, (rows, again) in enumerate(zip(global_batches(straight), global_batches(moved), strict=True)):
        assert rows.shape[0] == GLOBAL_ROWS
        assert torch.equal(rows, again), step
    assert moved[0].num_label_tokens == straight[0].num_label_tokens
    assert moved[0].lrs == straight[0].lrs
    precisions = {layout.precisions[0], LAYOUTS[source].precisions[0]}
    bound = LOSSES["bf16" if "bf16" in precisions else "fp32"]
    np.testing.assert_allclose(moved[0].losses, straight[0].losses, rtol=0, atol=bound)


def test_the_ten_losses_fall_by_more_than_the_bound_forgives(saved):
    for name, (_, straight) in saved.items():
        losses = straight[0].losses
        assert losses[0] - losses[-1] > 20 * LOSSES["bf16"], name


def test_one_process_loads_each_as_an_ordinary_model(saved):
    for path, straight in saved.values():
        model = LlamaDytForCausalLM.from_pretrained(path / "model")
        expected = all_tensors(straight)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, expected[f"param.{name}"]), name
        assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape == (1, 7)
