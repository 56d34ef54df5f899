import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import llama_dyt
from llama_dyt.boosters.strategy import STRATEGIES
from llama_dyt.config import KINDS, RunConfig
from llama_dyt.config.cli import build_parser, parse, read
from llama_dyt.config.run import all_options
from llama_dyt.core.errors import ConfigurationError


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems_of(kind, *argv, **where):
    with pytest.raises(ConfigurationError) as caught:
        parse(kind, list(argv), **where)
    return caught.value.problems


def test_short_forms_of_pretrain_are_those_of_document_001():
    run = parse(
        "pretrain",
        shlex.split(
            "-c 13b -p zero2 -d sample -e 2 -b 4 -w 0.2 -s 10 -g -l 128 -x bf16 -i 5 -o out -t tb -a --lr 1e-3"
        ),
    )
    flags = run.flags()
    given = {
        "config": "13b",
        "plugin": "zero2",
        "dataset": "sample",
        "num_epochs": 2,
        "batch_size": 4,
        "weight_decay": 0.2,
        "warmup_steps": 10,
        "gradient_checkpoint": True,
        "max_length": 128,
        "mixed_precision": "bf16",
        "save_interval": 5,
        "save_dir": "out",
        "tensorboard_dir": "tb",
        "flash_attention": True,
        "lr": 1e-3,
    }
    assert {name: flags[name] for name in given} == given
    assert parse("pretrain", ["-f", "auto"]).run.load == "auto"


def test_short_forms_of_benchmark_mean_what_they_mean_there():
    run = parse(
        "benchmark", shlex.split("-c 70b -p 3d -b 8 -s 9 -i 3 -g -l 256 -w 0.5 -x --tp 4 --pp 2 --mbs 2 --zero 1")
    )
    assert (run.benchmark.num_steps, run.benchmark.ignore_steps) == (9, 3)
    assert (run.booster.warmup_ratio, run.model.flash_attention) == (0.5, True)
    assert (run.optimizer.weight_decay, run.optimizer.warmup_steps) == (0.1, 0)
    assert (run.booster.tp, run.booster.pp, run.booster.mbs, run.booster.zero) == (4, 2, 2, 1)
    assert run.booster.plugin == "hybrid_parallel"


def test_benchmarks_documented_values_are_accepted_for_every_plugin():
    fractions = shlex.split("--shard_param_frac 1 --offload_optim_frac 0 --offload_param_frac 0 --tp 1 --pp 1 --mbs 1")
    for plugin in STRATEGIES.names():
        parse("benchmark", ["-p", plugin, *fractions], world_size=1, device="cpu")
    run = parse("benchmark", ["-p", "gemini_auto", "-m", "40000"], world_size=1, device="cpu")
    assert run.booster.memory_limit == 40000


def test_finetune_has_no_size_and_no_short_warmup():
    assert parse("finetune", ["--model_path", "owner/name", "--task_name", "t"]).data.task_name == "t"
    assert any("--config is a flag of pretrain.py" in p for p in problems_of("finetune", "--config", "7b"))
    assert any("unknown flag '-s'" in p for p in problems_of("finetune", "-s", "3"))


@pytest.mark.parametrize(
    ("spelling", "read_value"),
    [
        ("--weigth_decay=0.5", lambda run: run.optimizer.weight_decay == 0.5),
        ("--weight-decay=0.5", lambda run: run.optimizer.weight_decay == 0.5),
        ("--weigth-decay=0.5", lambda run: run.optimizer.weight_decay == 0.5),
        ("--grad_clip=0.5", lambda run: run.optimizer.gradient_clipping == 0.5),
        ("--grad_checkpoint", lambda run: run.model.gradient_checkpoint),
        ("--gradient-checkpoint", lambda run: run.model.gradient_checkpoint),
        ("--gradient_checkpoint=true", lambda run: run.model.gradient_checkpoint),
        ("--gradient_checkpoint=false", lambda run: not run.model.gradient_checkpoint),
        ("--no-decay_all_parameters", lambda run: not run.optimizer.decay_all_parameters),
        ("--no_decay_all_parameters", lambda run: not run.optimizer.decay_all_parameters),
        ("--no-decay-all-parameters", lambda run: not run.optimizer.decay_all_parameters),
        ("--selective_checkpointing=1/4", lambda run: run.model.selective_checkpointing == 0.25),
        ("--max_steps=none", lambda run: run.run.max_steps is None),
        ("--plugin=3D", lambda run: run.booster.plugin == "hybrid_parallel"),
    ],
)
def test_every_spelling_works(spelling, read_value):
    assert read_value(parse("pretrain", [spelling]))


def test_a_switch_takes_a_word_or_none():
    run = parse("pretrain", shlex.split("-g -a true --skip_bad_lines false -l 64"))
    assert (run.model.gradient_checkpoint, run.model.flash_attention, run.data.skip_bad_lines) == (True, True, False)


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("lr: 1e-3\ngrad-clip: 0.3\nbatch_size: 8\ngradient_checkpoint: true\n")
    run = parse("pretrain", ["--config_file", str(file), "-b", "4", "--no-grad_checkpoint"])
    assert (run.optimizer.lr, run.optimizer.gradient_clipping, run.data.batch_size) == (1e-3, 0.3, 4)
    assert run.model.gradient_checkpoint is False
    assert run.optimizer.weight_decay == 0.1


