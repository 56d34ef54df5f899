import json
from dataclasses import replace

import pytest

from llama_dyt.boosters.strategy import STRATEGIES
from llama_dyt.config import RunConfig
from llama_dyt.config.check import collect_problems, warnings
from llama_dyt.core.files import why_not_writable
from llama_dyt.models.settings import model_size


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems_of(kind="pretrain", world_size=1, device="cpu", **flags):
    return collect_problems(RunConfig.build(kind, **{"config": "15m", **flags}), world_size, device)


@pytest.mark.parametrize("plugin", STRATEGIES.names())
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plain_run_has_no_problem(plugin, precision, device):
    assert problems_of(plugin=plugin, mixed_precision=precision, device=device, world_size=2) == []


@pytest.mark.parametrize(
    ("flag", "value", "remedy"),
    [
        ("max_length", 1, "give 2 or more"),
        ("batch_size", 0, "give 1 or more"),
        ("num_epochs", 0, "give 1 or more"),
        ("lr", 0, "give more than 0"),
        ("lr", -1e-3, "give more than 0"),
        ("lr", "nan", "give a finite number"),
        ("weight_decay", -0.1, "give 0 or more"),
        ("warmup_steps", -1, "give 0 or more"),
        ("gradient_clipping", -1, "give 0 or more"),
        ("gradient_clipping", "inf", "give a finite number"),
        ("gradient_accumulation_steps", 0, "give 1 or more"),
        ("max_steps", 0, "give 1 or more"),
        ("save_interval", 0, "give 1 or more"),
        ("log_interval", 0, "give 1 or more"),
        ("seed", -1, "give 0 or more"),
        ("seed", 2**32, "give at most 4294967295"),
        ("tp", 0, "give 1 or more"),
        ("mbs", 0, "give 1 or more"),
        ("attn_alpha_init_value", 0, "give more than 0"),
        ("shard_param_frac", 1.5, "give at most 1"),
        ("num_layers", 0, "give 1 or more"),
        ("memory_limit", 0, "give 1 or more"),
        ("validation_freq", -1, "give 0 or more"),
        ("validation_batches", 0, "give 1 or more"),
        ("validation_fraction", 0, "give more than 0"),
        ("validation_fraction", 0.6, "give at most 0.5"),
    ],
)
def test_numbers_out_of_range_name_value_and_remedy(flag, value, remedy):
    (problem,) = problems_of(plugin="hybrid_parallel", **{flag: value})
    assert problem.startswith(f"--{flag} ") and remedy in problem


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        # 15m has 6 layers and 6 heads of 48
        ({"tp": 4, "world_size": 4}, "--tp 4 does not divide the model's 6 attention heads, 6 key and value heads"),
        ({"tp": 2, "pp": 2, "world_size": 6}, "is 4, which does not divide the 6 processes"),
        ({"tp": 2, "world_size": 1}, "does not divide the 1 process;"),
        ({"config": "70b", "tp": 16, "world_size": 16}, "8 key and value heads; give a number that does, such as 8"),
        ({"ep": 2, "world_size": 2}, "--ep 2 shares experts, and the model has none"),
        ({"config": "8x7b", "ep": 8, "tp": 2, "world_size": 8}, "--ep 8 does not divide the 4 data-parallel ranks"),
        ({"config": "8x7b", "ep": 3, "world_size": 3}, "--ep 3 does not divide the 8 experts of a layer; give a"),
        ({"config": "mixtral_8x2m", "ep": 4, "num_experts": 6, "world_size": 4}, "not divide the 6 experts of a layer"),
        ({"config": "mixtral_8x2m", "ep": 2, "sp": 2, "world_size": 4}, "--ep 2 and --sp 2 would each spread"),
        ({"pp": 7, "batch_size": 7, "world_size": 7}, "--pp 7 is more than the model's 6 layers; give at most 6"),
        ({"pp": 2, "batch_size": 5, "mbs": 2, "world_size": 2}, "--batch_size 5 is not divisible by --mbs 2"),
        ({"pp": 4, "batch_size": 2, "world_size": 4}, "makes 2, fewer than the --pp 4 stages"),
        ({"pp": 2, "zero": 2, "world_size": 2}, "--zero 2 with --pp 2: under a pipeline"),
        ({"mixed_precision": "fp32", "zero": 1}, "in fp32 --plugin hybrid_parallel has stage 0"),
        ({"zero": 3}, "has stage 0 or 1 or 2"),
    ],
)
def test_layouts_that_cannot_be_are_told(flags, expected):
    (problem,) = problems_of(plugin="hybrid_parallel", **flags)
    assert expected in problem and "\n" not in problem


