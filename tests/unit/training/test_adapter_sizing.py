"""What an adapter's run is reckoned to hold and to compute, of a model that no machine at hand could hold."""

import pytest
import torch

from llama_dyt.config.run import RunConfig
from llama_dyt.models import build_config, count_parameters, empty_model, family_of
from llama_dyt.models.adapters import adapter_asked_for, count, trained_in_words
from llama_dyt.training.measurement.performance import Speedometer
from llama_dyt.training.sizing.memory import estimate_memory, stage_parts

CONFIG = build_config("llama2_7b")
PARAMETERS = count_parameters(CONFIG)
# Inputs and outputs of q, k, v, o; gate, up, down.
OF_RANK_ONE = 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))


def make_run(**flags) -> RunConfig:
    return RunConfig.build("finetune", model_path="base", mixed_precision="bf16", **{"lora_rank": 16, **flags})


def states(world_size: int, **flags):
    run = make_run(**flags)
    adapter = adapter_asked_for(run.adapter, empty_model(CONFIG))
    parts = stage_parts(run, CONFIG, adapter)
    (memory,) = estimate_memory(run, CONFIG, world_size, parts=parts)
    return memory.parameters + memory.gradients + memory.optimizer


def test_numbers_of_a_7b():
    adapter = adapter_asked_for(make_run().adapter, empty_model(CONFIG))
    counts = count(adapter, CONFIG)
    assert counts.model == PARAMETERS
    assert counts.trained == counts.added == 16 * OF_RANK_ONE == 39_976_960
    words = trained_in_words(adapter, CONFIG)
    assert words == "39,976,960 parameters trained, 0.59% of 6,738,415,682: LoRA of rank 16 in 224 modules"


def test_norms_trained_beside_are_counted_and_no_part_of_the_adapter():
    counts = count(adapter_asked_for(make_run(train_norms=True).adapter, empty_model(CONFIG)), CONFIG)
    assert counts.trained - counts.added == 65 * (4096 + 1)


@pytest.mark.parametrize(
    ("flags", "frozen", "trained"),
    [
        ({"plugin": "ddp"}, 2, 16),
        ({"plugin": "zero2"}, 2, 2 + 14 / 8),
        ({"plugin": "fsdp"}, 2 / 8, 16 / 8),
    ],
)
def test_frozen_weights_take_their_working_bytes_and_no_more(flags, frozen, trained):
    assert states(8, **flags) == pytest.approx(frozen * PARAMETERS + trained * 16 * OF_RANK_ONE)


def test_tensor_parallelism_cuts_one_side_of_each_product():
    flags = {"plugin": "hybrid_parallel", "tp": 8}
    column, row = (
        16 * 32 * (3 * (4096 + 4096 / 8) + 2 * (4096 + 11008 / 8)),
        16 * 32 * ((4096 / 8 + 4096) + (11008 / 8 + 4096)),
    )
    assert states(8, **flags) == pytest.approx(2 * PARAMETERS / 8 + 16 * (column + row), rel=1e-3)


def test_frozen_weights_have_no_gradients_that_would_be_computed():
    adapter = adapter_asked_for(make_run().adapter, empty_model(CONFIG))
    device = {"num_devices": 1, "device": torch.device("cpu"), "dtype": torch.float32}
    full, adapted = (Speedometer(CONFIG, 4096, 0.0, **device, adapter=which).model_flops for which in (None, adapter))
    weights = family_of(CONFIG).matmul_parameters(CONFIG)
    assert full - adapted == pytest.approx(2 * weights - 6 * 16 * OF_RANK_ONE)
