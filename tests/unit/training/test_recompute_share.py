"""--auto_checkpointing takes the fewest layers that fit by the estimate, and warns where all of them do not."""

import pytest

from llama_dyt.config import check
from llama_dyt.config.run import RunConfig
from llama_dyt.core.environment import ProcessEnvironment
from llama_dyt.models import build_config
from llama_dyt.training.plan import make_plan
from llama_dyt.training.sizing import recompute_share
from llama_dyt.training.sizing.memory import estimate_memory
from llama_dyt.training.sizing.recompute_share import choose_share

CONFIG = build_config("llama2_7b")
ENVIRONMENT = ProcessEnvironment(0, 8, local_world_size=8)
MEGABYTE = 2**20


def make_run(**flags):
    flags = {"plugin": "zero2", "mixed_precision": "bf16", "batch_size": 4, "auto_checkpointing": True, **flags}
    return RunConfig.build("benchmark", config="llama2_7b", **flags)


def needed(share, **flags):
    run = make_run(**flags).replace(selective_checkpointing=share)
    return max(e.device_total for e in estimate_memory(run, CONFIG, 8))


@pytest.mark.parametrize("layers", [0, 2, 13, 31, 32])
def test_one_layer_fewer_would_not_fit(layers):
    limit = int(needed(layers / 32) / MEGABYTE) + 1
    chosen = choose_share(make_run(memory_limit=limit), CONFIG, ENVIRONMENT, "cuda")
    assert (chosen.num_recomputing, chosen.share, chosen.fits) == (layers, layers / 32, True)
    assert chosen.needed == needed(layers / 32) <= limit * MEGABYTE
    if layers:
        assert needed((layers - 1) / 32) > limit * MEGABYTE  # one alone keeps its input and is no less at its turn


def test_where_nothing_is_enough_all_layers_recompute_and_the_answer_says_so():
    chosen = choose_share(make_run(memory_limit=1000), CONFIG, ENVIRONMENT, "cuda")
    assert (chosen.share, chosen.fits) == (1.0, False)


def test_the_processes_of_a_machine_share_its_free_memory(monkeypatch):
    monkeypatch.setattr(recompute_share.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 8e9}))
    assert recompute_share.allowed_bytes(make_run(), ENVIRONMENT, "cpu") == pytest.approx(1e9 * 0.9)


def test_the_heaviest_stage_of_a_pipeline_decides():
    flags = {"plugin": "hybrid_parallel", "pp": 2, "batch_size": 4, "mbs": 1}
    limit = int(needed(0.5, **flags) / MEGABYTE) + 1
    chosen = choose_share(make_run(memory_limit=limit, **flags), CONFIG, ENVIRONMENT, "cuda")
    assert chosen.needed == needed(chosen.share, **flags) <= limit * MEGABYTE
    first, last = estimate_memory(make_run(**flags).replace(selective_checkpointing=chosen.share), CONFIG, 8)
    assert chosen.needed == first.device_total > last.device_total


@pytest.mark.parametrize("other", [{"gradient_checkpoint": True}, {"selective_checkpointing": 0.5}], ids=str)
def test_another_flag_that_says_how_many_is_a_contradiction(other):
    (problem,) = check.collect_problems(make_run(**other), 8, "cpu")
    assert next(iter(other)) in problem


def test_a_plan_has_the_share_in_place_of_the_question(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    flags = ["-c", "15m", "-p", "zero2", "--auto_checkpointing", "-l", "64", "--memory_limit"]
    enough, little = (make_plan("benchmark", [*flags, limit]) for limit in ("4000", "1"))
    assert (enough.run.model.selective_checkpointing, enough.run.speed.auto_checkpointing) == (0.0, False)
    assert enough.warnings == []
    assert little.run.model.selective_checkpointing == 1.0
    assert any("--auto_checkpointing" in warning for warning in little.warnings)
    assert RunConfig.from_yaml(enough.run.to_yaml()) == enough.run
