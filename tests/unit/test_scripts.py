"""The scripts do what they say, tried with stand-ins for what they start: no network, no training."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama_dyt.config.check import collect_problems
from llama_dyt.config.cli import read
from llama_dyt.core.store import at, store_of
from llama_dyt.training.callbacks.status import write_status
from tests.s3_server import BUCKET, Fault, use

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted(REPOSITORY.glob("scripts/benchmark_*/*.sh"))
PRETRAININGS = sorted(REPOSITORY.glob("scripts/pretrain_*/*.sh"))
SIZES = {"benchmark_7B": "7b", "benchmark_70B": "70b", "benchmark_8x7B": "mixtral_8x7b"}
SMALL_SIZES = {"benchmark_8x7B": "mixtral_8x2m"}
"""Of the folders whose flags are a family's own; 15m does for the others."""


def make_command(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def run_script(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    kept = ("NPROC", "CONFIG", "BATCH", "LENGTH", "TP", "PP", "EP", "ZERO", "PYTHON", "VENV", "SAVE_DIR", "MASTER_PORT")
    kept += ("CONFIG_FILE", "NODES", "MASTER")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    return subprocess.run(
        ["bash", str(path), *arguments],
        cwd=path.parent,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
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
    size = SMALL_SIZES.get(path.parent.name, "15m")
    result = run_script(folder / path.name, CONFIG=size, NPROC=str(num_processes), VENV=str(environment))
    assert result.returncode == 0, result.stderr
    words = result.stdout.split("== colossalai\n")[1].splitlines()
    assert words[:5] == ["run", "--nproc_per_node", str(num_processes), "--master_port", "29500"]
    assert words[5].endswith("/benchmark.py")
    run, problems = read("benchmark", words[6:])
    assert problems + collect_problems(run, num_processes, "cpu") == []
    assert (run.model.config, run.data.max_length, run.data.batch_size) == (size, 64, 2)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_benchmark_runs_on_the_hosts_in_its_folder(path, environment, tmp_path):
    folder = copy_of(path.parent, tmp_path)
    example = (path.parent / "hosts.txt.example").read_text(encoding="utf-8")
    (folder / "hosts.txt").write_bytes(f"# the first is the master\r\n\r\n{example}".encode())
    result = run_script(folder / path.name, "--num_steps", "7", NPROC="8", VENV=str(environment))
    assert result.returncode == 0, result.stderr
    words = result.stdout.split("== colossalai\n")[1].splitlines()
    assert words[:5] == ["run", "--nproc_per_node", "8", "--hostfile", "hosts.txt"]
    run, problems = read("benchmark", words[8:])
    assert problems + collect_problems(run, 32, "cuda") == []
    assert run.model.config == SIZES[path.parent.name]
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


# --- pretraining


@pytest.mark.parametrize("path", PRETRAININGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_pretraining_starts_its_recipe_on_the_machines_it_is_told(path, environment, tmp_path):
    folder = copy_of(path.parent, tmp_path)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "repository/configs")
    for name, variables in {"alone": {}, "four": {"NODES": "4", "MASTER": "node1"}}.items():
        if name == "four":
            shutil.copy(path.parent / "hosts.txt.example", folder / "hosts.txt")
        result = run_script(folder / path.name, "--max_steps", "7", NPROC="8", VENV=str(environment), **variables)
        assert result.returncode == 0, result.stderr
        launcher, program = result.stdout.removeprefix("== ").split("\npretrain.py\n")
        command, *words = launcher.splitlines()
        assert command == {"colossalai_run": "colossalai", "torchrun": "torchrun"}[path.stem]
        assert words[words.index("--nproc_per_node") + 1] == "8"
        many = {f"{folder}/hosts.txt", "node1:29500"} & set(words)
        assert bool(many) == (name == "four")
        run, problems = read_in(tmp_path / "repository", "pretrain", program.splitlines())
        assert problems + collect_problems(run, 32 if many else 8, "cuda") == []
        assert (run.model.config, run.run.max_steps, run.run.load) == ("mixtral_8x7b", 7, "auto")


def test_torchrun_on_many_machines_has_to_be_told_where_they_meet(environment, tmp_path):
    folder = copy_of(REPOSITORY / "scripts/pretrain_8x7B", tmp_path)
    result = run_script(folder / "torchrun.sh", NODES="2", VENV=str(environment))
    assert result.returncode != 0 and "NODES=2 MASTER=node1 bash torchrun.sh" in result.stderr
    assert "== torchrun" not in result.stdout


def read_in(folder: Path, kind: str, words: list[str]):
    """What an entry that is started there reads."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return read(kind, words)
    finally:
        os.chdir(before)


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


def test_setup_puts_our_reading_of_host_files_before_colossalais_command(tmp_path):
    venv = tmp_path / "new"
    make_command(venv / "bin/python", 'case "$*" in *version_info*) echo 3.11.7 ;; *) echo "$1" ;; esac')
    (venv / "pyvenv.cfg").touch()
    built_from = (REPOSITORY / "requirements.txt").read_bytes() + b"colossalai==0.5.0\n3.11.7\n"
    (venv / ".done-base").write_text(hashlib.sha256(built_from).hexdigest() + "\n", encoding="utf-8")
    result = set_up(tmp_path)
    assert result.returncode == 0, result.stderr
    command = venv / "bin/colossalai"
    assert subprocess.run([command, "run"], capture_output=True, text=True).stdout == f"{command}\n"
    text = command.read_text(encoding="utf-8")
    assert f"sys.path.append('{REPOSITORY}')" in text and "llama_dyt.launch.colossalai_run import main" in text


# --- signals

SAVES_AND_STOPS = """
import signal, sys, time

def save(number, frame):
    print("saved on", signal.Signals(number).name, flush=True)
    sys.exit(75)

for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), save)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_what_a_script_runs_gets_its_signals_and_nothing_is_left_running(name, tmp_path):
    (tmp_path / "saves.py").write_text(SAVES_AND_STOPS, encoding="utf-8")
    line = f". scripts/common.sh && set -e && run_with_signals {sys.executable} {tmp_path}/saves.py; echo not reached"
    number = getattr(signal, name)
    # Bash cannot heed what is ignored when it starts, as SIGHUP is under nohup.
    heeded = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}
    script = subprocess.Popen(["bash", "-c", line], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, **heeded)
    assert script.stdout.readline() == "ready\n"
    script.send_signal(number)
    printed, _ = script.communicate(timeout=60)  # until nobody holds its output
    assert (printed, script.returncode) == (f"saved on {name}\n", 75)


