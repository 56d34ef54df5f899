"""What `--dry_run` says a rank will hold of the model is what it holds."""

import pytest

from llama_dyt.training.sizing.memory import estimate_memory
from tests.distributed import memory_cases, small_run
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        (Layout("ddp", 2), "bf16"),
        (Layout("zero1", 2), "bf16"),
        (Layout("zero2", 1), "fp32"),
        (Layout("zero2", 2), "fp32"),
        (Layout("zero2", 2), "bf16"),
        (Layout("zero1", 2, flags=(("fp32_gradients", True),)), "bf16"),
        (Layout("zero2", 2, flags=(("fp32_gradients", True),)), "bf16"),
        (Layout("zero2_cpu", 2), "bf16"),
        (Layout("gemini", 2), "bf16"),
        (Layout("gemini", 2, tp=2), "bf16"),
        (Layout("fsdp", 2), "bf16"),
        (Layout("fsdp_cpu", 2), "bf16"),
        (Layout("hsdp", 4, flags=(("shard_size", 2),)), "fp32"),
        (hybrid(2, tp=2), "fp32"),
        (hybrid(2, pp=2), "bf16"),
        (hybrid(2, pp=2, pp_style="zbv"), "bf16"),
        (hybrid(2, sp=2, zero=1), "bf16"),
        (hybrid(4, tp=2, pp=2, zero=1), "bf16"),
        (Layout("hybrid_parallel_cpu", 2, tp=2), "bf16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.matrix), 2])
def test_model_states_are_estimated_within_ten_percent(pool, layout: Layout, precision: str, accumulation: int):
    run = small_run.run_config(layout, precision, accumulation)
    # Of a smaller model a tenth of Gemini's chunks would be empty; of a large one hardly anything is.
    num_layers = 8 if layout.plugin == "gemini" else 4
    estimates = estimate_memory(run, small_run.model_config(num_layers=num_layers), layout.world_size)
    measured = pool(layout.world_size).run(
        memory_cases.model_states, layout=layout, precision=precision, accumulation=accumulation, num_layers=num_layers
    )
    # Ranks of one stage hold equally much, but for rounding; of the stages the heaviest is compared.
    for what in ("parameters", "gradients", "optimizer"):
        held = max(rank[what] for rank in measured)
        estimated = max(getattr(estimate, what) for estimate in estimates)
        if not estimated and estimates[0].host:
            continue
        assert held == pytest.approx(estimated, rel=0.1), what
    if estimates[0].host:
        on_host = max(rank["optimizer"] for rank in measured)
        shards = layout.plugin == "fsdp_cpu"
        if shards:
            on_host += max(rank["parameters"] + rank["gradients"] for rank in measured)
        assert on_host == pytest.approx(max(estimate.host for estimate in estimates), rel=0.1)


GATHERED = [
    Layout("ddp", 2),
    Layout("zero2", 2),
    Layout("fsdp", 2),
    hybrid(2, tp=2),
    Layout("gemini", 2),
    Layout("gemini", 2, tp=2),
]


@pytest.fixture(scope="module")
def gathering(pool) -> list[list[dict[str, float]]]:
    """Of the writer and of the other rank, what gathering a checkpoint takes under each of GATHERED."""
    return pool(2).run(memory_cases.gathering, layouts=GATHERED, precision="bf16")


def test_only_the_writer_keeps_whole_tensors_while_a_checkpoint_is_gathered(gathering):
    writer, other = gathering
    for layout, grown in zip(GATHERED, other):
        # Parts on their way to the writer: under Gemini this rank's half of all three tensors of a table, 61 MB, and
        # as many of their messages as are under way at once, which may be all. Whole tables would be 120 MB more.
        assert grown["megabytes"] < (130 if layout.plugin == "gemini" else 35), layout
    assert min(grown["megabytes"] for grown in writer) > 40, "whole tables were not gathered"


def test_gemini_gathers_a_checkpoint_by_chunks(gathering):
    for results in gathering:
        for layout, sent in zip(GATHERED, results):
            if layout.plugin == "gemini":
                # Over a tensor-parallel group one for the weights and each moment.
                assert sent["messages"] <= sent["chunks"] * (3 if layout.tp > 1 else 1)
                assert sent["messages"] < sent["parameters"]
