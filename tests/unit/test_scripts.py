"""The scripts do what they say, tried with stand-ins for what they start: no network, no training."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llama_dyt.config.check import collect_problems
from llama_dyt.config.cli import read

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted(REPOSITORY.glob("scripts/benchmark_*/*.sh"))


def make_command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def run_script(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    kept = ("NPROC", "CONFIG", "BATCH", "LENGTH", "TP", "PP", "ZERO", "PYTHON", "VENV", "SAVE_DIR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    return subprocess.run(
        ["bash", str(path), *arguments],
        cwd=path.parent,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def environment(tmp_path) -> Path:
    """A stand-in for .venv whose commands print what they are asked to do, one word a line."""
    for command in ("colossalai", "torchrun", "python"):
        make_command(tmp_path / "venv/bin" / command, f"printf '%s\\n' '== {command}' \"$@\"")
    return tmp_path / "venv"


# --- benchmarks


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: f"{p.parent.name}/{p.name}")
@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_benchmark_starts_small_on_one_cpu_machine(path, num_processes, environment, tmp_path):
    folder = copy_of(path.parent, tmp_path)
    result = run_script(folder / path.name, CONFIG="15m", NPROC=str(num_processes), VENV=str(environment))
    assert result.returncode == 0, result.stderr
    words = result.stdout.split("== colossalai\n")[1].splitlines()
    assert words[:5] == ["run", "--nproc_per_node", str(num_processes), "--master_port", "29500"]
    assert words[5].endswith("/benchmark.py")
    run, problems = read("benchmark", words[6:])
    assert problems + collect_problems(run, num_processes, "cpu") == []
    assert (run.model.config, run.data.max_length, run.data.batch_size) == ("15m", 64, 2)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_benchmark_runs_on_the_hosts_in_its_folder(path, environment, tmp_path):
    folder = copy_of(path.parent, tmp_path)
    shutil.copy(path.parent / "hosts.txt.example", folder / "hosts.txt")
    result = run_script(folder / path.name, "--num_steps", "7", NPROC="8", VENV=str(environment))
    assert result.returncode == 0, result.stderr
    words = result.stdout.split("== colossalai\n")[1].splitlines()
    assert words[:5] == ["run", "--nproc_per_node", "8", "--hostfile", "hosts.txt"]
    run, problems = read("benchmark", words[8:])
    assert problems + collect_problems(run, 32, "cuda") == []
    assert run.model.config == ("70b" if "70B" in path.parent.name else "7b")
    assert run.data.max_length == 4096 and run.benchmark.num_steps == 7


def test_variables_that_break_the_launcher_are_left_out_and_named(environment, tmp_path):
    folder = copy_of(REPOSITORY / "scripts/benchmark_7B", tmp_path)
    make_command(environment / "bin/colossalai", "env")
    result = run_script(folder / "gemini.sh", VENV=str(environment), QUOTED='a "b"', PLAIN="a b", COMMAND="$(date)")
    assert "PLAIN=a b" in result.stdout
    assert "QUOTED=" not in result.stdout and "COMMAND=" not in result.stdout
    assert "QUOTED" in result.stderr and "COMMAND" in result.stderr


def copy_of(folder: Path, tmp_path: Path) -> Path:
    """The benchmark scripts in a repository of their own, so that a user's hosts.txt does not matter."""
    copy = tmp_path / "repository/scripts"
    copy.mkdir(parents=True, exist_ok=True)
    for script in REPOSITORY.glob("scripts/*.sh"):
        shutil.copy(script, copy)
    return Path(shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("hosts.txt")))


# --- quickstart


@pytest.fixture
def quickstart(tmp_path, environment):
    """Runs the quickstart with a set-up that does nothing; gives its result."""
    scripts = tmp_path / "repository/scripts"
    scripts.mkdir(parents=True)
    for name in ("quickstart.sh", "common.sh"):
        shutil.copy(REPOSITORY / "scripts" / name, scripts)
    make_command(scripts / "setup.sh", "true")

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return run_script(scripts / "quickstart.sh", *arguments, VENV=str(environment), **variables)

    run.save_dir = tmp_path / "repository/runs/quickstart"
    return run


