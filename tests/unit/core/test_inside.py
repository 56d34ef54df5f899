"""An index or a table that came with a folder names files of that folder alone."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from llama_dyt.convert import hf_files
from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError
from llama_dyt.models.tensor_files import TensorFiles

OUTSIDE = [
    "../other.safetensors",
    "/etc/passwd",
    "a/../../x",
    "..",
    "",
    "..\\x",
    "C:\\x",
    "C:/x",
    "a\0b",
    "\\\\host\\x",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_the_folder_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="outside of its folder"):
        files.inside(tmp_path, name)


@pytest.mark.parametrize("name", ["model.safetensors", "part/model-1.safetensors", "..model", "a..b"])
def test_others_are_not(name, tmp_path):
    assert files.inside(tmp_path, name) == tmp_path / name


@pytest.fixture
def folder(tmp_path):
    """A folder whose neighbour has weights."""
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd"])
def test_an_index_of_safetensors(folder, name):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError, match=rf"{index.name}: .*names '{name}', which is outside of its folder"):
        TensorFiles(folder)


def test_an_index_of_older_files(folder):
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "../../secret.bin"}}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        hf_files._older(folder, None)


def test_a_table_of_torchs_distributed_checkpoints(folder):
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    from llama_dyt.convert.distributed_checkpoint import CheckpointFolder

    size = torch.Size([2])
    entry = TensorStorageMetadata(TensorProperties(torch.float32), size, [ChunkStorageMetadata(torch.Size([0]), size)])
    where = {MetadataIndex("w", torch.Size([0])): _StorageInfo("../other.safetensors", 0, 8)}
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({"w": entry}, storage_data=where)))
    with pytest.raises(CheckpointError, match="names '../other.safetensors', which is outside of its folder"):
        CheckpointFolder(folder)
