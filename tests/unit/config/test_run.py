import dataclasses
import re
from pathlib import Path

import pytest

from llama_dyt.config import KINDS, RunConfig
from llama_dyt.config.run import all_options, groups_of
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.training.settings import step_limit, tokens_per_step


@pytest.mark.parametrize("kind", KINDS)
def test_yaml_round_trip_gives_the_same_run(kind):
    flags = {"lr": 1.2345678901234e-5, "plugin": "3d", "tp": 2, "mixed_precision": "fp32", "gradient_checkpoint": True}
    run = RunConfig.build(kind, **flags)
    text = run.to_yaml()
    assert RunConfig.from_yaml(text) == run
    assert f"kind: {kind}" in text


def test_every_field_survives_the_round_trip():
    """Each flag in turn is given a value that is not its default: none may be forgotten on the way."""
    other = {str: "some_name", int: 7, float: 0.75, bool: True}
    for kind in KINDS:
        for opt in all_options(kind):
            if opt.name in ("config_file", "dry_run", "dry_run_processes"):
                continue
            value = next(c for c in opt.choices if c != opt.default[kind]) if opt.choices else other[opt.value_type]
            value = not opt.default[kind] if opt.value_type is bool else value
            value = (value,) if opt.repeated else value
            run = RunConfig.build(kind, **{opt.name: value})
            assert run.flags()[opt.name] == value
            assert RunConfig.from_yaml(run.to_yaml()) == run, opt.name


def test_yaml_keys_are_the_flags_of_the_entry():
    keys = re.findall(r"^(\w+):", RunConfig.build("finetune").to_yaml(), flags=re.M)
    expected = [
        opt.name for opt in all_options("finetune") if opt.name not in ("config_file", "dry_run", "dry_run_processes")
    ]
    assert keys == ["kind", *expected]
    assert "config" not in keys


def test_no_two_fields_share_a_name_and_every_one_is_documented():
    names = [field.name for settings in groups_of().values() for field in dataclasses.fields(settings)]
    assert len(names) == len(set(names))
    for opt in all_options():
        assert opt.help.endswith("."), f"{opt.name}: the help is a sentence"
        assert opt.entries, opt.name


def test_defaults_are_those_of_document_001():
    flags = RunConfig.build().flags()
    documented = {
        "config": "7b",
        "plugin": "gemini",
        "dataset": "togethercomputer/RedPajama-Data-1T-Sample",
        "num_epochs": 1,
        "batch_size": 2,
        "lr": 3e-4,
        "weight_decay": 0.1,
        "warmup_steps": 2000,
        "gradient_checkpoint": False,
        "max_length": 4096,
        "mixed_precision": "fp16",
        "save_interval": 1000,
        "save_dir": "checkpoint",
        "load": None,
        "gradient_clipping": 1.0,
        "tensorboard_dir": "tb_logs",
        "flash_attention": False,
    }
    assert {name: flags[name] for name in documented} == documented
    finetune = RunConfig.build("finetune").flags()
    assert finetune["dataset"] == "yizhongw/self_instruct"
    assert finetune["task_name"] == "super_natural_instructions"
    assert "config" not in finetune


def test_plain_construction_is_a_pretraining_run_with_defaults():
    assert RunConfig.build() == RunConfig.build("pretrain")


def test_weights_to_start_from_bring_size_and_norm():
    run = RunConfig.build("pretrain", model_path="some/folder")
    assert (run.model.config, run.model.norm) == (None, None)
    assert RunConfig.build("pretrain", model_path="some/folder", norm="rmsnorm").model.norm == "rmsnorm"
    assert RunConfig.build("finetune").model.norm is None
    assert RunConfig.build("pretrain").model.norm == "dyt"


def test_size_by_hand():
    size = (
        RunConfig.build(config="15m", hidden_width=64, num_heads=4, num_layers=2, intermediate_size=96)
        .model.sized()
        .size
    )
    assert (size.hidden_size, size.num_key_value_heads, size.num_layers, size.intermediate_size) == (64, 4, 2, 96)


def test_home_is_expanded_where_no_shell_did(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert RunConfig.from_yaml("save_dir: ~/runs").run.save_dir == "/somewhere/runs"


def test_build_tells_all_wrong_flags():
    with pytest.raises(ConfigurationError) as caught:
        RunConfig.build("pretrain", learning_rat=1, batch_size="two")
    assert len(caught.value.problems) == 2
    assert "learning_rate" in caught.value.problems[0]


def test_replace_changes_only_what_is_named():
    run = RunConfig.build("pretrain", config="15m")
    other = run.replace(lr=1.0, max_steps=3)
    assert other.replace(lr=run.optimizer.lr, max_steps=None) == run
    assert (other.optimizer.lr, step_limit(other)) == (1.0, 3)
    with pytest.raises(TypeError, match="speed"):
        run.replace(speed=9)


def test_tokens_a_step_count_accumulation_and_only_data_parallel_ranks():
    run = RunConfig.build(
        plugin="3d", tp=2, pp=2, batch_size=3, gradient_accumulation_steps=5, max_length=10
    )  # 8 ranks make 2 data-parallel ones
    assert tokens_per_step(run, world_size=8) == 3 * 5 * 2 * 10


def test_yaml_scientific_notation_without_a_point_is_a_number():
    assert RunConfig.from_yaml("lr: 3e-4").optimizer.lr == 3e-4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plugn: zero2", "unknown key 'plugn': did you mean 'plugin'"),
        ("lr: 1e-3\nlr: 2e-3", "line 2: not usable YAML: key 'lr' stands twice"),
        ("weight_decay: 0.1\nweigth-decay: 0.2", "given twice"),
        ("batch_size: 2.5", "2.5 is not a whole number"),
        ("batch_size: true", "True is not a whole number"),
        ("lr:", "needs a number"),
        ("dry_run: maybe", "neither true nor false"),
        ("norm: groupnorm", "unknown norm 'groupnorm'"),
        ("- lr", "holds a list"),
        ("lr: [1", "line 1"),
        ("kind: pretrian", "did you mean 'pretrain'"),
        ("model: {config: 7b}", "unknown key 'model'"),
    ],
)
def test_wrong_yaml_is_told_in_one_line(text, expected):
    with pytest.raises(ConfigurationError) as caught:
        RunConfig.from_yaml(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_messages_about_a_file_name_it(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("lr: fast\nsped: 3\nconfig_file: other.yaml\n")
    with pytest.raises(ConfigurationError) as caught:
        RunConfig.from_yaml(file)
    assert len(caught.value.problems) == 3
    assert all(problem.startswith(f"{file}: ") for problem in caught.value.problems)
    with pytest.raises(ConfigurationError, match="No such file"):
        RunConfig.from_yaml(Path(tmp_path / "none.yaml"))