def test_layers_need_not_divide_over_stages_and_accumulation_feeds_the_pipeline():
    assert problems_of(plugin="3d", pp=4, batch_size=4, world_size=4) == []
    assert problems_of(plugin="3d", pp=4, batch_size=2, gradient_accumulation_steps=2, world_size=4) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"plugin": "gemini", "mixed_precision": "fp32"}, "fp32: --plugin gemini has fp16 and bf16 only"),
        ({"plugin": "gemini_auto", "mixed_precision": "fp32"}, "zero2, zero2_cpu, hybrid_parallel"),
        (
            {"plugin": "zero2", "tp": 2, "world_size": 2},
            "no tensor parallelism; take --plugin gemini or gemini_auto or",
        ),
        ({"plugin": "zero2", "extra_dp": 2, "world_size": 2}, "no extra data parallelism; take --plugin gemini or"),
        ({"plugin": "gemini", "extra_dp": 3, "tp": 2, "world_size": 8}, "not divide the 4 data-parallel ranks; give a"),
        (
            {"plugin": "gemini", "config": "8x7b", "ep": 2, "world_size": 2},
            "no expert parallelism; take --plugin zero1 or",
        ),
        (
            {"plugin": "gemini_auto", "config": "8x7b", "ep": 2, "world_size": 2},
            "or --ep 1, with which each rank computes its tokens by all experts, gathered where they are sharded",
        ),
        ({"plugin": "zero2", "config": "mixtral_8x2m", "compile": True, "world_size": 1}, "which cannot be traced"),
        ({"plugin": "gemini", "pp": 2, "world_size": 2}, "no pipeline parallelism"),
        ({"plugin": "gemini", "zero": 2}, "shards in its own way"),
        ({"plugin": "3d_cpu", "zero": 0}, "--zero 0: --plugin hybrid_parallel_cpu has stage 1 or 2"),
        ({"plugin": "3d_cpu", "zero": 2, "pp": 2, "world_size": 2}, "--plugin hybrid_parallel_cpu has stage 1"),
        ({"plugin": "3d_cpu", "mixed_precision": "fp32"}, "--plugin hybrid_parallel_cpu has fp16 and bf16 only"),
        ({"plugin": "fsdp", "zero": 2}, "--zero 2: --plugin fsdp shards in its own way; leave the flag out"),
        ({"plugin": "fsdp", "tp": 2, "world_size": 2}, "--plugin fsdp has no tensor parallelism"),
        ({"plugin": "fsdp", "shard_size": 2, "world_size": 4}, "no effect with --plugin fsdp; leave it out, or take"),
        ({"plugin": "hsdp", "shard_size": 4, "world_size": 6}, "does not divide the 6 processes; give a number that"),
        ({"plugin": "hsdp", "shard_size": 2, "world_size": 1}, "does not divide the 1 process; give a number that"),
        ({"plugin": "zero1", "zero": 2}, "--zero 2: --plugin zero1 has stage 1"),
        ({"plugin": "ddp", "zero": 1}, "--zero 1: --plugin ddp has stage 0"),
        ({"plugin": "zero2", "zero": 1}, "--zero 1: --plugin zero2 has stage 2"),
        ({"plugin": "zero2", "shard_param_frac": 0.5}, "no effect with --plugin zero2"),
        ({"plugin": "gemini_auto", "offload_optim_frac": 1}, "no effect with --plugin gemini_auto"),
        ({"plugin": "gemini", "offload_param_frac": 1}, "needs --shard_param_frac 1 (it is 1) and"),
        ({"plugin": "gemini", "memory_limit": 100}, "or take gemini_auto"),
        ({"plugin": "gemini", "fp32_gradients": True}, "sums in its working precision; take --plugin zero1 or"),
        ({"plugin": "3d", "fp32_gradients": True}, "sums them in fp32 with --zero above 0; give --zero 1"),
    ],
)
def test_what_a_plugin_cannot_do_is_told(flags, expected):
    (problem,) = problems_of(**flags)
    assert expected in problem and "\n" not in problem


