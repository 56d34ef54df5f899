"""An adapter trains under every plugin and layout as peft trains it in one process, and nothing else moves."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed import adapter_cases, small_run
from tests.distributed.adapter_cases import KINDS, SAVE_AT, Adapted
from tests.distributed.reference import distance
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed

TP = hybrid(2, tp=2)
LAYOUTS = [
    Layout("ddp", 2),
    Layout("zero1", 2),
    Layout("zero2", 2),
    Layout("zero2_cpu", 2),
    Layout("fsdp", 2),
    Layout("fsdp_cpu", 2),
    Layout("hsdp", 4, flags=(("shard_size", 2),)),
    TP,
    hybrid(2, tp=2, sp_mode="split_gather"),
    hybrid(2, sp=2),
    hybrid(2, pp=2),
    hybrid(4, tp=2, pp=2),
    hybrid(2, pp=2, pp_style="interleaved"),
]
EVERY_TIME = {
    (Layout("ddp", 2), "linears"),
    (Layout("zero2", 2), "DoRA everywhere, norms too"),
    (Layout("fsdp", 2), "DoRA everywhere, norms too"),
    (TP, "DoRA everywhere, norms too"),
    (hybrid(2, tp=2, sp_mode="split_gather"), "DoRA everywhere, norms too"),
    (hybrid(4, tp=2, pp=2), "linears"),
    (TP, "phi_2"),
}
CASES = [
    pytest.param(layout, kind, marks=[] if (layout, kind) in EVERY_TIME else [pytest.mark.matrix])
    for layout in LAYOUTS
    for kind in KINDS
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(folder of peft's adapter, what peft made of it), by kind."""

    @cache
    def of(kind: str, layers: int) -> tuple[Path, Adapted]:
        folder = tmp_path_factory.mktemp("adapter")
        return folder, adapter_cases.train_with_peft(kind, folder, layers)

    return of


def whole(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: tensor for part in parts for name, tensor in part.items()}


@pytest.mark.parametrize(("layout", "kind"), CASES, ids=str)
def test_an_adapter_trains_as_peft_trains_it(pool, reference, layout: Layout, kind: str):
    check_as_peft(pool, reference, layout, kind)


WAYS = [
    *((layout, {"gradient_checkpoint": True}) for layout in (Layout("fsdp", 2), TP, hybrid(4, tp=2, pp=2))),
    *((layout, {"compile": True}) for layout in (Layout("ddp", 2), Layout("fsdp", 2))),
    *((layout, {"accumulation": 2}) for layout in (Layout("zero1", 2), Layout("fsdp", 2), TP)),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("layout", "way"), WAYS, ids=str)
def test_so_it_does_recomputing_compiled_and_in_micro_batches(pool, reference, layout: Layout, way: dict):
    check_as_peft(pool, reference, layout, "DoRA everywhere, norms too" if layout.pp == 1 else "linears", **way)


def check_as_peft(pool, reference, layout: Layout, kind: str, **way):
    folder, expected = reference(kind, adapter_cases.num_layers(layout))
    precision = "fp32" if "fp32" in layout.precisions else "bf16"
    results = pool(layout.world_size).run(
        adapter_cases.train,
        layout=layout,
        precision=precision,
        folder=str(folder),
        kind=kind,
        **way,
    )
    gradients = whole([result.gradients for result in results])
    weights = whole([result.weights for result in results])
    assert gradients.keys() == weights.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        # An alpha's is a sum that nearly cancels.
        assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name
    np.testing.assert_allclose(results[0].grad_norms, expected.grad_norms, rtol=1e-5)
    np.testing.assert_allclose(results[0].losses, expected.losses, rtol=0, atol=1e-5)
    for name, weight in expected.weights.items():
        assert distance(weights[name], weight) < 1e-4, name
    for result in results:
        before, after = result.frozen
        assert before == after
        assert before


