"""Compiled decoder layers compute what written ones do, under every booster that has them, from one graph."""

import pytest

from tests.distributed import compile_cases
from tests.distributed.parity import check_all
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed

CASES = [
    (Layout("zero2", 2), {"gradient_checkpoint": True}),
    (Layout("fsdp", 2), {"selective_checkpointing": 0.5}),
]
OTHERS = [
    (hybrid(2, pp=2), {}),
    *((Layout(plugin, 2), {}) for plugin in ("zero1", "zero2", "zero2_cpu", "ddp", "fsdp_cpu")),
    (Layout("hsdp", 4, flags=(("shard_size", 2),)), {"gradient_checkpoint": True}),
    (hybrid(2, zero=1), {}),
    (hybrid(2, zero=2), {"gradient_checkpoint": True}),
    (hybrid(2, sp=2), {}),
    (hybrid(2, pp=2, pp_style="interleaved"), {"gradient_checkpoint": True}),
    (hybrid(4, pp=2, sp=2), {}),
    (Layout("hybrid_parallel_cpu", 2, pp=2), {}),
    (Layout("ddp", 2), {"norm": "rmsnorm"}),
]
ALL = [*CASES, *(pytest.param(*case, marks=pytest.mark.matrix) for case in OTHERS)]


@pytest.mark.parametrize(("layout", "flags"), ALL, ids=str)
def test_compiled_layers_equal_plain_pytorch_from_one_graph(pool, layout: Layout, flags: dict):
    """10 steps, 2 micro batches each: gradients, norms, losses and weights."""
    precision = layout.precisions[0]
    results = pool(layout.world_size).run(
        compile_cases.train, layout=layout, precision=precision, accumulation=2, **flags
    )
    check_all([result for result, _ in results], precision, **{k: v for k, v in flags.items() if k == "norm"})
    assert {graphs for _, graphs in results} == {compile_cases.Graphs(made=1, broken=0)}


@pytest.mark.matrix  # half a minute and more, which the C++ compiler takes
def test_compiled_code_equals_plain_pytorch(pool):
    """With the back end that writes code, recomputing half of the layers."""
    layout = Layout("zero2", 2)
    results = pool(2).run(
        compile_cases.train, layout=layout, precision="fp32", backend="inductor", selective_checkpointing=0.5
    )
    check_all([result for result, _ in results], "fp32")


@pytest.mark.parametrize(
    ("layout", "recompute"),
    [
        pytest.param(Layout("zero2", 1), False, marks=pytest.mark.matrix),
        (Layout("zero2", 1), True),
        pytest.param(hybrid(2, pp=2), True, marks=pytest.mark.matrix),
    ],
    ids=str,
)
def test_no_graph_is_made_after_warm_up_whatever_a_step_is(pool, layout: Layout, recompute: bool):
    """Training, documents apart (with a mask), evaluation and probes take turns; plain layers give the same numbers."""
    flags = {"gradient_checkpoint": True} if recompute else {}
    for course in pool(layout.world_size).run(compile_cases.every_kind_of_step, layout=layout, **flags):
        # Training and evaluation, each without a mask and with one; where transformers lets the embedding's output ask
        # for a gradient, in evaluation too, the first layer has a graph of its own there.
        evaluations = 4 if recompute and layout.pp == 1 else 2
        assert course.graphs["warm-up"] == compile_cases.Graphs(made=2 + evaluations, broken=0)
        assert course.graphs["end"] == course.graphs["warm-up"]
        compiled, written = course.losses
        assert len(compiled) == 14
        assert compiled == pytest.approx(written, rel=1e-5)
        assert course.shares[0].keys() == course.shares[1].keys()
        assert len(course.shares[0]) > 0
        assert course.names[0] == course.names[1]


@pytest.mark.parametrize("compile_layers", [False, True])
def test_plain_causal_attention_makes_no_mask_and_expands_no_keys(pool, compile_layers: bool):
    """4 query heads share 2 key heads; each layer attends in a step and in an evaluation."""
    (seen,) = pool(1).run(compile_cases.masks_made, layout=Layout("zero2", 1), compile_layers=compile_layers)
    assert set(seen) == {(True, False, 4, 2)}
    assert len(seen) >= (2 if compile_layers else 4)  # a graph is traced once for all layers