def test_the_quickstart_runs_everything_long_so_and_says_how_it_goes_on(environment, tmp_path):
    text = (REPOSITORY / "scripts/quickstart.sh").read_text(encoding="utf-8")
    assert len(re.findall(r"^run_with_signals ", text, re.MULTILINE)) == 2
    assert not re.findall(r"^ *(?:python|torchrun) (?!scripts/run_status)", text, re.MULTILINE)
    folder = copy_of(REPOSITORY / "scripts/slurm", tmp_path).parent
    make_command(folder / "setup.sh", "true")
    stopped = """mkdir -p "$SAVE_DIR" && echo '{"state": "stopped"}' >"$SAVE_DIR/status.json"; exit 75"""
    reads = 'cat "$2/status.json"'
    make_command(environment / "bin/python", f'case "$1" in pretrain.py) {stopped} ;; *) {reads} ;; esac')
    result = run_script(folder / "quickstart.sh", SAVE_DIR=str(tmp_path / "a run"), VENV=str(environment))
    assert result.returncode == 75, result.stderr
    assert result.stdout.splitlines()[-1].endswith(f"SAVE_DIR={tmp_path}/a\\ run bash scripts/quickstart.sh --resume")


# --- Slurm

BATCH_SCRIPTS = sorted(REPOSITORY.glob("scripts/slurm/*.sbatch"))


