"""What a resumed run is told of the modules, callbacks and trackers that the run before had."""

from __future__ import annotations

import pytest

from llama_dyt.core import extensions
from llama_dyt.training.checkpoint.imports import differences

MINE = {"name": "mine", "sha256": "a"}


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        ({}, []),
        ({"imports": [MINE]}, ["the run that saved had --import mine, and this one has not"]),
        (
            {"imports": [MINE], "trackers": ["table"]},
            [
                "the run that saved had a tracker 'table', and this one has not; --import mine --tracker table goes on "
                "with it"
            ],
        ),
        (
            {"imports": [MINE], "callbacks": {"mean": {}}, "trackers": ["kept"]},
            [
                "the checkpoint keeps the state of a callback 'mean', which is lost without --import mine --callback "
                "mean"
            ],
        ),
    ],
)
def test_what_is_missing_is_told_with_the_flags_that_bring_it_back(saved, told, monkeypatch):
    monkeypatch.setattr(extensions, "_loaded", {})
    assert differences(saved, callbacks=(), trackers=("kept",)) == told


def test_a_changed_file_is_told(monkeypatch):
    monkeypatch.setattr(extensions, "_loaded", {"mine": extensions.Extension("mine", "mine.py", "b")})
    (line,) = differences({"imports": [MINE]}, (), ())
    assert line == "--import mine: its file is not the one that the checkpoint was made with"
