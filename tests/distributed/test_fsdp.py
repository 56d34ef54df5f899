"""What the fsdp plugins hold, gather and hold back; that they train as one process does is `test_parity.py`'s."""

import pytest
import torch

from tests.distributed import fsdp_cases
from tests.distributed.small_run import VOCAB_SIZE, Layout

pytestmark = pytest.mark.distributed

HSDP = Layout("hsdp", 4, flags=(("shard_size", 2),))


@pytest.mark.parametrize(
    ("layout", "precision", "working"),
    [
        (Layout("fsdp", 2), "fp32", torch.float32),
        (Layout("fsdp", 2), "bf16", torch.bfloat16),
        (Layout("fsdp_cpu", 2), "fp32", torch.float32),
        (HSDP, "fp32", torch.float32),
    ],
    ids=str,
)
def test_shards_are_fp32_rows_and_what_computes_is_gathered(pool, layout: Layout, precision: str, working: torch.dtype):
    ranks = pool(layout.world_size).run(fsdp_cases.look_inside, layout=layout, precision=precision)
    shapes = fsdp_cases.small_run_shapes()
    for rank, inside in enumerate(ranks):
        first = rank % 2 == 0
        assert inside.rows["model.embed_tokens.weight"] == (49 if first else VOCAB_SIZE - 49)
        assert inside.rows["model.norm.alpha"] == (1 if first else 0)
        assert inside.shard_dtypes == {torch.float32}
        assert inside.gathered_dtypes == inside.hidden_dtypes == {working}
        assert inside.optimized
        assert inside.moved == {name for name in shapes if inside.rows[name]}
        # Whole gradients of every micro batch would take the memory that sharding is there to save.
        assert inside.reduced == [layout is not HSDP, True]
    for name, shape in shapes.items():
        assert ranks[0].rows[name] + ranks[1].rows[name] == shape[0], name


def test_new_weights_replace_those_a_forward_pass_left_gathered(pool):
    assert all(pool(2).run(fsdp_cases.state_after_a_forward_pass, layout=Layout("fsdp", 2)))
