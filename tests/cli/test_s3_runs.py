"""Runs whose --save_dir is in S3, by a server on this machine that throttles, fails and cuts all the while."""

from __future__ import annotations

import json
import os
import signal

import pytest

from llama_dyt.core.store import MARKER, at, store_of
from llama_dyt.core.stores.s3 import STORE
from llama_dyt.training.checkpoint.marker import why_incomplete
from llama_dyt.training.checkpoint.publishing import find_steps
from tests.cli.conftest import NUM_STEPS
from tests.cli.entries import Command, finish, wait_until
from tests.s3_server import BUCKET, KEY, SECRET, Fault, serving_here, use

pytest.importorskip("boto3", reason="needs boto3")
pytest.importorskip("moto", reason="needs moto[s3]")
RUN = f"s3://{BUCKET}/runs/7"
UNREST = [
    Fault("PUT .*(model|metrics)", "slow_down", times=2),
    Fault("PUT .*optimizer", "internal_error", times=1),
    Fault("GET .*list-type", "cut", times=1),
    Fault("PUT .*config.yaml", "lost", times=1),
]


@pytest.fixture(params=["moto"])
def s3(request, monkeypatch, tmp_path):
    with serving_here(request.param) as server:
        use(server, monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "6")
        yield server


def kill_while_saving(command: Command, s3, file: str) -> str:
    """Starts a run and kills all of it when it is in the middle of sending a file; returns what it said."""
    s3.faults.append(Fault(f"PUT .*{file}", "slow", times=1, seconds=60))
    processes = command.start()
    wait_until(lambda: "slow" in s3.made, processes[0])
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
    return finish(processes).stderr


