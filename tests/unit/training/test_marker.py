"""Whether a checkpoint is what was written: files, sizes, bytes; and writing tensors with a checksum."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from llama_dyt.training.checkpoint.marker import (
    MARKER,
    Written,
    damaged_files,
    described,
    marker_of,
    read_marker,
    why_incomplete,
)
from llama_dyt.training.checkpoint.tensor_writer import save_tensors


def test_tensors_are_written_as_the_library_writes_them_and_hashed_on_the_way(tmp_path):
    tensors = {
        "b.weight": torch.randn(3, 5),
        "a": torch.randn(1),
        "é": torch.randn(7, 2).t(),
        "scalar": torch.randn(()),
        "none": torch.empty(0, 3),
        "large": torch.randn(5 << 20),  # several pieces
    }
    digest = save_tensors(tensors, tmp_path / "ours")
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs", metadata={"format": "pt"})
    written = (tmp_path / "ours").read_bytes()
    assert written == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256(written).hexdigest()


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("model/a.safetensors", "trainer_state.json"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 16)
    written = described(tmp_path) | {"trainer_state.json": Written(4096, "told by its writer")}
    (tmp_path / MARKER).write_text(marker_of(written))
    return tmp_path


def test_a_marker_has_size_and_checksum_of_every_file(checkpoint):
    written = read_marker(checkpoint)
    assert written.keys() == {"model/a.safetensors", "trainer_state.json"}
    digest = hashlib.sha256((checkpoint / "model/a.safetensors").read_bytes()).hexdigest()
    assert (written["model/a.safetensors"].bytes, written["model/a.safetensors"].sha256) == (4096, digest)
    assert written["trainer_state.json"].sha256 == "told by its writer"


def test_a_file_with_another_byte_is_named(checkpoint):
    assert damaged_files(checkpoint, ["model/a.safetensors"]) == []
    with open(checkpoint / "model/a.safetensors", "r+b") as file:
        file.seek(2000)
        file.write(b"\0")
    assert why_incomplete(checkpoint) is None
    (fault,) = damaged_files(checkpoint, ["model/a.safetensors"])
    assert fault.startswith("model/a.safetensors holds other bytes than were written (SHA-256 ")


def test_a_marker_of_an_earlier_version_has_sizes_alone(checkpoint):
    (checkpoint / MARKER).write_text(json.dumps({"model/a.safetensors": 4096, "trainer_state.json": 4096}))
    assert why_incomplete(checkpoint) is None
    assert damaged_files(checkpoint, read_marker(checkpoint)) == []


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": {"bytes": 3}}', '{"a": "3"}', "\0\0"])
def test_a_marker_that_is_none_makes_an_incomplete_checkpoint(checkpoint, content):
    (checkpoint / MARKER).write_text(content)
    assert "marker is damaged" in why_incomplete(checkpoint)