def test_fp32_and_offload_are_accepted_where_they_exist():
    for plugin in ("zero1", "zero2", "zero2_cpu", "hybrid_parallel", "ddp", "fsdp", "fsdp_cpu", "hsdp"):
        assert problems_of(plugin=plugin, mixed_precision="fp32") == []
    assert problems_of(plugin="gemini", offload_optim_frac=1, offload_param_frac=0.5) == []


def test_recomputation_is_asked_for_once():
    (problem,) = problems_of(plugin="zero2", gradient_checkpoint=True, selective_checkpointing=0)
    assert "contradicts --selective_checkpointing 0" in problem
    assert problems_of(plugin="zero2", gradient_checkpoint=True, selective_checkpointing="1/3") == []


@pytest.mark.parametrize(
    ("flags", "share"),
    [
        ({}, 0),
        ({"gradient_checkpoint": True}, 1),
        ({"selective_checkpointing": "1/3"}, 1 / 3),
        ({"gradient_checkpoint": True, "selective_checkpointing": 0.5}, 0.5),
        ({"selective_checkpointing": 0}, 0),
    ],
)
def test_the_share_of_layers_that_recompute(flags, share):
    assert RunConfig.build("pretrain", **flags).model.recomputed_share == share


def test_hsdp_shares_a_copy_within_a_machine_unless_told():
    run, hsdp = RunConfig.build("pretrain", plugin="hsdp"), STRATEGIES.get("hsdp")
    assert hsdp.shard_ranks(run, 64, 8) == 8
    assert hsdp.shard_ranks(run, 64) == 64
    assert hsdp.shard_ranks(run.replace(shard_size=16), 64, 8) == 16
    assert STRATEGIES.get("fsdp").shard_ranks(run, 64, 8) == 64


def test_messages_follow_the_table(monkeypatch):
    """A capability that is taken away is refused without a line of code changed."""
    zero2 = STRATEGIES.get("zero2")
    poor = replace(zero2.capability, precisions=("bf16",), accumulation=False, clipping=False)
    monkeypatch.setattr(zero2, "capability", poor)
    problems = problems_of(plugin="zero2", mixed_precision="fp16", gradient_accumulation_steps=2)
    assert [problem.split()[0] for problem in problems] == [
        "--mixed_precision",
        "--gradient_accumulation_steps",
        "--gradient_clipping",
    ]
    assert "bf16 only on cpu" in problems[0] and "zero2_cpu" in problems[1]


def test_what_is_not_known_is_not_judged():
    run = RunConfig.build(config="15m", plugin="zero2", tp=2)
    assert collect_problems(run) == []
    assert len(collect_problems(run, world_size=1, device="cpu")) == 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"hidden_width": 100, "num_heads": 3}, "--num_heads 3 does not divide the hidden size 100"),
        ({"hidden_width": 30, "num_heads": 6}, "makes heads of 5; rotary positions need an even number"),
        ({"num_key_value_heads": 4}, "--num_key_value_heads 4 does not divide the 6 attention heads"),
        ({"config": "17m"}, "unknown model size '17m'"),
        ({"config": "./absent.json"}, "no such file"),
        ({"norm": "rmsnorm", "ffn_alpha_init_value": 0.5}, "--norm rmsnorm has none"),
        ({"config": None, "model_path": "./absent"}, "--model_path ./absent: no such folder"),
        ({"model_path": "owner/name"}, "--config 15m contradicts --model_path owner/name"),
        ({"config": None, "model_path": "owner/name", "num_layers": 3}, "--num_layers 3 contradicts --model_path"),
    ],
)
def test_models_that_cannot_be_are_told(flags, expected):
    (problem,) = problems_of(plugin="zero2", **flags)
    assert expected in problem and "\n" not in problem


