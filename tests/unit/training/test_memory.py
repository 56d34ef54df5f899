import pytest

from llama_dyt.config.run import RunConfig
from llama_dyt.models import build_config, count_parameters
from llama_dyt.training.sizing.memory import estimate_memory

CONFIG = build_config("llama2_7b")
PARAMETERS = count_parameters(CONFIG)
GIB = 2.0**30


def estimate(world_size, **flags):
    """Of the heaviest stage."""
    of_stages = estimate_memory(RunConfig.build(**flags), CONFIG, world_size)
    return max(of_stages, key=lambda stage: stage.device_total)


def states(world_size, **flags):
    memory = estimate(world_size, **flags)
    return memory.parameters + memory.gradients + memory.optimizer


def test_one_process_holds_sixteen_bytes_a_parameter_in_half_precision():
    assert states(1, plugin="zero2", mixed_precision="bf16") == 16 * PARAMETERS


def test_zero2_divides_all_but_the_working_weights():
    assert states(8, plugin="zero2", mixed_precision="bf16") == pytest.approx(2 * PARAMETERS + 14 * PARAMETERS / 8)


def test_gemini_fully_sharded_divides_everything():
    assert states(8, plugin="gemini", mixed_precision="bf16") == pytest.approx(14 * PARAMETERS / 8)


def test_gemini_divides_by_tensor_parallelism_and_its_sharding_group_but_not_by_copies_of_that():
    flags = {"plugin": "gemini", "mixed_precision": "bf16", "tp": 2, "extra_dp": 2}
    assert states(8, **flags) == pytest.approx(14 * PARAMETERS / 2 / 2, rel=1e-3)  # norms are not cut


@pytest.mark.parametrize("plugin", ["zero2_cpu", "hybrid_parallel_cpu"])
def test_offloading_moves_the_optimizer_to_the_host(plugin):
    memory = estimate(8, plugin=plugin, mixed_precision="bf16")
    assert memory.optimizer == 0
    assert memory.host == pytest.approx(12 * PARAMETERS / 8)


def test_fsdp_divides_fp32_shards_over_all_and_hsdp_over_a_copys_ranks():
    assert states(8, plugin="fsdp", mixed_precision="bf16") == pytest.approx(16 * PARAMETERS / 8)
    assert states(8, plugin="hsdp", shard_size=4, mixed_precision="bf16") == pytest.approx(16 * PARAMETERS / 4)
    assert estimate(8, plugin="fsdp_cpu", mixed_precision="bf16").host == pytest.approx(16 * PARAMETERS / 8)


def test_fsdp_keeps_shards_of_the_gradients_while_it_accumulates():
    once, twice = (estimate(8, plugin="fsdp", gradient_accumulation_steps=n).gradients for n in (1, 2))
    assert once == twice == pytest.approx(4 * PARAMETERS / 8)


def test_tensor_and_pipeline_parallelism_divide_the_model():
    whole = states(1, plugin="hybrid_parallel", mixed_precision="bf16")
    cut = states(8, plugin="hybrid_parallel", mixed_precision="bf16", tp=4, pp=2, batch_size=4)
    assert cut == pytest.approx(whole / 8, rel=1e-3)  # norms are not cut


def test_every_stage_of_a_pipeline_is_estimated_and_the_first_keeps_most_activations():
    run = RunConfig.build(plugin="hybrid_parallel", mixed_precision="bf16", tp=2, pp=4, batch_size=4)
    of_stages = estimate_memory(run, CONFIG, 8)
    assert len(of_stages) == 4
    assert of_stages[0].activations > of_stages[1].activations > of_stages[2].activations
    assert of_stages[0].parameters > of_stages[1].parameters == of_stages[2].parameters  # the embedding


def test_activation_checkpointing_needs_a_fraction_of_the_activations():
    plain = estimate(8, plugin="zero2", batch_size=8).activations
    whole = estimate(8, plugin="zero2", batch_size=8, gradient_checkpoint=True).activations
    assert whole < 0.2 * plain
    half = estimate(8, plugin="zero2", batch_size=8, selective_checkpointing=0.5).activations
    assert half == pytest.approx((whole + plain) / 2, rel=0.05)


def test_the_loss_needs_a_chunk_of_logits_and_under_zbv_all_of_them():
    flags = {"plugin": "hybrid_parallel", "mixed_precision": "bf16", "max_length": 4096, "batch_size": 2, "pp": 2}

    def of_the_vocabulary(pp_style, stage_with_head):
        """What a vocabulary of 128,256 adds to the activations of a micro batch, which is one sequence."""
        run = RunConfig.build(**flags, pp_style=pp_style)
        large, none = (build_config("llama3_8b", vocab_size=size) for size in (128256, 1))
        stages = [estimate_memory(run, config, 2)[stage_with_head] for config in (large, none)]
        return stages[0].activations - stages[1].activations

    assert of_the_vocabulary("zbv", 0) == pytest.approx(4096 * 128256 * (2 + 4 + 4), rel=1e-3)
    # Chunks of 1024 tokens, whose fp32 logits take 512 MB, and the fp32 gradient of the head.
    assert of_the_vocabulary("1f1b", 1) == pytest.approx(128256 * (1024 * (2 + 4) + 4096 * 4), rel=1e-2)


def test_a_tied_head_makes_as_much_for_the_loss_as_one_of_its_own_and_a_bias_makes_whole_logits():
    def activations(**model):
        config = build_config(num_hidden_layers=1, **model)
        run = RunConfig.build(plugin="zero2", mixed_precision="bf16", batch_size=1, max_length=4096)
        (memory,) = estimate_memory(run, config, 1)
        return memory.activations

    assert activations(name_or_path="7b", tie_word_embeddings=True) == activations(name_or_path="7b")
    assert activations(name_or_path="phi_2") > 4096 * 51200 * (2 + 4 + 4)
