"""How long a run has between a signal and the kill, and how its end is told."""

import pytest

from llama_dyt.training.callbacks.status import Respite, last_save_seconds, respite, write_status


@pytest.mark.parametrize(
    ("launcher", "env", "seconds", "source"),
    [
        ("python", {}, None, ""),
        ("torchrun", {}, 30, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"),
        ("torchrun", {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}, 600, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"),
        ("srun", {"SLURM_JOB_ID": "7"}, 30, "KillWait"),
        ("srun", {"SLURM_JOB_ID": "7", "LLAMA_DYT_STOP_SECONDS": "600"}, 600, "--signal"),
        ("torchrun", {"SLURM_JOB_ID": "7", "LLAMA_DYT_STOP_SECONDS": "600"}, 30, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"),
    ],
)
def test_the_time_between_the_signal_and_the_kill_is_the_shortest_that_anybody_allows(launcher, env, seconds, source):
    allowed = respite(launcher, env)
    assert allowed.seconds == seconds and source in allowed.source


def test_a_save_that_does_not_fit_is_warned_of_with_what_would_do():
    assert Respite(None).judge(74) == "a save takes 74.0 s"
    assert Respite(120, "torchrun").judge(74).startswith("a save takes 74.0 s, and a signal leaves 120 s (torchrun)")
    warning = Respite(30, "torchrun's TORCH_ELASTIC_SHUTDOWN_TIMEOUT").judge(74)
    assert warning.startswith("warning: ") and "30 s (torchrun's TORCH" in warning and "allow 148 s or more" in warning


def test_the_last_save_is_remembered_and_a_strange_status_file_is_no_error(tmp_path):
    assert last_save_seconds(tmp_path) is None
    write_status(tmp_path, "stopped", 3, 10, 1.5)
    assert last_save_seconds(tmp_path) == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    (tmp_path / "status.json").write_text("[]")
    assert last_save_seconds(tmp_path) is None