@pytest.fixture
def slurm(tmp_path, environment):
    """Runs a batch script with stand-ins for Slurm's programs; `srun` is what the job does in its save_dir."""

    def run(path: Path, srun: str, *words: str, state: str = "RUNNING", **more: str) -> subprocess.CompletedProcess:
        make_command(tmp_path / "bin/srun", f'env | grep -E "STOP_SECONDS|SHUTDOWN"; cd {tmp_path}/run && {srun}')
        make_command(tmp_path / "bin/squeue", f"echo {state}")
        make_command(environment / "bin/python", f'exec {sys.executable} "$@"')
        make_command(tmp_path / "bin/scontrol", 'case "$1" in show) echo node1 ;; *) echo "== scontrol $*" ;; esac')
        variables = {"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node1", "SLURM_NNODES": "1"}
        variables |= {"SLURM_SUBMIT_DIR": str(REPOSITORY), "SAVE_DIR": str(tmp_path / "run"), "MODEL_PATH": "model"}
        variables["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return run_script(path, *words, VENV=str(environment), **variables, **more)

    (tmp_path / "run").mkdir()
    return run


def status_of_a_run(state: str, step: int, ends_with: int) -> str:
    return f"""echo '{{"state": "{state}", "step": {step}}}' >status.json; exit {ends_with}"""


@pytest.mark.parametrize("path", BATCH_SCRIPTS, ids=lambda p: p.name)
def test_a_job_whose_run_saved_and_stopped_is_put_back_in_the_queue_once_for_every_time(path, slurm):
    for step in (3, 6):
        result = slurm(path, status_of_a_run("stopped", step, ends_with=1))
        assert result.returncode == 1 and "== scontrol requeue 42" in result.stdout, result.stderr
    result = slurm(path, "exit 2")  # what is in the folder is of the time before
    assert result.returncode == 2 and "requeue" not in result.stdout
    result = slurm(path, status_of_a_run("stopped", 9, ends_with=75), state="COMPLETING")  # somebody cancelled it
    assert result.returncode == 75 and "requeue" not in result.stdout
    result = slurm(path, status_of_a_run("finished", 12, ends_with=0))
    assert result.returncode == 0 and "requeue" not in result.stdout


@pytest.mark.parametrize("path", BATCH_SCRIPTS, ids=lambda p: p.name)
def test_a_job_whose_run_failed_is_put_back_as_long_as_it_saves_before_it_fails(path, slurm):
    for step in (3, 6):
        result = slurm(path, status_of_a_run("running", step, ends_with=1))
        assert result.returncode == 1 and "failed after a save; putting job 42 back" in result.stdout, result.stderr
        assert "== scontrol requeue 42" in result.stdout
    result = slurm(path, "exit 1")  # again, and no step further
    assert result.returncode == 1 and "requeue" not in result.stdout
    result = slurm(path, status_of_a_run("running", 9, ends_with=1), REQUEUE_FAILED="no")
    assert result.returncode == 1 and "requeue" not in result.stdout
    result = slurm(path, status_of_a_run("running", 12, ends_with=1), state="COMPLETING")
    assert result.returncode == 1 and "requeue" not in result.stdout


@pytest.mark.parametrize("words", [["--save_dir", "runs/x"], ["--save_dir=runs/x"], ["-o", "runs/x"], ["-oruns/x"]])
def test_a_second_place_for_the_run_is_refused_since_the_job_would_not_look_there(words, slurm):
    path = REPOSITORY / "scripts/slurm/pretrain.sbatch"
    result = slurm(path, "true", *words)
    assert result.returncode == 2 and "SAVE_DIR=… sbatch" in result.stderr
    assert "STOP_SECONDS" not in result.stdout, "nothing was started"


def test_how_a_run_stands_is_read_from_a_store_too(s3_server, tmp_path, monkeypatch):
    s3 = use(s3_server, monkeypatch, tmp_path / "cache")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    folder, script = at(f"s3://{BUCKET}/run"), REPOSITORY / "scripts/run_status.py"

    def told() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, script, folder.address], capture_output=True, text=True)

    assert (told().returncode, told().stdout) == (0, "")
    store_of(folder).write_text(folder / "COMPLETE", "")  # a folder is there where a file is
    write_status(folder, "stopped", 3, 9, save_seconds=1.0)
    assert '"state": "stopped"' in told().stdout
    s3.faults.append(Fault("", "denied"))
    assert told().returncode == 2 and told().stderr.startswith(f"error: {folder.address}/status.json cannot be read")


@pytest.mark.parametrize("path", BATCH_SCRIPTS, ids=lambda p: p.name)
def test_the_signal_comes_as_early_as_the_run_is_told(path, slurm):
    text = path.read_text(encoding="utf-8")
    (early,) = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", text, re.MULTILINE)
    for goes_on_in in re.findall(r"^exec bash .*/(\S+\.sbatch)", text, re.MULTILINE):
        text = (path.parent / goes_on_in).read_text(encoding="utf-8")
    told = slurm(path, "true").stdout.splitlines()
    assert f"LLAMA_DYT_STOP_SECONDS={early}" in told
    assert (f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={early}" in told) == ("srun torchrun" in text)


# --- the GPU check


def test_gpu_check_says_that_nothing_was_checked_without_a_gpu(environment):
    make_command(environment / "bin/python", 'case "$*" in *get_device_name*) echo ;; *) echo 2.13.0 ;; esac')
    result = run_script(REPOSITORY / "scripts/gpu_check.sh", VENV=str(environment))
    assert result.returncode == 1 and "nothing was checked" in result.stderr


def test_set_up_makes_the_package_importable_from_any_folder_without_a_network(tmp_path):
    """By the words of pip that stand in setup.sh, into a prefix in place of the environment."""
    script = (REPOSITORY / "scripts/setup.sh").read_text(encoding="utf-8")
    words = re.search(r"pip_install (.* -e \.) ", script)[1].split()
    assert "--no-index" in words
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--prefix", str(tmp_path), *words]
    subprocess.run(install, cwd=REPOSITORY, check=True, capture_output=True, timeout=240)
    (site,) = tmp_path.glob("lib/*/site-packages")
    program = (
        f"import site; site.addsitedir({str(site)!r}); import llama_dyt, llama_dyt.training.plan.answer\n"
        "print(llama_dyt.__file__)"
    )
    # Isolated: neither the working directory nor PYTHONPATH can help.
    printed = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert printed.stdout.strip() == str(REPOSITORY / "llama_dyt/__init__.py"), printed.stderr
