"""What `--dry_run` says a rank will hold of the model is what it holds."""

import pytest

from llama_dyt.training.memory import estimate_memory
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
@pytest.mark.parametrize("accumulation", [1, 2])
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