def test_a_written_config_can_be_given_back(tmp_path):
    run = parse("pretrain", shlex.split("-c 15m --lr 1e-3 --max_steps 30 -s 3"))
    file = tmp_path / "config.yaml"
    file.write_text(run.to_yaml())
    assert parse("pretrain", ["--config_file", str(file)]) == run
    assert any("written for 'pretrain'" in p for p in problems_of("benchmark", "--config_file", str(file)))


def test_absent_config_file_is_a_problem():
    (problem,) = problems_of("pretrain", "--config_file", "nowhere.yaml")
    assert "nowhere.yaml" in problem and "No such file" in problem


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--plugni", "zero2"], "unknown flag '--plugni': did you mean '--plugin'?"),
        (["--wormup=3"], "unknown flag '--wormup': did you mean '--warmup_steps'?"),
        (["--max_step", "3"], "unknown flag '--max_step': did you mean '--max_steps'?"),
        (["-lr", "3e-4"], "unknown flag '-lr': did you mean '--lr'?"),
        (["-z"], "unknown flag '-z'"),
        (["--num_steps", "3"], "--num_steps is a flag of benchmark.py, not of pretrain.py"),
        (["-p", "zero3"], "--plugin: unknown plugin 'zero3': did you mean 'zero1'?"),
        (["-p", "mine"], "one of your own is brought in by --import its.module"),
        (["-c", "8bb"], "--config: unknown model size '8bb': did you mean '8b'?"),
        (["-x", "fp8"], "--mixed_precision: unknown mixed_precision 'fp8' (known: fp16, bf16, fp32)"),
        (["--norm", "dty"], "did you mean 'dyt'?"),
        (["-b", "two"], "--batch_size: 'two' is not a whole number"),
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--selective_checkpointing", "1/0"], "--selective_checkpointing: '1/0' is not a number"),
        (["--selective_checkpointing", "5/4"], "--selective_checkpointing 1.25: give at most 1"),
        (["--lr"], "--lr: needs a number"),
        (["--lr", "-1e-4"], "--lr -0.0001: give more than 0"),
        (["-w", "-1E-4"], "--weight_decay -0.0001: give 0 or more"),
        (["--max_steps", "-g"], "--max_steps: needs a value"),
        (["7b"], "unexpected '7b'"),
        (["-g", "perhaps"], "--gradient_checkpoint: 'perhaps' is neither true nor false"),
    ],
)
def test_wrong_command_line_is_told_in_one_line(argv, expected):
    (problem,) = problems_of("pretrain", *argv)
    assert expected in problem
    assert "\n" not in problem


def test_all_problems_come_together(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("lerning_rate: 1\n")
    argv = ["--plugni", "zero2", "-b", "0", "--lr", "x", "--config_file", str(file), "--tp", "3"]
    problems = problems_of("pretrain", *argv, world_size=2, device="cpu")
    for part in ("--plugni", "--batch_size 0", "--lr: 'x'", "lerning_rate"):
        assert any(part in problem for problem in problems), part
    assert str(ConfigurationError(problems)).count("\n") == len(problems) - 1


def test_layout_and_device_problems_come_with_the_rest():
    problems = problems_of("pretrain", *shlex.split("-p zero2 --tp 3 --wormup 2"), world_size=4, device="cpu")
    assert len(problems) == 4, problems


def test_read_keeps_what_could_be_read():
    run, problems = read("pretrain", ["--lr", "x", "-b", "7"])
    assert (run.data.batch_size, run.optimizer.lr) == (7, RunConfig.build().optimizer.lr)
    assert len(problems) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_help_shows_every_flag_once_with_its_default(kind, capsys):
    with pytest.raises(SystemExit) as end:
        parse(kind, ["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for opt in all_options(kind):
        lines = [line for line in shown.splitlines() if re.search(rf"^  (-\w, )?{opt.flag}( |$)", line)]
        assert len(lines) == 1, opt.flag
        if kind in opt.short:
            assert f"{opt.short[kind]}, {opt.flag}" in lines[0]
    assert "(default: 0.0003)" in " ".join(shown.split())
    assert "Also --weigth_decay." in " ".join(shown.split())


def test_no_two_flags_of_an_entry_share_a_spelling():
    for kind in KINDS:
        build_parser(kind)  # argparse refuses a conflict


def test_reading_a_command_line_imports_neither_torch_nor_transformers():
    """The package's own __init__ is left out: it registers the model classes, which is another matter."""
    package = Path(llama_dyt.__file__).parent
    code = (
        "import sys, types\n"
        "package = types.ModuleType('llama_dyt')\n"
        f"package.__path__ = [{str(package)!r}]\n"
        "sys.modules['llama_dyt'] = package\n"
        "from llama_dyt.config.cli import parse\n"
        "parse('pretrain', ['-c', '15m'], world_size=1, device='cpu')\n"
        "print([name for name in ('torch', 'transformers', 'colossalai', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
