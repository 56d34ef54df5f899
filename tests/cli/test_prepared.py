"""Data prepared once and trained on: the run that reads the text itself, token for token."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Run
from tests.cli.entries import Command, run_two_at_once

FRACTION = 0.2
NUM_STEPS = 6


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> tuple[Run, Run]:
    """(a run over prepared data, shuffled nowhere and with the tokenizer that lies beside them; one over the text)."""
    folder = tmp_path_factory.mktemp("prepared")
    flags = ["-d", str(corpus.train), "-o", "tokens", "--tokenizer", str(corpus.tokenizer)]
    made = Command("prepare_data", [*flags, "--validation_fraction", str(FRACTION)], folder).run()
    assert made.status == 0, made.stderr
    assert "in tokens: train on it with pretrain.py --dataset tokens" in made.stdout
    common = {"max_steps": NUM_STEPS, "validation_freq": 3, "validation_batches": 2}
    of_tokens = corpus.pretrain_flags(
        **common, dataset=folder / "tokens", tokenizer=None, save_dir="of_tokens", batch_size=1
    )
    of_text = corpus.pretrain_flags(**common, save_dir="of_text", validation_fraction=FRACTION)
    outcomes = run_two_at_once(
        Command("pretrain", of_tokens, folder, "srun", processes=2), Command("pretrain", of_text, folder)
    )
    return tuple(
        Run(folder / name, flags, outcome)
        for name, flags, outcome in zip(("of_tokens", "of_text"), (of_tokens, of_text), outcomes)
    )


def test_prepared_data_train_and_validate_as_the_text_does(runs):
    for run in runs:
        assert run.outcome.status == 0, run.outcome.stderr
    tokens, text = ([record for record in run.metrics if "loss" in record] for run in runs)
    assert [record["step"] for record in tokens] == list(range(1, NUM_STEPS + 1))
    for ours, theirs in zip(tokens, text, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["tokens_seen"] == theirs["tokens_seen"]
    tokens, text = ([record for record in run.metrics if "validation_loss" in record] for run in runs)
    assert [record["step"] for record in tokens] == [3, NUM_STEPS]
    for ours, theirs in zip(tokens, text, strict=True):
        assert ours["validation_loss"]["tokens"] == pytest.approx(theirs["validation_loss"]["train"], rel=1e-5)
        assert ours["validation_tokens"]["tokens"] == theirs["validation_tokens"]["train"]


def test_a_folder_that_was_prepared_with_another_tokenizer_is_refused(runs, corpus, tmp_path):
    from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece

    train_sentencepiece([corpus.train.read_text(encoding="utf-8")], tmp_path / "other", 400)
    flags = corpus.pretrain_flags(dataset=runs[0].save_dir.parent / "tokens", tokenizer=tmp_path / "other")
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status == 2
    assert any("was prepared with another tokenizer" in line for line in outcome.errors)
