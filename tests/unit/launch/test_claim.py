"""One run a folder: who gets it, when it can be taken over, and what one finds that had it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.launch import claim as claims
from llama_dyt.launch.claim import take
from llama_dyt.launch.holder import start_time

FORKS = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Sixty times as fast; and nothing held after a test."""
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.0)
    monkeypatch.setattr(claims, "_LOOK_SECONDS", 0.02)
    yield
    claims.release_all()


def records(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".claim"))


def hold_for_ever(folder: Path, told) -> None:
    take(folder, "pretrain", environment={"SLURM_JOB_ID": "77"})
    told.set()
    signal.pause()


def held_by_another(folder: Path):
    """A process that has the folder."""
    told = FORKS.Event()
    process = FORKS.Process(target=hold_for_ever, args=(folder, told), daemon=True)
    process.start()
    assert told.wait(60)
    return process


def seen_from_elsewhere(folder: Path, **changes) -> bytes:
    """Make the one record in the folder that of another machine."""
    (record,) = folder.glob(".claim.*")
    head, _, counter = record.read_bytes().partition(b"\n")
    content = json.dumps({**json.loads(head), "host": "gpu7", "boot": "another", **changes}).encode() + b"\n" + counter
    record.write_bytes(content)
    return content


def test_a_second_run_is_refused_at_once_and_told_who_has_the_folder(tmp_path):
    holder = held_by_another(tmp_path)
    with pytest.raises(ConfigurationError) as error:
        take(tmp_path, "pretrain")
    message = str(error.value)
    assert f"--save_dir {tmp_path} is being written by pretrain (process {holder.pid} on " in message
    assert "Slurm job 77" in message and "give another --save_dir" in message
    holder.kill()


