"""What the processes of `test_gemini.py` run: Gemini with its chunks sharded or whole, placed in many ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from unittest import mock

import torch

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.boosters.strategies.gemini import plugin as gemini
from llama_dyt.core.errors import TrainingError
from llama_dyt.models import empty_model
from llama_dyt.training.optimizer import parameter_groups
from tests.distributed import small_run
from tests.distributed.small_run import Layout


def boost(run, whole: bool = False) -> Boosted:
    """The small model under a run's Gemini; `whole`: in one chunk that every rank keeps, as the engine does."""
    model = empty_model(small_run.model_config())
    elements = (lambda count: 2 * count) if whole else gemini.chunk_elements
    with mock.patch.object(gemini, "chunk_elements", elements):
        boosted = Boosted(
            run, model, parameter_groups(model, small_run.WEIGHT_DECAY, decay_all=True), small_run.weights(model)
        )
    kept = {chunk.keep_gathered for chunk in chunks(boosted)}
    assert kept == {whole}, f"chunks kept whole: {kept}"
    return boosted


def chunks(boosted: Boosted) -> tuple:
    return boosted.model.chunk_manager.get_chunks(boosted.model.fp16_params)


def state_of(boosted: Boosted) -> dict[str, dict[str, torch.Tensor]]:
    """Whole state on rank 0, {} elsewhere."""
    names = list(boosted.state.sizes())
    return {name: tensors for name, tensors in boosted.state.gather(names) if tensors is not None}


def step(boosted: Boosted, batch) -> tuple[float, float | None]:
    """One optimizer step: the global batch's loss and the grad norm."""
    loss = boosted.forward_backward(batch)
    norm = boosted.optimizer_step().grad_norm
    return sum_over_ranks([loss], boosted.device)[0], norm


def _run(plugin: str, world_size: int, precision: str, accumulation: int, tp: int = 1, **flags):
    layout = Layout(plugin, world_size, tp=tp, flags=tuple(flags.items()))
    return small_run.run_config(layout, precision, accumulation)


@contextmanager
def _unmended_accumulation() -> Iterator[None]:
    from colossalai.zero.gemini.chunk import ChunkManager  # importable only after llama_dyt.boosters

    upstream = ChunkManager.rearrange_accumulated_grad_chunk.__wrapped__
    with mock.patch.object(ChunkManager, "rearrange_accumulated_grad_chunk", upstream):
        yield


def trajectory(
    world_size, precision, accumulation=1, whole=False, num_steps=small_run.NUM_STEPS, unmended=False, **flags
) -> dict:
    """First step's whole gradients, and every step's norm and loss, as `reference.Trajectory` has them."""
    boosted = boost(_run(flags.pop("plugin", "gemini"), world_size, precision, accumulation, **flags), whole)
    batches = small_run.batches(boosted.run, boosted.grid.dp_rank, boosted.grid.dp_size)
    gradients, losses, norms = {}, [], []
    for number in range(num_steps):
        batch = next(batches)
        if number == 0:
            with _unmended_accumulation() if unmended else mock.MagicMock():
                loss = boosted.forward_backward(batch)
            gradients = {name: gradient for name, gradient in boosted.state.gradients() if gradient is not None}
            norm = boosted.optimizer_step().grad_norm
            loss = sum_over_ranks([loss], boosted.device)[0]
        else:
            loss, norm = step(boosted, batch)
        losses.append(loss)
        norms.append(norm)
    return {"gradients": gradients, "losses": losses, "grad_norms": norms}


def placed(plugin, world_size, precision, num_steps=4, memory_bytes=None, **flags) -> dict:
    """A run's losses and final state, and what its placement did: share offloaded at rest, bytes evicted in steps.

    `memory_bytes`: --memory_limit, finer than in megabytes.
    """
    plan = gemini._plan_device_memory
    with mock.patch.object(gemini, "_plan_device_memory", lambda limit: plan(memory_bytes or limit)):
        boosted = boost(_run(plugin, world_size, precision, 1, **flags))
    policy = boosted.model.gemini_manager.placement_policy
    evicted = 0
    evict = policy.evict_tensors

    def counted(*args, **kwargs):
        nonlocal evicted
        volume, seconds = evict(*args, **kwargs)
        evicted += volume
        return volume, seconds

    policy.evict_tensors = counted
    batches = small_run.batches(boosted.run, boosted.grid.dp_rank, boosted.grid.dp_size)
    losses = [step(boosted, next(batches)) for _ in range(num_steps)]
    masters = [chunk.paired_chunk for chunk in chunks(boosted)]
    offloaded = sum(master.chunk_mem for master in masters if master.device_type == "cpu")
    return {
        "losses": losses,
        "state": state_of(boosted),
        "offloaded_fraction": offloaded / sum(master.chunk_mem for master in masters),
        "evicted_bytes": evicted,
    }


def too_little_memory(world_size) -> str:
    """What a step says that cannot place a single chunk."""
    try:
        placed("gemini_auto", world_size, "bf16", num_steps=1, memory_bytes=50_000)
    except TrainingError as error:
        return str(error)
    return "no error"


