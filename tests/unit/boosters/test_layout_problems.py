"""Layouts of pipelines and sequences that cannot be, each told in one line, before anything starts."""

import pytest

from llama_dyt.boosters.strategy import STRATEGIES
from llama_dyt.config import RunConfig
from llama_dyt.config.check import collect_problems, warnings


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems_of(world_size=4, **flags):
    settings = {"config": "15m", "plugin": "hybrid_parallel", "batch_size": 4, "max_length": 64}  # 6 layers and heads
    return collect_problems(RunConfig.build("pretrain", **{**settings, **flags}), world_size, "cpu")


@pytest.mark.parametrize(
    "flags",
    [
        {"sp": 2},
        {"sp": 2, "sp_mode": "all_to_all", "pp": 2},
        {"config": "15m", "sp": 2, "tp": 2, "num_heads": 4, "num_key_value_heads": 2},
        {"tp": 2, "sp_mode": "split_gather"},
        {"tp": 2, "sp": 2, "sp_mode": "split_gather"},
        {"tp": 2, "pp": 2, "sp_mode": "split_gather", "pp_style": "zbv"},
        {"pp": 2, "pp_style": "interleaved"},
        {"pp": 2, "pp_style": "interleaved", "n_chunks": 3},
        {"pp": 2, "pp_style": "zbv", "n_chunks": 2, "zero": 1, "mixed_precision": "bf16"},
        {"pp": 2, "n_chunks": 1},
        {"sp": 4, "num_heads": 4, "num_key_value_heads": 2},
    ],
)
def test_layouts_that_can_be(flags):
    assert problems_of(**flags) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"pp_style": "zbv"}, "has an effect only with --pp above 1"),
        ({"n_chunks": 2}, "--n_chunks 2 has an effect only with --pp above 1"),
        ({"pp": 2, "n_chunks": 2}, "with --pp_style 1f1b a stage holds one chunk; take --pp_style interleaved"),
        ({"pp": 2, "pp_style": "interleaved", "n_chunks": 1}, "a stage holds 2 chunks or more"),
        ({"pp": 2, "pp_style": "zbv", "n_chunks": 3}, "a stage holds 2 chunks; leave it out"),
        (
            {"pp": 2, "pp_style": "zbv", "batch_size": 3},
            "makes 3; --pp_style zbv needs a multiple of the --pp 2 stages",
        ),
        ({"pp": 4, "pp_style": "interleaved"}, "6 layers into --pp 4 times 2 chunks; make them 6 or fewer"),
        (
            {"sp": 2, "plugin": "zero2"},
            "--sp 2: --plugin zero2 has no sequence parallelism; take --plugin hybrid_paral",
        ),
        ({"sp_mode": "ring", "tp": 2}, "--sp_mode ring is left out: the engine's ring"),
        ({"sp_mode": "ring_attn", "sp": 2}, "take --sp_mode all_to_all"),
        ({"sp_mode": "split_gather"}, "give --tp 2 or more"),
        ({"sp_mode": "split_gather", "tp": 2, "sp": 4}, "its size is that of --tp, 2; leave --sp out"),
        ({"sp_mode": "all_to_all"}, "with --sp 1 spreads nothing"),
        (
            {"sp": 2, "max_length": 65},
            "--max_length 65 cannot be cut for 2 ranks (--sp_mode all_to_all); give a multiple",
        ),
        ({"sp_mode": "split_gather", "tp": 2, "max_length": 65}, "such as 66"),
        ({"sp": 4}, "--sp 4 does not divide the model's 6 attention heads"),
        ({"sp": 2, "tp": 2}, "--sp 2 times --tp 2 does not divide the model's 6 attention heads"),
        ({"sp": 2, "tp": 2, "pp": 2, "num_heads": 4, "world_size": 6}, "--tp 2 times --pp 2 times --sp 2 is 8"),
    ],
)
def test_layouts_that_cannot_be_are_told(flags, expected):
    (problem,) = problems_of(**flags)
    assert expected in problem and "\n" not in problem


def test_ranks_that_share_sequences_read_the_same_rows():
    booster = RunConfig.build("pretrain", plugin="3d", tp=2, pp=2, sp=2).booster
    assert booster.data_parallel_size(16) == 2
    assert RunConfig.build("pretrain", plugin="3d", tp=2, sp_mode="split_gather").booster.data_parallel_size(4) == 2


def test_the_benchmarks_spelling_of_chunks():
    run = RunConfig.from_yaml("kind: benchmark\nplugin: 3d\npp: 2\npp_style: interleaved\nnum_model_chunks: 3\n")
    assert run.booster.model_chunks == 3


@pytest.mark.parametrize(
    ("plugin", "requested", "ranks", "stage"),
    [
        ("zero1", None, 2, 1),
        ("zero1", None, 1, 0),
        ("zero2", None, 1, 0),
        ("zero2", None, None, 2),
        ("zero2_cpu", None, 1, 2),
        ("hybrid_parallel", 1, 4, 1),
        ("hybrid_parallel", 2, 1, 0),
        ("hybrid_parallel_cpu", None, 1, 1),
        ("gemini", None, 1, None),
    ],
)
def test_one_rank_has_no_zero_but_for_offloading(plugin, requested, ranks, stage):
    assert STRATEGIES.get(plugin).zero_stage(requested, ranks) == stage


def test_heads_that_tensor_parallelism_cannot_divide_are_counted():
    (problem,) = problems_of(config="gemma_2b", tp=2)
    assert problem.startswith("--tp 2 does not divide the model's 1 key and value heads")


@pytest.mark.parametrize(
    "flags",
    [
        {"config": "gemma_7b", "tp": 2, "norm": "unit_offset_rmsnorm"},
        {"config": "gemma_2b", "sp": 2},
        {"config": "phi_2", "tp": 2, "pp": 2, "sp_mode": "split_gather", "norm": "layernorm"},
        {"config": "mistral_7b", "sp": 4, "norm": "rmsnorm"},
    ],
)
def test_layouts_of_other_families_that_can_be(flags):
    assert problems_of(**flags) == []


@pytest.mark.parametrize(
    ("config", "norm", "own"),
    [("gemma_2b", "rmsnorm", "unit_offset_rmsnorm"), ("7b", "layernorm", "rmsnorm"), ("phi_2", "layernorm", None)],
)
def test_a_norm_that_is_another_familys_own_is_told_of(config, norm, own):
    run = RunConfig.build("pretrain", config=config, norm=norm)
    told = [line for line in warnings(run) if line.startswith("--norm")]
    assert len(told) == (own is not None) and all(f"is {own};" in line for line in told)