def test_what_a_killed_run_claimed_is_free_at_once(tmp_path):
    holder = held_by_another(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    while start_time(holder.pid) is not None:
        time.sleep(0.01)
    assert Path(f"/proc/{holder.pid}").exists()  # not waited for: a zombie does not live
    said = []
    begin = time.monotonic()
    take(tmp_path, "pretrain", say=said.append)
    assert time.monotonic() - begin < claims.STALE_SECONDS
    assert records(tmp_path) == [".claim.2"]
    assert f"process {holder.pid}" in said[0] and "is taken over" in said[0]


def test_a_pid_that_is_another_process_now_is_not_the_holder(tmp_path):
    holder = held_by_another(tmp_path)
    (record,) = tmp_path.glob(".claim.*")
    head, _, counter = record.read_bytes().partition(b"\n")
    record.write_bytes(json.dumps({**json.loads(head), "started": 1}).encode() + b"\n" + counter)
    take(tmp_path, "pretrain", say=print)
    holder.kill()


def test_a_run_elsewhere_that_beats_is_refused_and_one_that_has_stopped_is_taken_over(tmp_path):
    holder = held_by_another(tmp_path)
    seen_from_elsewhere(tmp_path)
    said = []
    place = len((tmp_path / ".claim.1").read_bytes()) - 13
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(claims.BEAT_SECONDS):
            count += 1
            with open(tmp_path / ".claim.1", "r+b") as file:
                file.seek(place)
                file.write(b"%012d" % count)

    os.kill(holder.pid, signal.SIGSTOP)
    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(ConfigurationError, match="on gpu7, Slurm job 77"):
        take(tmp_path, "pretrain", say=said.append)
    stop.set()
    beating.join()
    begin = time.monotonic()
    take(tmp_path, "pretrain", say=said.append)
    assert time.monotonic() - begin >= claims.STALE_SECONDS
    assert "waiting up to 1 s for a sign of life" in said[-2] and "taken over" in said[-1]
    holder.kill()


def test_the_same_job_started_again_takes_over_at_once_and_only_then(tmp_path):
    slurm = {"SLURM_JOB_ID": "77"}
    torchrun = {"TORCHELASTIC_RUN_ID": "5e", "TORCHELASTIC_RESTART_COUNT": "0"}
    for environment, again in (
        (slurm, {**slurm, "SLURM_RESTART_COUNT": "1"}),
        (torchrun, {**torchrun, "TORCHELASTIC_RESTART_COUNT": "1"}),
    ):
        folder = tmp_path / str(len(environment))
        take(folder, "pretrain", environment=environment)
        seen_from_elsewhere(folder)
        begin = time.monotonic()
        later = take(folder, "pretrain", environment=again, say=print)
        assert time.monotonic() - begin < claims.STALE_SECONDS / 2
        later.release()
    # Two steps of one job at the same time are two runs; and "none" is torchrun's word for no id.
    holder = held_by_another(tmp_path)
    holder.kill()
    holder.join()
    seen_from_elsewhere(tmp_path, jobs={"Slurm job": ["77", 0], "torchrun run": ["none", 0]})
    begin = time.monotonic()
    take(tmp_path, "pretrain", environment={**slurm, "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "3"})
    assert time.monotonic() - begin >= claims.STALE_SECONDS


def test_a_stopped_run_that_wakes_up_finds_that_it_lost_the_folder(tmp_path):
    first = take(tmp_path, "pretrain")
    first.check()
    content = seen_from_elsewhere(tmp_path)
    first.check()
    (tmp_path / ".claim.2").write_bytes(content.replace(first.nonce.encode(), b"0123456789abcdef"))
    with pytest.raises(CheckpointError, match=r"no longer this run's: pretrain \(process \d+ on gpu7"):
        first.check()
    (tmp_path / ".claim.2").unlink()
    (tmp_path / ".claim.1").unlink()
    with pytest.raises(CheckpointError, match=r"its record \.claim\.1 is gone"):
        first.check()
    time.sleep(3 * claims.BEAT_SECONDS)
    assert records(tmp_path) == []  # its beat does not bring the record back
    first.release()


def test_a_copy_of_a_folder_that_is_being_written_is_free(tmp_path):
    holder = held_by_another(tmp_path / "run")
    copy = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    take(copy, "pretrain", say=print)
    with pytest.raises(ConfigurationError):
        take(tmp_path / "run", "pretrain")
    holder.kill()


def race(folder: Path, begin, answers) -> None:
    begin.wait()
    try:
        take(folder, "pretrain", say=lambda message: None)
        answers.put("has it")
        signal.pause()
    except ConfigurationError:
        answers.put("refused")


@pytest.mark.parametrize("left", ["nothing", "a dead record"])
def test_of_many_that_come_at_once_one_gets_it(tmp_path, left):
    if left == "a dead record":
        holder = held_by_another(tmp_path)
        holder.kill()
        holder.join()
    for attempt in range(3):
        begin, answers = FORKS.Event(), FORKS.Queue()
        processes = [FORKS.Process(target=race, args=(tmp_path, begin, answers), daemon=True) for _ in range(6)]
        for process in processes:
            process.start()
        begin.set()
        found = sorted(answers.get(timeout=60) for _ in processes)
        assert found == ["has it"] + ["refused"] * 5, f"attempt {attempt}"
        for process in processes:
            process.kill()
            process.join()
        assert len(records(tmp_path)) == 1


def test_a_record_that_was_never_finished_is_waited_for_and_passed(tmp_path):
    (tmp_path / ".claim.4").touch()
    said = []
    take(tmp_path, "pretrain", say=said.append)
    assert records(tmp_path) == [".claim.5"]
    assert "somebody whose record .claim.4 cannot be read" in said[0]


def test_a_forked_child_neither_beats_nor_gives_free(tmp_path):
    claim = take(tmp_path, "pretrain")

    def child() -> None:
        claims.release_all()
        claim.release()
        os._exit(len([thread for thread in threading.enumerate() if thread.is_alive()]))

    process = FORKS.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 1
    claim.check()
    before = (tmp_path / ".claim.1").read_bytes()
    time.sleep(4 * claims.BEAT_SECONDS)
    assert (tmp_path / ".claim.1").read_bytes() != before


def test_giving_free_leaves_nothing_and_keeps_what_came_into_the_folder(tmp_path):
    folder = tmp_path / "runs" / "new"
    take(folder, "pretrain").release()
    assert list(tmp_path.iterdir()) == []
    claim = take(folder, "pretrain")
    (folder / "metrics.jsonl").touch()
    claim.release()
    claim.release()
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"--save_dir .*file/run cannot be written \(Not a directory\)"):
        take(tmp_path / "file" / "run", "pretrain")


def test_claims_of_different_names_share_a_folder(tmp_path):
    take(tmp_path, "prepare_data", name="claim_00000_of_00002")
    take(tmp_path, "prepare_data", name="claim_00001_of_00002")
    assert records(tmp_path) == [".claim_00000_of_00002.1", ".claim_00001_of_00002.1"]


def hold_with_writer(folder: Path, writer: int, told) -> None:
    take(folder, "pretrain").name_writer(writer)
    told.set()
    signal.pause()


@pytest.mark.parametrize("waits_before", [True, False])
def test_a_folder_is_free_once_the_writer_of_a_killed_run_has_ended(tmp_path, waits_before):
    told, writer = FORKS.Event(), FORKS.Process(target=signal.pause, daemon=True)
    writer.start()
    holder = FORKS.Process(target=hold_with_writer, args=(tmp_path, writer.pid, told), daemon=True)
    holder.start()
    assert told.wait(60)
    with pytest.raises(ConfigurationError, match="is being written by pretrain"):
        take(tmp_path, "pretrain")
    holder.kill()
    holder.join()
    said, ended = [], threading.Event()

    def end_writer() -> None:
        time.sleep(2.0)  # longer than a record of an unknown process is waited for
        ended.set()
        writer.kill()
        writer.join()

    threading.Thread(target=end_writer).start()
    if waits_before:
        claims.wait_for_writer(tmp_path)
        assert ended.is_set()
    claim = take(tmp_path, "pretrain", say=said.append)
    assert ended.is_set()
    claim.check()
    if not waits_before:
        assert f"its process {writer.pid} is still writing a checkpoint there" in said[0]