RESUMED = [
    (Layout("zero2", 2), "fp16"),
    (Layout("fsdp", 2), "bf16"),
    (hybrid(4, tp=2, pp=2), "fp32"),
    *(
        pytest.param(layout, precision, marks=pytest.mark.matrix)
        for layout in (*LAYOUTS, hybrid(4, tp=2, zero=1), Layout("hybrid_parallel_cpu", 2, tp=2))
        for precision in layout.precisions
    ),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of the small model's weights, by its number of layers."""

    @cache
    def of(layers: int) -> str:
        folder = tmp_path_factory.mktemp("base")
        small_run.small_model(num_layers=layers).save_pretrained(folder)
        return str(folder)

    return of


@pytest.mark.parametrize(("layout", "precision"), RESUMED, ids=str)
def test_an_adapter_saved_and_resumed_is_the_one_that_never_ended(pool, base, tmp_path, layout: Layout, precision: str):
    arguments = {"base": base(adapter_cases.num_layers(layout)), "folder": str(tmp_path)}
    results = pool(layout.world_size).run(adapter_cases.resume, layout=layout, precision=precision, **arguments)
    for straight, resumed, _ in results:
        assert not all(straight.skipped), "nothing was learned"
        for name in ("losses", "lrs", "grad_norms", "skipped", "loss_scales", "draws"):
            assert getattr(straight, name)[SAVE_AT:] == getattr(resumed, name), name
        assert straight.optimizer_steps == resumed.optimizer_steps
        assert straight.scaler == resumed.scaler
        assert straight.progress == resumed.progress
        assert straight.tensors.keys() == resumed.tensors.keys()
        for name, tensor in straight.tensors.items():
            assert torch.equal(tensor, resumed.tensors[name]), name
    names = {name for straight, _, _ in results for name in straight.tensors}
    assert {name.split(".")[0] for name in names} == {"param", "exp_avg", "exp_avg_sq"}
    assert all("lora_" in name or "norm" in name for name in names)
    if layout.tp > 1:  # dropout and sums over ranks leave what all of a group hold alike
        stages = [alike for _, _, alike in results]
        for alike in stages:
            assert sum(other == alike for other in stages) % layout.tp == 0


def test_an_adapters_checkpoint_goes_on_under_another_layout(pool, base, tmp_path):
    source, targets = hybrid(2, tp=2), (Layout("fsdp", 2), Layout("zero2", 2))
    arguments = {"base": base(2), "folder": str(tmp_path)}
    pool(2).run(adapter_cases.resume, layout=source, precision="fp32", **arguments)
    path = tmp_path / f"step_{SAVE_AT:08d}"
    assert sorted(entry.name for entry in path.iterdir() if entry.is_dir()) == ["adapter", "optimizer"]
    arrived = [
        whole(pool(2).run(adapter_cases.load, layout=layout, precision="fp32", base=base(2), path=str(path)))
        for layout in (source, *targets)
    ]
    for tensors in arrived[1:]:
        assert tensors.keys() == arrived[0].keys()
        for name, tensor in arrived[0].items():
            assert torch.equal(tensor, tensors[name]), name


MEASURED = [
    (Layout("fsdp", 2), "bf16"),
    (hybrid(2, tp=2), "fp32"),
    *(
        pytest.param(layout, precision, marks=pytest.mark.matrix)
        for layout in LAYOUTS
        for precision in layout.precisions
        if precision != "fp16"  # its first step may overflow, and leave no moments
    ),
]


@pytest.mark.parametrize(("layout", "precision"), MEASURED, ids=str)
def test_an_adapters_states_are_estimated_and_the_frozen_have_none(pool, base, layout: Layout, precision: str):
    folder = base(adapter_cases.num_layers(layout))
    measured = pool(layout.world_size).run(adapter_cases.model_states, layout=layout, precision=precision, base=folder)
    of_stages = adapter_cases.estimated(layout, precision)
    for what in ("parameters", "gradients", "optimizer"):
        expected = max(getattr(estimate, what) for estimate in of_stages)
        if not expected and of_stages[0].host:
            continue
        assert max(rank[what] for rank in measured) == pytest.approx(expected, rel=0.1), what
    weights = max(estimate.parameters + estimate.host for estimate in of_stages)
    assert max(rank["gradients"] for rank in measured) < 0.4 * weights