def test_finetuning_needs_a_model():
    (problem,) = collect_problems(RunConfig.build("finetune"))
    assert problem.startswith("--model_path is needed")


def test_the_weights_own_size_is_checked(tmp_path):
    fields = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    for folder in (tmp_path / "hf", tmp_path / "step_00000010" / "model"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(fields))
    for path in ("hf", "step_00000010"):
        flags = {"model_path": str(tmp_path / path), "plugin": "3d", "pp": 2}
        run = RunConfig.build("finetune", **flags)
        assert model_size(run).num_layers == 1
        (problem,) = collect_problems(run, 2, "cpu")
        assert "--pp 2 is more than the model's 1 layers" in problem


def test_benchmark_must_measure_a_step():
    (problem,) = problems_of("benchmark", num_steps=2, ignore_steps=2)
    assert "give --num_steps 3 or more" in problem


@pytest.mark.parametrize("flag", ["save_dir", "tensorboard_dir"])
def test_folders_that_cannot_be_written_are_told(tmp_path, flag):
    (tmp_path / "taken").write_text("")
    for folder in ("taken", "taken/below", "/proc/nothing/here"):
        (problem,) = problems_of(**{flag: folder})
        assert problem.startswith(f"--{flag} {folder}: ")


def test_checking_a_folder_leaves_nothing_behind(tmp_path):
    assert why_not_writable(tmp_path / "a" / "b") is None
    assert why_not_writable(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_load_must_exist_or_be_auto(tmp_path):
    assert problems_of(load="auto") == []
    assert problems_of(load=str(tmp_path)) == []
    (problem,) = problems_of(load="nowhere")
    assert problem.startswith("--load nowhere: no such folder")


def test_save_dir_and_dataset_cannot_be_taken_away():
    problems = problems_of(save_dir="none", dataset="none")
    assert [problem.split()[0] for problem in problems] == ["--dataset", "--save_dir"]


@pytest.mark.parametrize(("warmup", "steps", "warned"), [(10, 10, True), (11, 10, True), (9, 10, False), (0, 1, False)])
def test_a_warmup_not_shorter_than_the_run_is_warned_about(warmup, steps, warned):
    run = RunConfig.build(warmup_steps=warmup, max_steps=steps)
    assert bool(warnings(run)) is warned
    open_ended = RunConfig.build(warmup_steps=warmup)
    assert warnings(open_ended) == []
    assert bool(warnings(open_ended, total_steps=steps)) is warned


def test_swapping_the_norm_of_weights_is_warned_about():
    assert warnings(RunConfig.build(model_path="a/b")) == []
    (warning,) = warnings(RunConfig.build(model_path="a/b", norm="dyt"))
    assert "experiment" in warning


def test_an_unknown_size_is_told_together_with_values_out_of_range():
    problems = collect_problems(RunConfig.build(config="7x", max_length=1))
    assert [problem.split()[0] for problem in problems] == ["--max_length", "--config:"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"validation_dataset": "held.jsonl"}, "--validation_dataset held.jsonl has no effect without"),
        ({"validation_dataset": "held.jsonl", "validation_freq": 0}, "has no effect without --validation_freq"),
        (
            {"validation_freq": 5, "validation_dataset": "held.jsonl", "validation_fraction": 0.1},
            "--validation_dataset held.jsonl and --validation_fraction 0.1: give one of the two",
        ),
        (
            {"score_held_out": True, "dataset": "t.jsonl"},
            "--score_held_out is for --dataset sample, and this is t.jsonl: leave it out",
        ),
    ],
)
def test_validation_that_cannot_be_is_told(flags, expected):
    (problem,) = problems_of(**flags)
    assert expected in problem and "\n" not in problem


@pytest.mark.parametrize(
    "flags",
    [
        {"validation_freq": 5, "dataset": "sample"},
        {"validation_freq": 5, "validation_dataset": "held.jsonl"},
        {"validation_freq": 5, "validation_fraction": 0.1},
        {"validation_fraction": 0.1},
        {"validation_freq": 0},
    ],
)
def test_validation_that_has_something_to_look_at_is_no_problem(flags):
    assert problems_of(**flags) == []
