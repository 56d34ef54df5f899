"""Checkpoints with wrong bytes of the right size: refused by every rank, with what to type, which then works."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.training.plan import make_plan
from tests.cli.conftest import NUM_STEPS
from tests.cli.entries import Command, Outcome, run_two_at_once

HALF = NUM_STEPS // 2
LAST, EARLIER = f"step_{NUM_STEPS:08d}", f"step_{HALF:08d}"


def damage(file: Path, num_bytes: int = 2000) -> None:
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\x3c" * num_bytes)  # as numbers of fp32 nothing strange: 0.0115


@pytest.fixture(scope="module")
def told(corpus, pretrained, tmp_path_factory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("damaged")
    save_dir = Path(shutil.copytree(pretrained.save_dir, folder / "run"))
    damage(save_dir / LAST / "model" / "model.safetensors")
    damage(save_dir / LAST / "optimizer" / "optimizer.safetensors")
    flags = corpus.pretrain_flags(save_dir="run", load="auto", max_steps=NUM_STEPS + 1, batch_size=1)
    from_weights = corpus.pretrain_flags(save_dir="new", model_path=f"run/{LAST}")
    from_weights = from_weights[from_weights.index("--dataset") :]  # the size is that of the weights
    resumed, weights = run_two_at_once(
        Command("pretrain", flags, folder, launcher="srun", processes=2), Command("pretrain", from_weights, folder)
    )
    new_was_left = (folder / "new").exists()
    advised = corpus.pretrain_flags(save_dir="run", load=f"run/{EARLIER}")
    elsewhere = corpus.pretrain_flags(save_dir="new", load=f"run/{LAST}", max_steps=NUM_STEPS + 1)
    skipped = Command("pretrain", [*elsewhere, "--no-verify"], folder).run()
    return {
        "resumed": resumed,
        "weights": weights,
        "new_was_left": new_was_left,
        "skipped": skipped,
        "advised": Command("pretrain", advised, folder).run(),
    }


def test_wrong_bytes_of_the_right_size_are_refused_by_all_ranks_with_what_to_type(told):
    outcome = told["resumed"]
    assert outcome.status == 2
    (error,) = [line for line in outcome.stderr.splitlines() if "error: " in line and "[rank 1]" not in line]
    assert f"checkpoint run/{LAST} is damaged: model/model.safetensors holds other bytes than were written" in error
    assert "optimizer/optimizer.safetensors holds other bytes" in error
    assert f"The newest before it that is whole is of step {HALF}: give --load run/{EARLIER}" in error
    assert "Traceback" not in outcome.stderr


def test_weights_alone_are_compared_too(told):
    assert told["weights"].status == 2
    assert f"/run/{LAST} is damaged: model/model.safetensors holds other" in told["weights"].stderr
    assert "optimizer" not in told["weights"].stderr
    assert not told["new_was_left"], "something was left behind"


def test_comparing_can_be_left_out(told):
    assert f"resumed from run/{LAST}" in told["skipped"].stderr
    assert "verified" not in told["skipped"].stderr


def test_what_the_error_says_to_type_works_and_says_what_it_replaces(told):
    outcome = told["advised"]
    assert outcome.status == 0, outcome.stderr
    assert re.search(rf"verified [\d.]+ MB of run/{EARLIER} in ", outcome.stderr)
    assert f"run/{LAST} was there already" in outcome.stderr


def test_auto_does_not_begin_anew_over_a_run_whose_only_checkpoint_is_damaged(corpus, pretrained, tmp_path):
    save_dir = Path(shutil.copytree(pretrained.save_dir, tmp_path / "run"))
    shutil.rmtree(save_dir / EARLIER)
    (save_dir / LAST / "trainer_state.json").write_text("{")
    with pytest.raises(ConfigurationError) as error:
        make_plan("pretrain", corpus.pretrain_flags(save_dir=save_dir, load="auto"))
    (problem,) = error.value.problems
    assert re.search(
        rf"--load auto: no complete checkpoint in {save_dir}: {LAST}: trainer_state.json has 1 bytes", problem
    )
    assert "give another --save_dir to start anew" in problem