def test_a_run_killed_in_a_save_goes_on_to_what_an_undisturbed_one_comes_to(corpus, pretrained, s3, tmp_path):
    s3.faults += [Fault(**vars(fault)) for fault in UNREST]
    STORE.put(f"s3://{BUCKET}/text/train.jsonl", corpus.train)
    text = f"s3://{BUCKET}/text/*.jsonl"
    flags = corpus.pretrain_flags(dataset=text, save_dir=RUN, save_interval=NUM_STEPS // 2, load="auto")
    last = f"step_{NUM_STEPS:08d}"
    said = kill_while_saving(Command("pretrain", flags, tmp_path), s3, f"{last}/optimizer/optimizer.safetensors")
    assert f"saved {RUN}/step_{NUM_STEPS // 2:08d}" in said
    assert (at(RUN) / last / "model/model.safetensors").is_file() and not (at(RUN) / last / MARKER).is_file()
    assert {"slow_down", "internal_error", "cut", "lost"} <= {*s3.made}
    again = Command("pretrain", flags, tmp_path).run()
    assert again.status == 0, again.stderr
    assert f"resumed from {RUN}/step_{NUM_STEPS // 2:08d}" in again.stderr
    assert f"removed {RUN}/{last}, the unfinished checkpoint" in again.stderr
    assert (at(RUN) / "latest").read_text() == f"{last}\n"
    assert list(find_steps(at(RUN))) == [NUM_STEPS // 2, NUM_STEPS] and why_incomplete(at(RUN) / last) is None
    metrics = [json.loads(line) for line in (at(RUN) / "metrics.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in metrics] == [record["loss"] for record in pretrained.metrics]
    for name in ("model/model.safetensors", "optimizer/optimizer.safetensors"):
        assert (at(RUN) / last / name).read_bytes() == (pretrained.step(NUM_STEPS) / name).read_bytes()
    everything = said + again.stderr + again.stdout + (at(RUN) / "config.yaml").read_text()
    assert SECRET not in everything and KEY not in everything
    assert not any(".claim" in name for name in store_of(RUN).sizes(at(RUN)))


@pytest.mark.parametrize(
    ("entry", "flags"),
    [
        ("generate", ["--model_path", RUN, "--prompt", "def"]),
        ("eval_model", ["--model_path", RUN, "--dataset", "sample"]),
        ("convert", ["--input_path", RUN, "--output_path", "out"]),
        ("pretrain", ["--load", RUN, "--dataset", "sample", "--config", "15m", "--max_steps", "1"]),
        ("pretrain", ["--model_path", RUN, "--dataset", "sample", "--max_steps", "1"]),
        ("finetune", ["--model_path", RUN, "--dataset", "sample", "--max_steps", "1"]),
        ("prepare_data", ["--dataset", f"{RUN}/*.jsonl", "--tokenizer", "bytes", "--output_path", "out"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:1]),
)
def test_a_store_that_refuses_is_told_in_one_line_by_every_entry(entry, flags, s3, tmp_path):
    s3.faults.append(Fault("", "denied"))
    outcome = Command(entry, flags, tmp_path).run()
    told = [line for line in outcome.stderr.splitlines() if "no permission for it" in line]
    assert len(told) == 1, outcome.stderr
    assert outcome.status == 2 and told[0].startswith("error: ") and "Traceback" not in outcome.stderr, outcome.stderr
    assert SECRET not in outcome.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("entry", ["convert", "prepare_data"])
def test_results_go_to_a_folder_of_this_machine_and_an_address_is_refused(entry, pretrained, tmp_path):
    given = {"convert": ["--input_path", str(pretrained.save_dir)], "prepare_data": ["--dataset", "sample"]}
    outcome = Command(entry, [*given[entry], "--output_path", RUN], tmp_path).run()
    assert outcome.status == 2 and "is an address, and this goes to a folder of this machine" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.matrix  # s3rver tells a wrong length of an empty file, on which the client waits 36 s until it gives up
@pytest.mark.parametrize("s3", ["s3rver"], indirect=True)
def test_a_run_is_kept_by_another_makers_server_and_gone_on_with(corpus, pretrained, s3, tmp_path):
    STORE.put(f"s3://{BUCKET}/text/train.jsonl", corpus.train)
    text, half = f"s3://{BUCKET}/text/*.jsonl", NUM_STEPS // 2
    flags = corpus.pretrain_flags(dataset=text, save_dir=RUN, save_interval=half, load="auto")
    s3.faults += [Fault("PUT .*model", "lost", times=1), Fault("GET .*train.jsonl", "half", times=1)]
    begun = kill_while_saving(Command("pretrain", flags, tmp_path), s3, f"step_{NUM_STEPS:08d}/optimizer")
    assert {"lost", "half"} <= {*s3.made} and f"saved {RUN}/step_{half:08d}" in begun
    rest = Command("pretrain", flags, tmp_path).run()
    assert rest.status == 0 and f"resumed from {RUN}/step_{half:08d}" in rest.stderr, rest.stderr
    file = f"step_{NUM_STEPS:08d}/model/model.safetensors"
    assert (at(RUN) / file).read_bytes() == (pretrained.save_dir / file).read_bytes()


@pytest.mark.matrix
def test_credentials_that_expire_end_a_run_with_one_line(corpus, s3, tmp_path):
    s3.faults.append(Fault(".*step_00000002/model", "expired"))
    outcome = Command("pretrain", corpus.pretrain_flags(save_dir=RUN, save_interval=2, max_steps=4), tmp_path).run()
    assert outcome.status == 2 and "the credentials have expired; renew them" in outcome.stderr
    assert "Traceback" not in outcome.stderr and SECRET not in outcome.stderr
    assert not (tmp_path / "cache/llama_dyt/stores").exists() or not list(
        (tmp_path / "cache/llama_dyt/stores").glob("*-writing-*")
    )


@pytest.mark.matrix
def test_from_a_disk_to_s3_and_back_under_other_layouts_nothing_changes(corpus, s3, tmp_path):
    def run(load: str | None, save_dir: str, plugin: str, steps: int, processes: int = 1) -> None:
        flags = corpus.pretrain_flags(
            load=load, save_dir=save_dir, plugin=plugin, max_steps=steps, num_epochs=4, batch_size=4 // processes
        )
        launcher = "srun" if processes > 1 else "python"
        outcome = Command("pretrain", flags, tmp_path, launcher, processes=processes).run()
        assert outcome.status == 0, outcome.stderr

    run(None, "begun", "ddp", 2)
    for there, back in ((RUN, "by_s3"), ("elsewhere", "by_disk")):
        run("begun", there, "zero2", 4, processes=2)
        run(there, back, "fsdp", 6)
    for name in ("model/model.safetensors", "optimizer/optimizer.safetensors"):
        ways = [tmp_path / way / "step_00000006" / name for way in ("by_s3", "by_disk")]
        assert ways[0].read_bytes() == ways[1].read_bytes()
        assert (at(RUN) / "step_00000004" / name).read_bytes() == (
            tmp_path / "elsewhere/step_00000004" / name
        ).read_bytes()
