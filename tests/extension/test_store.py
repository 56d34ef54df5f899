"""One file with a store is all that `--save_dir shelf://…` needs: saving, resuming, being killed, going elsewhere."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from llama_dyt.core import extensions
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.store import MARKER, STORES, at, store_of
from llama_dyt.launch import claim as claims
from llama_dyt.training.checkpoint.marker import why_incomplete
from llama_dyt.training.checkpoint.publishing import find_steps
from llama_dyt.training.checkpoint.reader import find_checkpoint
from tests.cli.conftest import corpus  # noqa: F401
from tests.cli.entries import Command, Outcome

FILE = Path(__file__).with_name("my_store.py")
RUN = "shelf://runs/7"
GIVEN = {"import": "my_store", "save_dir": RUN, "save_interval": 2, "mixed_precision": "bf16", "load": "auto"}
DYING = """
import os, signal
from my_store import Shelf

put = Shelf.put

def put_or_die(self, address, file):
    if "step_00000004/optimizer/optimizer.safetensors" in address:
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, address, file)

Shelf.put = put_or_die
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a user works: the one file. The store is known in this process too."""
    shutil.copy(FILE, tmp_path)
    monkeypatch.setenv("SHELF", str(tmp_path / "shelf.sqlite"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(autouse=True)
def shelf():
    if STORES.find("shelf") is None:
        assert not extensions.load(["my_store"], str(FILE.parent))


@pytest.fixture
def pretrain(corpus, folder):  # noqa: F811
    """Starts `pretrain.py` there and waits for its end."""

    def run(plugin: str, steps: int, *more: str, processes: int = 1, **flags) -> Outcome:
        words = corpus.pretrain_flags(**{**GIVEN, "plugin": plugin, "max_steps": steps, **flags})
        launcher = "srun" if processes > 1 else "python"
        return Command("pretrain", [*words, *more], folder, launcher, processes=processes).run()

    return run


@pytest.mark.parametrize("plugin", ["ddp", "gemini"])
def test_a_run_of_two_ranks_is_kept_in_the_store_and_goes_on_from_there(pretrain, folder, plugin):
    first = pretrain(plugin, 4, processes=2)
    assert first.status == 0, first.stderr
    assert f"saved {RUN}/step_00000004" in first.stderr and f"checkpoint  {RUN}/step_00000004" in first.stdout
    assert list(find_steps(at(RUN))) == [2, 4]
    assert all(why_incomplete(step) is None for step in find_steps(at(RUN)).values())
    again = pretrain(plugin, 6, processes=2)
    assert again.status == 0, again.stderr
    assert f"resumed from {RUN}/step_00000004, step 4" in again.stderr
    assert f"MB of {RUN}/step_00000004" in again.stderr  # verified
    metrics = [json.loads(line) for line in (at(RUN) / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5, 6]
    kept = store_of(RUN).sizes(at(RUN))
    names = {name for name in kept if "/" not in name}
    written = {"metrics.jsonl", "events.jsonl", "config.yaml", "status.json", "loss.png", "report.html", "latest"}
    assert names == written  # the claim's record is gone
    # Nothing but the file, the store and what can be fetched again.
    assert not list((folder / "cache" / "llama_dyt" / "stores").glob("*-writing-*"))
    left = {path.name for path in folder.iterdir()} - {"__pycache__", "tb_logs"}
    assert left == {"my_store.py", "shelf.sqlite", "cache"}


def test_a_run_killed_in_the_middle_of_a_save_goes_on_from_the_checkpoint_before(pretrain, folder):
    (folder / "dying.py").write_text(DYING)
    killed = pretrain("ddp", 4, "--import", "dying", tensorboard_dir=f"{RUN}/tb")
    assert killed.status == -signal.SIGKILL
    half = at(RUN) / "step_00000004"
    assert (half / "model" / "model.safetensors").is_file() and not (half / MARKER).is_file()
    with pytest.warns(UserWarning, match="skipping incomplete checkpoint shelf://runs/7/step_00000004"):
        assert find_checkpoint("auto", at(RUN)) == at(RUN) / "step_00000002"
    again = pretrain("ddp", 4, tensorboard_dir=f"{RUN}/tb")
    assert again.status == 0, again.stderr
    assert f"resumed from {RUN}/step_00000002, step 2" in again.stderr
    assert f"removed {RUN}/step_00000004, the unfinished checkpoint" in again.stderr
    assert why_incomplete(half) is None
    metrics = [json.loads(line) for line in (at(RUN) / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2, 3, 4]
    assert any("tb/events.out" in name for name in store_of(RUN).sizes(at(RUN)))
    flags = ["--import", "my_store", "--model_path", RUN, "--prompt", "word1", "--max_new_tokens", "2"]
    generated = Command("generate", flags, folder).run()
    assert generated.status == 0, generated.stderr


def test_one_run_holds_a_folder_of_the_store(pretrain):
    held = claims.take(at(RUN), "pretrain")
    refused = pretrain("ddp", 2)
    assert refused.status == 2 and f"--save_dir {RUN} is being written by pretrain" in refused.stderr
    held.check()
    held.release()
    assert not store_of(RUN).sizes(at(RUN))


def test_an_unknown_scheme_is_told_with_its_flag(pretrain):
    outcome = pretrain("ddp", 2, save_dir="shelv://runs/7")
    assert outcome.status == 2
    assert outcome.errors == [
        "--save_dir shelv://runs/7: unknown store 'shelv': did you mean 'shelf'? (known: file, s3, https, shelf, "
        "http); one of your own is brought in by --import its.module"
    ]
    with pytest.raises(ConfigurationError, match="--load nowhere://x: unknown store 'nowhere'"):
        at("nowhere://x", "load")


def test_a_copy_that_is_read_stays_and_an_older_one_goes(folder):
    step = at(RUN) / "step_00000002"
    for content in ("old", "newer"):
        store_of(step).write_text(step / "trainer_state.json", content)
        copy = store_of(step).local(step)
        assert (copy / "trainer_state.json").read_text() == content and copy.name == "step_00000002"
    assert len(list((folder / "cache" / "llama_dyt" / "stores").iterdir())) == 2  # this process reads both
