"""When layers are compiled (as asked for, by default on CUDA alone, never where it would fail), and which attention."""

import pytest

from llama_dyt.boosters import compilation as speed
from llama_dyt.boosters.compilation import attention_function, compiles
from llama_dyt.config import check
from llama_dyt.config.run import RunConfig

TRACED = [
    {"plugin": "zero2"},
    {"plugin": "ddp"},
    {"plugin": "fsdp"},
    {"plugin": "hsdp"},
    {"plugin": "hybrid_parallel", "pp": 2},
    {"plugin": "hybrid_parallel", "sp": 2},
]
UNTRACED = [
    ({"plugin": "gemini"}, "zero2"),
    ({"plugin": "gemini_auto"}, "fsdp"),
    ({"plugin": "hybrid_parallel", "tp": 2}, "--tp 1"),
    ({"plugin": "hybrid_parallel", "tp": 2, "sp_mode": "split_gather"}, "--tp 1"),
    ({"plugin": "hybrid_parallel", "pp": 2, "pp_style": "zbv"}, "another style"),
]


def make_run(**flags):
    return RunConfig.build("benchmark", **{"config": "15m", "batch_size": 4, "max_length": 64, **flags})


@pytest.fixture(autouse=True)
def everything_installed(monkeypatch):
    monkeypatch.setattr(speed, "_has_compiler", lambda: True)
    monkeypatch.setattr(speed, "_installed", lambda package: package != "flash_attn")


@pytest.mark.parametrize("flags", TRACED, ids=str)
@pytest.mark.parametrize(
    ("choice", "on_cpu", "on_cuda"), [(None, False, True), (True, True, True), (False, False, False)]
)
def test_the_default_is_that_of_the_device_and_a_choice_holds_everywhere(flags, choice, on_cpu, on_cuda):
    run = make_run(compile=choice, **flags)
    assert (compiles(run, "cpu"), compiles(run, "cuda")) == (on_cpu, on_cuda)
    assert check.collect_problems(run, 2, "cpu") == []


@pytest.mark.parametrize(("flags", "remedy"), UNTRACED, ids=str)
def test_what_cannot_be_traced_is_refused_once_and_never_the_default(flags, remedy):
    assert not compiles(make_run(**flags), "cuda")
    (problem,) = check.collect_problems(make_run(compile=True, **flags), 2, "cpu")
    assert problem.startswith("--compile: ")
    assert remedy in problem
    assert check.collect_problems(make_run(compile=False, **flags), 2, "cpu") == []


@pytest.mark.parametrize(
    ("tool", "device"), [("_has_compiler", "cpu"), ("_has_compiler", "cuda"), ("_installed", "cuda")]
)
def test_without_its_tools_nothing_is_compiled_and_a_request_says_what_to_install(monkeypatch, tool, device):
    monkeypatch.setattr(speed, tool, lambda *_: False)
    assert not compiles(make_run(plugin="zero2"), device)
    (problem,) = check.collect_problems(make_run(plugin="zero2", compile=True), 1, device)
    assert "install" in problem


@pytest.mark.parametrize(
    ("device", "precision", "installed", "function", "notice"),
    [
        ("cuda", "bf16", True, "flash_attention_2", None),
        ("cuda", "bf16", False, "sdpa", "torch's own flash attention is used"),
        ("cuda", "fp32", True, "sdpa", "no effect in fp32"),
        ("cpu", "bf16", True, "sdpa", "no effect on a CPU"),
    ],
)
def test_flash_attention_is_the_packages_where_it_can_be_else_torchs_with_one_notice(
    monkeypatch, device, precision, installed, function, notice
):
    monkeypatch.setattr(speed, "_installed", lambda package: installed or package != "flash_attn")
    run = make_run(plugin="zero2", mixed_precision=precision, flash_attention=True)
    assert attention_function(run, device) == function
    assert check.collect_problems(run, 1, device) == []
    notices = [warning for warning in check.warnings(run, 1, device) if "flash" in warning]
    assert len(notices) == (notice is not None)
    assert all(notice in text for text in notices)
    assert attention_function(make_run(plugin="zero2", mixed_precision=precision), device) == "sdpa"


def test_layers_with_flash_attns_kernels_are_not_compiled(monkeypatch):
    monkeypatch.setattr(speed, "_installed", lambda package: True)
    run = make_run(plugin="zero2", flash_attention=True)
    assert not compiles(run, "cuda")
    (problem,) = check.collect_problems(run.replace(compile=True), 1, "cuda")
    assert "--flash_attention" in problem
