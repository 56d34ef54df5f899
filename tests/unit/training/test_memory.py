import pytest

from llama_dyt.config.run import RunConfig
from llama_dyt.models import build_config, count_parameters
from llama_dyt.training.memory import estimate_memory

CONFIG = build_config("llama2_7b")
PARAMETERS = count_parameters(CONFIG)
GIB = 2.0**30


def states(world_size, **flags):
    estimate = estimate_memory(RunConfig.build(**flags), CONFIG, PARAMETERS, world_size)
    return estimate.parameters + estimate.gradients + estimate.optimizer


def test_one_process_holds_sixteen_bytes_a_parameter_in_half_precision():
    assert states(1, plugin="zero2", mixed_precision="bf16") == 16 * PARAMETERS


def test_zero2_divides_all_but_the_working_weights():
    assert states(8, plugin="zero2", mixed_precision="bf16") == pytest.approx(2 * PARAMETERS + 14 * PARAMETERS / 8)


def test_gemini_fully_sharded_divides_everything():
    assert states(8, plugin="gemini", mixed_precision="bf16") == pytest.approx(14 * PARAMETERS / 8)


def test_offloading_moves_the_optimizer_to_the_host():
    run = RunConfig.build(plugin="zero2_cpu", mixed_precision="bf16")
    estimate = estimate_memory(run, CONFIG, PARAMETERS, 8)
    assert estimate.optimizer == 0
    assert estimate.host == pytest.approx(12 * PARAMETERS / 8)


def test_fsdp_divides_fp32_shards_over_all_and_hsdp_over_a_copys_ranks():
    assert states(8, plugin="fsdp", mixed_precision="bf16") == pytest.approx(16 * PARAMETERS / 8)
    assert states(8, plugin="hsdp", shard_size=4, mixed_precision="bf16") == pytest.approx(16 * PARAMETERS / 4)
    offloaded = estimate_memory(RunConfig.build(plugin="fsdp_cpu", mixed_precision="bf16"), CONFIG, PARAMETERS, 8)
    assert offloaded.host == pytest.approx(16 * PARAMETERS / 8)


def test_fsdp_keeps_whole_gradients_while_it_accumulates():
    once, twice = (
        estimate_memory(RunConfig.build(plugin="fsdp", gradient_accumulation_steps=n), CONFIG, PARAMETERS, 8)
        for n in (1, 2)
    )
    assert twice.gradients == 8 * once.gradients == 4 * PARAMETERS


def test_tensor_and_pipeline_parallelism_divide_the_model():
    whole = states(1, plugin="hybrid_parallel", mixed_precision="bf16")
    cut = states(8, plugin="hybrid_parallel", mixed_precision="bf16", tp=4, pp=2, batch_size=4)
    assert cut == pytest.approx(whole / 8)


def test_activation_checkpointing_needs_a_fraction_of_the_activations():
    plain = estimate_memory(RunConfig.build(plugin="zero2", batch_size=8), CONFIG, PARAMETERS, 8).activations
    run = RunConfig.build(plugin="zero2", batch_size=8, gradient_checkpoint=True)
    whole = estimate_memory(run, CONFIG, PARAMETERS, 8).activations
    assert whole < 0.2 * plain
    run = RunConfig.build(plugin="zero2", batch_size=8, selective_checkpointing=0.5)
    half = estimate_memory(run, CONFIG, PARAMETERS, 8).activations
    assert half == pytest.approx((whole + plain) / 2, rel=0.05)
