"""Gemini: sharded and whole chunks, accumulation, every placement, exact state, and recovery from overflow."""

import math

import pytest
import torch

from tests.distributed import reference
from tests.distributed.small_run import Layout

CASES = "tests.distributed.gemini_cases:"  # by name: the tests themselves need not import the engine

pytestmark = pytest.mark.distributed

GRADIENT_FACTOR = 3.0
"""Gradients may be so many times farther from fp32's than one process's half-precision gradients are: chunks are summed
over ranks and micro batches in half precision, which the single process does not do."""
SMALLEST_NOISE = {"bf16": 2.0**-7, "fp16": 2.0**-10}
"""One rounding, and a sum: under this, a single scalar's measured noise is luck."""
LOSS_TOLERANCE = 2e-2


def _trajectory(pool, world_size: int, **arguments) -> dict:
    return pool(world_size).run(CASES + "trajectory", world_size=world_size, **arguments)[0]


def _placed(pool, plugin: str, precision: str, **flags) -> dict:
    return pool(2).run(CASES + "placed", plugin=plugin, world_size=2, precision=precision, **flags)[0]


def gradient_errors(result: dict, precision: str) -> dict[str, float]:
    """By kind of parameter: distance of the gradient from fp32's, in units of what is allowed."""
    noise = reference.gradient_noise(precision)
    found = reference.distances(result["gradients"], reference.train().gradients)
    return {
        kind: error / (GRADIENT_FACTOR * max(noise[kind], SMALLEST_NOISE[precision])) for kind, error in found.items()
    }


@pytest.mark.parametrize(
    ("world_size", "precision", "accumulation", "whole", "flags"),
    [  # what the matrix does not have
        (2, "bf16", 2, True, {}),
        (2, "bf16", 1, False, {"extra_dp": 2}),
        (4, "bf16", 2, True, {"extra_dp": 2}),
        *(
            pytest.param(*case, marks=pytest.mark.matrix)
            for case in ((2, "fp16", 2, True, {}), (2, "bf16", 2, True, {"tp": 2}), (4, "bf16", 2, False, {}))
        ),
    ],
)
def test_gradients_norms_and_losses_are_those_of_one_process(pool, world_size, precision, accumulation, whole, flags):
    result = _trajectory(pool, world_size, precision=precision, accumulation=accumulation, whole=whole, **flags)
    errors = gradient_errors(result, precision)
    assert max(errors.values()) < 1, {kind: error for kind, error in errors.items() if error >= 1}
    exact = reference.train()
    assert result["grad_norms"] == pytest.approx(exact.grad_norms, rel=0.05)
    assert result["grad_norms"][0] == pytest.approx(exact.grad_norms[0], rel=0.01)
    assert result["losses"] == pytest.approx(exact.losses, abs=LOSS_TOLERANCE)


def test_the_engines_own_accumulation_would_fail_that_test(pool):
    result = _trajectory(pool, 2, precision="bf16", accumulation=2, whole=True, num_steps=1, unmended=True)
    errors = gradient_errors(result, "bf16")
    assert min(errors.values()) > 1
    assert result["grad_norms"][0] != pytest.approx(reference.train().grad_norms[0], rel=0.05)


@pytest.mark.parametrize("tp", [pytest.param(1, marks=pytest.mark.matrix), 2])
def test_placement_changes_no_bit(pool, tp):
    def run(plugin: str, **flags) -> dict:
        return _placed(pool, plugin, "bf16", tp=tp, **flags)

    plain = run("gemini")
    assert plain["offloaded_fraction"] == 0
    half = run("gemini", offload_optim_frac=0.5)
    assert 0.4 < half["offloaded_fraction"] < 0.75, "a share of the chunks, not all of them"
    optimizer = run("gemini", offload_optim_frac=1.0)
    everything = run("gemini", offload_optim_frac=1.0, offload_param_frac=1.0)
    assert optimizer["offloaded_fraction"] == everything["offloaded_fraction"] == 1
    automatic = run("gemini_auto")
    assert automatic["offloaded_fraction"] == 1, "automatic placement keeps its masters on the host"
    others = [half, optimizer, everything, automatic, run("gemini", shard_param_frac=0.5)]
    for other in others:
        assert other["losses"] == plain["losses"]
        for name, tensors in plain["state"].items():
            assert all(torch.equal(tensors[key], other["state"][name][key]) for key in tensors), name


def test_automatic_placement_evicts_chunks_when_memory_is_short(pool):
    roomy = _placed(pool, "gemini_auto", "bf16")
    short = _placed(pool, "gemini_auto", "bf16", memory_bytes=600_000)
    assert roomy["evicted_bytes"] == 0 < short["evicted_bytes"]
    assert short["losses"] == roomy["losses"]


def test_memory_too_short_to_place_the_model_names_the_flags(pool):
    for message in pool(2).run(CASES + "too_little_memory", world_size=2):
        assert "--memory_limit" in message
        assert "--warmup_ratio" in message


@pytest.mark.parametrize(
    ("world_size", "precision", "accumulation", "whole", "flags"),
    [
        (2, "bf16", 2, True, {}),
        (4, "bf16", 1, False, {"offload_optim_frac": 0.5, "tp": 2}),
        (4, "fp16", 1, False, {"extra_dp": 2}),
        pytest.param(
            *(2, "bf16", 1, False, {"offload_optim_frac": 1.0, "offload_param_frac": 1.0}), marks=pytest.mark.matrix
        ),
    ],
)
def test_resume_continues_to_the_last_bit(pool, world_size, precision, accumulation, whole, flags):
    results = pool(world_size).run(
        CASES + "resumed",
        world_size=world_size,
        precision=precision,
        accumulation=accumulation,
        whole=whole,
        **flags,
    )
    assert results == [True] * world_size


def test_no_rank_holds_the_whole_model_while_it_is_boosted(pool):
    for most, after in pool(4).run(CASES + "held_while_boosted", world_size=4):
        assert after == pytest.approx(1 / 4, rel=0.2)
        assert most < 1 / 2  # two chunks of sixteen are open at a time


def test_state_moves_between_layouts(pool):
    """Between other plugins too: see test_moving."""
    replicas, tensor_parallel = Layout("gemini", 4, flags=(("extra_dp", 2),)), Layout("gemini_auto", 4, tp=2)
    for source, target in ((tensor_parallel, replicas), (replicas, tensor_parallel)):
        assert all(pool(4).run(CASES + "moved", source=source, target=target))


@pytest.mark.parametrize("flags", [{"extra_dp": 2}, {"tp": 2}])
def test_masters_start_as_the_fp32_weights(pool, flags):
    assert all(pool(4).run(CASES + "start", world_size=4, precision="bf16", **flags))


@pytest.mark.parametrize(("accumulation", "whole"), [(1, False), (2, True)])
def test_an_overflow_skips_one_step_and_no_more(pool, accumulation, whole):
    for result in pool(2).run(CASES + "overflow", world_size=2, accumulation=accumulation, whole=whole):
        assert result["skipped"].skipped
        assert result["skipped"].grad_norm is None
        assert result["unmoved"]
        assert result["after_skip"]["growth_step"] == 0
        assert result["after_skip"]["hysteresis_step"] == 1
        for later in result["results"]:
            assert not later.skipped
            assert math.isfinite(later.grad_norm)
            assert later.loss_scale == 2.0**10


@pytest.mark.parametrize("plugin", ["gemini", "gemini_auto"])
def test_evaluation_works_before_and_after_the_first_step(pool, plugin):
    for before, after, plain in pool(2).run(CASES + "evaluate_before_training", world_size=2, plugin=plugin):
        assert before == plain
        assert after < before
