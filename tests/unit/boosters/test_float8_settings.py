import pytest

from llama_dyt.boosters.strategy import able
from llama_dyt.config.check import collect_problems
from llama_dyt.config.cli import read


def problems(*words: str, device: str = "cuda") -> list[str]:
    run, found = read("benchmark", words)
    return found + collect_problems(run, 1, device)


@pytest.mark.parametrize("plugin", ["ddp", "zero1", "zero2", "zero2_cpu", "fsdp", "fsdp_cpu", "hsdp"])
def test_plugins_that_keep_linear_layers_take_it(plugin):
    assert problems("--fp8", "-p", plugin) == []
    assert problems("--fp8", "--fp8_emulate", "-p", plugin, device="cpu") == []
    assert plugin in able("float8")


@pytest.mark.parametrize("plugin", ["gemini", "gemini_auto", "hybrid_parallel", "hybrid_parallel_cpu"])
def test_plugins_that_do_not_are_refused_with_those_that_do(plugin):
    (problem,) = problems("--fp8", "rowwise", "-p", plugin)
    assert problem.startswith(f"--fp8 rowwise: --plugin {plugin} ") and " or zero2 or " in problem


def test_a_cpu_is_told_of_the_emulation():
    (problem,) = problems("--fp8", "-p", "ddp", device="cpu")
    assert "a CPU has no 8-bit matrix products" in problem and "--fp8_emulate" in problem


def test_other_precisions_are_refused_unless_emulated():
    (problem,) = problems("--fp8", "-p", "ddp", "--mixed_precision", "fp32")
    assert problem == "--fp8 tensorwise with --mixed_precision fp32: 8-bit products give bf16; take bf16"
    assert problems("--fp8", "--fp8_emulate", "-p", "ddp", "--mixed_precision", "fp32") == []


def test_its_parts_mean_nothing_alone():
    assert problems("--fp8_emulate", "--fp8_keep_layers", "1", "-p", "ddp") == [
        "--fp8_emulate has no effect without --fp8; add that, or leave it out",
        "--fp8_keep_layers has no effect without --fp8; add that, or leave it out",
    ]
