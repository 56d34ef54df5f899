"""What lies at a path that cannot be read as text, in words: other programs' data, or this one's in another place."""

from __future__ import annotations

import os
from pathlib import Path

_OLD_MEGATRON = b"TNTIDX\x00\x00"
_MEGATRON = b"MMIDIDX\x00\x00"
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM = b"\xff\xff\xff\xff"
_EXPORT = "load it with `datasets` and write it by its `to_parquet` or `to_json`"
_PRETRAIN = "prepared tokens, which pretrain.py alone reads; give the text that they were made of"


def what_is(path: Path) -> str | None:
    """What a path is, and what to do with it; None where that is not known."""
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_folder(path: Path) -> str | None:
    names = sorted(entry.name for entry in os.scandir(path))
    if any(name.startswith(("manifest_", "rank_")) and name.endswith((".json", ".arrow")) for name in names):
        return _PRETRAIN
    if any(name.startswith(".journal_") for name in names):
        return "prepared in part; give the same prepare_data.py command again to finish it"
    if "dataset_info.json" in names or "dataset_dict.json" in names:
        return f"a dataset as HuggingFace's `save_to_disk` leaves it, which is not read; {_EXPORT}"
    if any(name.endswith(".tokens") for name in names):
        return "one split of prepared tokens; name the folder above it"
    for name in names:
        if name.endswith((".idx", ".arrow")) and (found := _of_file(path / name)):
            return f"holds {name}: {found}"
    if "config.json" in names and any(name.endswith((".safetensors", ".bin")) for name in names):
        return "a model, not text; --model_path takes it"
    if any(name.startswith("step_") for name in names):
        return "the --save_dir of a run, not text; --load and --model_path take it"
    return None


def _of_file(path: Path) -> str | None:
    index = path.with_name(f"{path.name}.idx") if not path.exists() else path.with_suffix(".idx")
    if path.suffix in (".bin", ".idx") or not path.exists():
        begin = _first_bytes(index)
        if begin.startswith(_OLD_MEGATRON):
            return (
                "Megatron's data in its former format (TNTIDX), which is not read; make it again with Megatron's "
                "preprocess_data and `--dataset-impl mmap`, or prepare the text with prepare_data.py"
            )
        if begin.startswith(_MEGATRON):
            return f"Megatron's {_PRETRAIN}"
        return None
    if path.suffix == ".arrow" and is_arrow_stream(path):
        return f"an Arrow stream, as HuggingFace's `datasets` keeps its data, which is not read; {_EXPORT}"
    begin = _first_bytes(path)
    if begin.startswith(_ARROW_FILE):
        return "an Arrow file; of such pretrain.py reads token ids in a field input_ids; write text as .parquet"
    if begin.startswith(b"PAR1"):
        return "a parquet file by another name; give it the suffix .parquet"
    if path.suffix.lower() in (".yaml", ".yml"):
        return "a mixture, which pretrain.py and finetune.py alone read; name one of its sources"
    return None


def is_arrow_stream(path: Path) -> bool:
    return _first_bytes(path).startswith(_ARROW_STREAM)


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(16)
    except OSError:
        return b""