def resumed(world_size, precision, accumulation, whole=False, plugin="gemini", **flags) -> bool:
    """True if 3 steps + a resume + 3 steps equal 6 steps to the last bit."""
    run = _run(plugin, world_size, precision, accumulation, **flags)
    straight = boost(run, whole)
    rank, size = straight.grid.dp_rank, straight.grid.dp_size
    batches = list(islice(small_run.batches(run, rank, size), 6))
    for batch in batches[:3]:
        step(straight, batch)
    box = [(state_of(straight), straight.state.optimizer_steps(), straight.scaler.state_dict())]
    torch.distributed.broadcast_object_list(box, src=0)
    state, steps, scaler = box[0]
    expected = [step(straight, batch) for batch in batches[3:]]

    again = boost(run, whole)
    again.state.scatter(state.__getitem__)
    again.state.set_optimizer_steps(steps)
    again.scaler.load_state_dict(scaler)
    restored = state_of(again)
    got = [step(again, batch) for batch in batches[3:]]
    return (
        expected == got
        and _same(state, restored if straight.grid.is_writer else state)
        and _same(state_of(straight), state_of(again))
    )


def moved(source: Layout, target: Layout) -> bool:
    """True if another layout on the same ranks takes over the whole state, and computes the same next loss."""
    before, after = (boost(small_run.run_config(layout, "bf16")) for layout in (source, target))
    batches = small_run.batches(before.run, before.grid.dp_rank, before.grid.dp_size)
    for batch in islice(batches, 3):
        step(before, batch)
    box = [state_of(before)]
    torch.distributed.broadcast_object_list(box, src=0)
    after.state.scatter(box[0].__getitem__)
    after.state.set_optimizer_steps(before.state.optimizer_steps())
    arrived = state_of(after)
    batch = next(small_run.batches(after.run, after.grid.dp_rank, after.grid.dp_size, {"step": 3}))
    difference = abs(step(after, batch)[0] - step(before, next(batches))[0])
    return _same(box[0], arrived if after.grid.is_writer else box[0]) and difference < 2e-2


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name][key], other[name][key]) for name in one for key in one[name]
    )


def start(world_size, precision, **flags) -> bool:
    """True if the masters start as the very fp32 weights given, the working weights as these rounded, and the moments
    as zeros."""
    boosted = boost(_run("gemini", world_size, precision, 1, **flags))
    given = dict(small_run.small_model().named_parameters())
    state = state_of(boosted)
    if boosted.grid.is_writer:
        assert list(state) == list(given)
        assert all(torch.equal(state[name]["param"], given[name].detach()) for name in given)
        assert not any(state[name][moment].any() for name in given for moment in ("exp_avg", "exp_avg_sq"))
    for working, master in zip(boosted.model.fp16_params, boosted.model.fp32_params):
        chunk, pair = (boosted.model.chunk_manager.get_chunk(tensor) for tensor in (working, master))
        assert torch.equal(chunk.payload, pair.payload.to(chunk.dtype))
    return boosted.state.optimizer_steps() == 0


def held_while_boosted(world_size) -> tuple[float, float]:
    """The most that was in chunks at any time of the boosting, and what is in them after it, as shares of all weights
    and masters."""
    from colossalai.zero.gemini.chunk import ChunkManager  # importable only after llama_dyt.boosters

    register, preprocess = ChunkManager.register_tensor, gemini.ChunkedModel._preprocess_param
    total = sum(parameter.numel() for parameter in small_run.small_model().parameters()) * (2 + 4)
    most, loose = 0.0, 0

    def look_at_parameter(self, parameter):
        nonlocal loose
        preprocess(self, parameter)
        with_memory = sum(not p.is_meta and p not in self.chunk_manager.tensor_chunk_map for p in self.param2name)
        loose = max(loose, with_memory)

    def look_at_chunks(self, *args, **kwargs):
        nonlocal most
        register(self, *args, **kwargs)
        most = max(most, sum(self.total_mem.values()) / total)

    with (
        mock.patch.object(ChunkManager, "register_tensor", look_at_chunks),
        mock.patch.object(gemini.ChunkedModel, "_preprocess_param", look_at_parameter),
    ):
        boosted = boost(_run("gemini", world_size, "bf16", 1))
    assert loose == 1
    return most, sum(boosted.model.chunk_manager.total_mem.values()) / total


def overflow(world_size, accumulation, whole) -> dict:
    """A step that overflows fp16, then two that do not."""
    boosted = boost(_run("gemini", world_size, "fp16", accumulation), whole)
    batches = small_run.batches(boosted.run, boosted.grid.dp_rank, boosted.grid.dp_size)
    before = state_of(boosted)
    boosted.scaler.load_state_dict({"scale": 2.0**31, "growth_step": 5, "hysteresis_step": 0})
    boosted.forward_backward(next(batches))
    skipped = boosted.optimizer_step()
    unmoved = _same(before, state_of(boosted))
    after_skip = boosted.scaler.state_dict()
    boosted.scaler.load_state_dict({"scale": 2.0**10, "growth_step": 0, "hysteresis_step": 0})
    results = []
    for _ in range(2):
        boosted.forward_backward(next(batches))
        results.append(boosted.optimizer_step())
    return {"skipped": skipped, "unmoved": unmoved, "after_skip": after_skip, "results": results}


def evaluate_before_training(world_size, plugin) -> tuple[float, float, float]:
    """Evaluation losses before and after a first step, and the plain model's in bf16 before it."""
    boosted = boost(_run(plugin, world_size, "bf16", 1))
    batch = next(small_run.batches(boosted.run, 0, 1))
    inputs = dict(batch.micro_batches[0], num_items_in_batch=batch.num_label_tokens, use_cache=False)
    with torch.no_grad():
        plain = small_run.small_model().to(torch.bfloat16)(**inputs).loss.item()
        before = boosted.model(**inputs).loss.item()
    step(boosted, next(small_run.batches(boosted.run, boosted.grid.dp_rank, boosted.grid.dp_size)))
    with torch.no_grad():
        after = boosted.model(**inputs).loss.item()
    return before, after, plain
