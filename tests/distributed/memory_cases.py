"""What the processes of `test_memory.py` run: a step, and then the bytes that model states really take."""

from __future__ import annotations

from llama_dyt.boosters.held import held_bytes
from tests.distributed import small_run
from tests.distributed.cases import boost
from tests.distributed.small_run import Layout


def model_states(layout: Layout, precision: str, accumulation: int, num_layers: int) -> dict[str, int]:
    """Bytes this rank holds after its first step, by what `--dry_run` calls them; gradients before that step ends."""
    run = small_run.run_config(layout, precision, accumulation)
    boosted = boost(run, num_layers=num_layers)
    batches = small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size)
    boosted.forward_backward(next(batches))
    gradients = held_bytes(boosted).gradients
    boosted.optimizer_step()
    held = held_bytes(boosted)
    return {"parameters": held.weights, "gradients": gradients, "optimizer": held.optimizer_state}
