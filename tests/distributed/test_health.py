"""A rank that is not as the others is found and named, under any booster."""

import re
import socket

import pytest

from tests.distributed import health_cases
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "layout",
    [
        Layout("fsdp", 2),
        *(pytest.param(one, marks=pytest.mark.matrix) for one in (Layout("zero2", 2), Layout("gemini", 2), hybrid(2))),
    ],
    ids=str,
)
def test_a_rank_that_waits_for_its_data_is_named(pool, layout: Layout):
    results = pool(2).run(health_cases.slow_data, layout=layout, seconds=0.4, num_steps=6)
    for told, figures in results:
        (line,) = [line for line in told if "rank 1" in line]
        assert re.search(
            r"is slow: a layer .*x the median, data wait (0\.[4-9]|[1-9]).* in [3-6] records in a row", line
        )
        assert figures["slowest_rank"] == 1 and figures["slowest_rank_factor"] > 1.5
        assert figures["data_wait_most"] >= 0.4


FLIPS = [
    # what is flipped, the ranks that hold another one, the ranks that they are compared with
    (Layout("zero2", 2), "bf16", "model.layers.1.mlp.up_proj.weight", "rank 1", "rank 0"),
    (hybrid(2, tp=2), "bf16", "model.layers.1.input_layernorm", "rank 1", "rank 0"),
    *(
        pytest.param(*one, marks=pytest.mark.matrix)
        for one in (
            (Layout("ddp", 2), "bf16", "exp_avg_sq of model.layers.0", "rank 1", "rank 0"),
            (Layout("zero1", 2), "bf16", "model.norm.alpha", "rank 1", "rank 0"),
            (Layout("ddp", 2), "fp32", "model.embed_tokens.weight", "rank 1", "rank 0"),
            (Layout("zero2_cpu", 2), "fp16", "model.embed_tokens.weight", "rank 1", "rank 0"),
            (Layout("hsdp", 4, flags=(("shard_size", 2),)), "bf16", "exp_avg of model.layers.1", "rank 3", "rank 1"),
            (Layout("gemini", 4, flags=(("extra_dp", 2),)), "bf16", "model.layers.1", "rank 3", "rank 2"),
            (hybrid(4, tp=2, zero=1), "bf16", "master of model.norm", "rank 3", "rank 2"),
            (hybrid(4, tp=2, pp=2), "bf16", "model.norm.weight", "rank 3", "rank 2"),
            (hybrid(4, pp=2, zero=1), "bf16", "model.layers.1", "rank 3", "rank 1"),
            (hybrid(2, sp=2), "fp32", "model.norm", "rank 1", "rank 0"),
        )
    ),
]


@pytest.mark.parametrize(("layout", "precision", "what", "odd", "even"), FLIPS, ids=str)
def test_a_flipped_bit_is_found_named_and_never_saved(pool, tmp_path, layout, precision, what, odd, even):
    results = pool(layout.world_size).run(
        health_cases.flipped_bit, layout=layout, precision=precision, folder=str(tmp_path), what=what
    )
    for compared, before, told, saved in results:
        assert compared > 5
        assert before == ""
        place = re.escape(f"{odd} (host {socket.gethostname()})")
        assert re.search(rf"after step 3 {place} holds another {re.escape(what)}\S* than {even}", told), told
        assert "begin again (no checkpoint was written)" in told
        assert saved == []


@pytest.mark.parametrize(
    "layout", [Layout("fsdp", 2), pytest.param(Layout("gemini", 2), marks=pytest.mark.matrix)], ids=str
)
def test_where_every_weight_is_on_one_rank_alone_there_is_nothing_to_compare(pool, layout):
    for shared, tensors in pool(2).run(health_cases.nothing_to_compare, layout=layout):
        assert not shared and tensors > 5


ROLLBACKS = [
    (Layout("zero2", 2), "bf16", True),
    *(
        pytest.param(layout, precision, False, marks=pytest.mark.matrix)
        for layout in (
            Layout("ddp", 2),
            Layout("zero1", 2),
            Layout("zero2_cpu", 2),
            Layout("gemini", 2),
            Layout("gemini_auto", 2),
            Layout("fsdp", 2),
            Layout("fsdp_cpu", 2),
            hybrid(2, tp=2),
            hybrid(2, pp=2),
            hybrid(2, zero=1),
        )
        for precision in ("bf16", "fp16")
    ),
]


@pytest.mark.parametrize(("layout", "precision", "late"), ROLLBACKS, ids=str)
def test_a_run_goes_back_from_a_spike_and_on_with_the_data_after_it(pool, tmp_path, layout, precision, late):
    """To the last bit as one that was resumed from the same checkpoint with these data; and only as often as asked."""
    results = pool(layout.world_size).run(
        health_cases.rolled_back, layout=layout, precision=precision, folder=str(tmp_path), late=late
    )
    for told, counts, different in results:
        assert different == []
        left_out = 4 if late else 3  # a spike is known a step later
        assert counts == {"rollbacks": 1, "skipped_batches": left_out, "skipped_tokens": left_out * 8 * 24}
        about = [line for line in told if "spike" in line or "batches" in line]
        assert re.search(r"step 7: loss .* is a spike: the median of 6 steps before is", about[0])
        data = f"the {left_out} batches of steps 5 to {4 + left_out} ({left_out * 192:,} tokens) are left out"
        assert f"back to {tmp_path}/step_00000004: {data} (time 1 of at most 1)" in about[1]
        assert any("went back 1 times already (--rollback_on_spike 1), the run goes on" in line for line in told)