def test_quickstart_pretrains_and_generates(quickstart):
    result = quickstart("--max_steps", "3")
    assert result.returncode == 0, result.stderr
    pretraining, generation = result.stdout.split("== python\n")[1:]
    words = pretraining.splitlines()
    assert words[0] == "pretrain.py" and "--load" not in words
    run, problems = read("pretrain", words[1 : words.index("3") + 1])
    assert run.run.save_dir == "runs/quickstart" and run.run.max_steps == 3
    assert [p for p in problems if "config_file" not in p] == []
    assert generation.splitlines()[:3] == ["generate.py", "--model_path", "runs/quickstart"]


def test_quickstart_starts_several_processes_when_asked(quickstart):
    result = quickstart(NPROC="2")
    assert "== torchrun\n--standalone\n--nproc_per_node\n2\npretrain.py\n" in result.stdout


def test_quickstart_never_mixes_a_new_run_with_an_old_one(quickstart):
    (quickstart.save_dir / "step_00000100").mkdir(parents=True)
    result = quickstart()
    assert result.returncode == 2
    assert "== python" not in result.stdout
    assert "--resume" in result.stderr and "--fresh" in result.stderr


def test_quickstart_resumes_when_asked(quickstart):
    (quickstart.save_dir / "step_00000100").mkdir(parents=True)
    result = quickstart("--resume")
    assert result.returncode == 0 and "--load\nauto\n" in result.stdout


def test_quickstart_starts_anew_when_asked_and_keeps_the_old_run(quickstart):
    (quickstart.save_dir / "step_00000100").mkdir(parents=True)
    result = quickstart("--fresh")
    assert result.returncode == 0 and "--load" not in result.stdout
    (aside,) = quickstart.save_dir.parent.iterdir()
    assert (aside / "step_00000100").is_dir()


@pytest.mark.parametrize("arguments", [("--resume",), ("--fresh", "--resume"), ("--load", "x"), ("-o", "elsewhere")])
def test_quickstart_refuses_what_contradicts_itself(quickstart, arguments):
    result = quickstart(*arguments)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "== python" not in result.stdout


# --- set-up


def set_up(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return run_script(REPOSITORY / "scripts/setup.sh", *arguments, **{"VENV": str(tmp_path / "new"), **variables})


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("echo 3.10.4", "is Python 3.10.4; this project needs 3.11 or 3.12"),
        ("exit 1", "does not run"),
        ('case "$*" in *ensurepip*) exit 1 ;; *) echo 3.12.1 ;; esac', "has no venv module"),
    ],
)
def test_setup_refuses_a_python_it_cannot_use(tmp_path, python, reason):
    make_command(tmp_path / "python", python)
    result = set_up(tmp_path, PYTHON=str(tmp_path / "python"))
    assert result.returncode == 1 and reason in result.stderr
    assert not (tmp_path / "new").exists()


def test_setup_refuses_a_full_disk_before_it_starts(tmp_path):
    make_command(tmp_path / "bin/df", "printf 'head\\nfs 100 90 1048576 90%% /\\n'")
    result = set_up(tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert result.returncode == 1 and "has 1 GB free and set-up needs" in result.stderr
    assert not (tmp_path / "new").exists()


def test_setup_never_deletes_a_folder_that_is_no_environment(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/thesis.txt").write_text("years of work", encoding="utf-8")
    result = set_up(tmp_path)
    assert result.returncode == 1 and "is no virtual environment" in result.stderr
    assert (tmp_path / "new/thesis.txt").exists()


def test_setup_refuses_an_unknown_option(tmp_path):
    result = set_up(tmp_path, "--fast")
    assert result.returncode == 1 and "unknown option '--fast'" in result.stderr


# --- the GPU check


def test_gpu_check_says_that_nothing_was_checked_without_a_gpu(environment):
    make_command(environment / "bin/python", 'case "$*" in *get_device_name*) echo ;; *) echo 2.13.0 ;; esac')
    result = run_script(REPOSITORY / "scripts/gpu_check.sh", VENV=str(environment))
    assert result.returncode == 1 and "nothing was checked" in result.stderr
