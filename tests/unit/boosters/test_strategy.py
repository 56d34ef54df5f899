"""The registry of strategies: what is known of a plugin before torch is imported, and what a run asks of Adam."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llama_dyt.boosters.capability import Capability
from llama_dyt.boosters.settings import problems
from llama_dyt.boosters.strategy import STRATEGIES, Strategy
from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError

IN_ORDER = [
    *("gemini", "gemini_auto", "zero1", "zero2", "zero2_cpu", "hybrid_parallel", "hybrid_parallel_cpu"),
    *("ddp", "fsdp", "fsdp_cpu", "hsdp"),
]


def test_strategies_are_found_by_folder_and_stand_in_the_order_of_the_help():
    assert list(STRATEGIES.names()) == IN_ORDER
    assert STRATEGIES.get("3D") is STRATEGIES.get("hybrid-parallel")


def test_they_are_known_without_torch():
    program = "import sys, llama_dyt.boosters.strategy as s; s.STRATEGIES.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ConfigurationError, match="a plugin named '3d' is there already"):
        STRATEGIES.register(Strategy("3d", Capability()))


def test_a_plain_strategy_holds_whole_states_on_every_rank():
    class Part:
        num_parameters = num_trained = 10

    half, full = (RunConfig.build(mixed_precision=precision) for precision in ("bf16", "fp32"))
    plain = Strategy("plain", Capability())
    assert plain.state_bytes(half, None, Part, 4) == plain.state_bytes(half, None, Part, 1)
    assert (plain.state_bytes(half, None, Part, 4).optimizer, plain.state_bytes(full, None, Part, 4).optimizer) == (
        120,
        80,
    )


@pytest.mark.parametrize(
    ("flags", "flag", "also"),
    [
        ({"plugin": "zero2", "tp": 2}, "tp", {"plugin"}),
        ({"plugin": "gemini", "offload_param_frac": 1.0}, "offload_param_frac", {"shard_param_frac", "plugin"}),
        ({"plugin": "hybrid_parallel", "tp": 5, "config": "15m"}, "tp", {"config"}),
        ({"plugin": "hybrid_parallel", "pp": 2, "batch_size": 1, "mbs": 1}, "batch_size", {"mbs", "pp"}),
        ({"plugin": "zero2", "fp8": "rowwise", "mixed_precision": "fp32"}, "mixed_precision", {"fp8"}),
        ({"plugin": "gemini", "compile": True, "mixed_precision": "bf16"}, "compile", {"plugin"}),
    ],
)
def test_a_problem_names_its_flag_and_those_it_follows_from(flags, flag, also):
    found = [problem for problem in problems(RunConfig.build(**flags), None, "cuda") if problem.flag == flag]
    assert found and also <= set(found[0].also)
