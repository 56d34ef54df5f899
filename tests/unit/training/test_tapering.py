"""When norms become others: the schedule, and runs that cannot have one."""

from __future__ import annotations

import pytest

from llama_dyt.config.check import collect_problems, warnings
from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config
from llama_dyt.training.tapering.plan import fit_gates, schedule_of
from llama_dyt.training.tapering.schedule import TaperSchedule


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.97, 1.0])
@pytest.mark.parametrize(("sites", "start", "steps"), [(1, 0, 1), (5, 3, 60), (65, 10, 1000), (5, 0, 3), (81, 0, 7)])
def test_gates_open_in_order_and_are_all_open_at_the_end_and_not_before(sites, start, steps, overlap):
    schedule = TaperSchedule(sites, start, steps, overlap)
    before = [0.0] * sites
    for step in range(start + steps + 5):
        gates = schedule.gates(step)
        assert gates == sorted(gates, reverse=True) and len(gates) == sites
        assert all(0 <= old <= new <= 1 for old, new in zip(before, gates))
        assert (gates == [0.0] * sites) == (step <= start)
        assert (gates == [1.0] * sites) == (step >= start + steps == schedule.last_step)
        before = gates


def test_windows_are_of_one_length_and_overlap_by_their_share():
    apart = TaperSchedule(sites=4, start=10, steps=40, overlap=0.0)
    assert apart.gates(15) == [0.5, 0, 0, 0] and apart.gates(20) == [1, 0, 0, 0] and apart.gates(48) == [1, 1, 1, 0.8]
    half = TaperSchedule(sites=3, start=0, steps=40, overlap=0.5)
    assert half.window == 20 and half.gates(15) == [0.75, 0.25, 0.0]
    assert TaperSchedule(sites=3, start=0, steps=40, overlap=1.0).gates(10) == [0.25] * 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"taper_start": 3}, "--taper_start 3 has no effect without --taper_steps"),
        ({"taper_overlap": 0.1}, "--taper_overlap 0.1 has no effect without --taper_steps"),
        ({"taper_steps": 5, "lora_rank": 2}, "an adapter leaves the norms as they are"),
        ({"taper_steps": 5, "max_steps": 8, "taper_start": 4}, None),
    ],
)
def test_flags_that_cannot_be(flags, said):
    problems = [str(problem) for problem in collect_problems(RunConfig.build("finetune", **flags), 1, "cpu")]
    assert sum("taper" in problem for problem in problems) == (said is not None), problems
    assert said is None or sum(said in problem for problem in problems) == 1, problems


def test_a_schedule_needs_norms_that_become_others():
    run = RunConfig.build("pretrain", taper_steps=9, taper_start=2)
    config = build_config("15m", "tapered", num_hidden_layers=3)
    assert schedule_of(run, config) == TaperSchedule(sites=7, start=2, steps=9, overlap=0.5)
    assert schedule_of(RunConfig.build("pretrain"), config) is None
    with pytest.raises(ConfigurationError, match="--taper_steps 9.*norm, dyt, becomes no other.*convert.py --norm"):
        schedule_of(run, build_config("15m", "dyt"))


def test_what_is_probably_not_meant_is_said():
    def said(**flags):
        run = RunConfig.build("pretrain", max_steps=60, warmup_steps=2, **flags)
        notes = fit_gates(run, config, None)
        return [line for line in (*notes, *warnings(run, 1, "cpu")) if "taper" in line]

    config = build_config("15m", "tapered", num_hidden_layers=1, taper_gates=[1.0, 0.5, 0.0])
    assert said(taper_steps=20, taper_start=20) == []
    (late,) = said(taper_steps=50, taper_start=20)
    assert "exchanged in step 70 and the run of 60 ends before; give fewer, such as 20" in late
    (still,) = said()
    assert still.startswith("2 of the model's 3 norms have not become dyt and stay as they are")
    config.taper_gates = [1.0] * 3
    assert said() == []
