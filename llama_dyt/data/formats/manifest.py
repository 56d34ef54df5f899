"""The manifest of prepared data: what one machine wrote, file by file, and whether those of all machines fit together.

The writer and the reader agree on it and on nothing else. A folder without every machine's
manifest is not whole, so the manifest is written last.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llama_dyt.core import files
from llama_dyt.core.errors import DataError

KIND = "llama_dyt prepared data"
VERSION = 1
SPLITS = ("train", "validation")
TOKENS_SUFFIX = ".tokens"
INDEX_SUFFIX = ".documents.npy"
_NAME = re.compile(r"manifest_(\d{5})_of_(\d{5})\.json")
_REMEDY = "prepare the data again, or fetch the folder anew"
# Of one machine; everything else of a manifest must be equal on all of them.
_OWN = ("rank", "shards", "num_bad_lines", "num_empty_documents", "dataset")


@dataclass(frozen=True)
class Shard:
    """One shard: a file of raw tokens and, beside it, an index of where its documents end.

    Attributes:
        name: without suffix; shards of a split in the order of their names are its tokens.
        tokens, documents: how many it holds; of tokens BOS and EOS included.
        bytes, sha256: of the file of tokens.
        index_bytes, index_sha256: of the index.
    """

    name: str
    split: str
    tokens: int
    documents: int
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str

    def tokens_file(self, folder: Path) -> Path:
        return folder / self.split / f"{self.name}{TOKENS_SUFFIX}"

    def index_file(self, folder: Path) -> Path:
        return folder / self.split / f"{self.name}{INDEX_SUFFIX}"


@dataclass(frozen=True)
class Manifest:
    """What one machine of `world_size` wrote.

    Attributes:
        written_as: "shards", or "arrow" where the shards below were put together into rank_N.arrow.
        tokenizer: `tokenizer.tokenizer_fingerprint` of what encoded the text.
        vocab_size: every token is below it.
        dtype: of the tokens in the files, "uint16" or "uint32", little-endian.
        bos, eos: the ids around each document; None where there is none.
        validation_fraction: share of the documents in the split `validation`.
        max_num_tokens: of each machine, or None.
        part_bytes, shard_tokens: how the text was cut into parts, and how long a shard may become.
        dataset: as it was named on the command line.
        sources: name and bytes of every file that was read, by any of the machines.
        num_bad_lines, num_empty_documents: records left out.
    """

    written_as: str
    rank: int
    world_size: int
    tokenizer: str
    vocab_size: int
    dtype: str
    bos: int | None
    eos: int | None
    validation_fraction: float
    max_num_tokens: int | None
    part_bytes: int
    shard_tokens: int
    dataset: str
    sources: list[dict[str, Any]]
    num_bad_lines: int
    num_empty_documents: int
    shards: list[Shard]

    def split(self, name: str) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == name]


def manifest_name(rank: int, world_size: int, written_as: str = "shards") -> str:
    """Only a folder of shards has `manifest_...`: by that it is known."""
    return f"{'' if written_as == 'shards' else f'{written_as}_'}manifest_{rank:05d}_of_{world_size:05d}.json"


def differences(one: Manifest, other: Manifest) -> list[str]:
    """What of `other`, by name and value, is not as in `one` though it must be equal on all machines."""
    found = []
    for field in fields(Manifest):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name not in _OWN and ours != theirs:
            if field.name == "sources":
                ours, theirs = _first_difference(ours, theirs)
            found.append(f"{field.name} ({theirs!r}, not {ours!r})")
    return found


def _first_difference(ours: list, theirs: list) -> tuple:
    return next((pair for pair in zip_longest(ours, theirs) if pair[0] != pair[1]), (None, None))


def write_manifest(folder: Path, manifest: Manifest, name: str | None = None) -> None:
    """Write it so that it is there whole or not at all, by its own name unless another is given."""
    totals = {
        split: {
            "tokens": sum(shard.tokens for shard in manifest.split(split)),
            "documents": sum(shard.documents for shard in manifest.split(split)),
        }
        for split in SPLITS
    }
    content = {"format": KIND, "version": VERSION, "totals": totals, **asdict(manifest)}
    files.write_json(folder / (name or manifest_name(manifest.rank, manifest.world_size)), content)


def is_manifest(name: str) -> bool:
    """Whether a file of this name in a folder is one."""
    return _NAME.fullmatch(name) is not None


def manifest_files(folder: Path) -> list[Path]:
    """The manifests in a folder, by rank; [] where there is none, or no folder."""
    if not folder.is_dir():
        return []
    return sorted(folder / entry.name for entry in os.scandir(folder) if is_manifest(entry.name))


def read_manifest(file: Path) -> Manifest:
    """One manifest.

    Raises:
        DataError: it cannot be read, is of another version, or says what cannot be.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {_REMEDY}", about=file) from error
    if not isinstance(content, dict) or content.get("format") != KIND:
        raise DataError(f"{file}: not a manifest of prepared data; {_REMEDY}", about=file)
    if content.get("version") != VERSION:
        raise DataError(
            f"{file}: format version {content.get('version')}, but this program reads version {VERSION}; "
            "prepare the data again with this one",
            about=file,
        )
    try:
        shards = [Shard(**shard) for shard in content["shards"]]
        given = {field.name: content[field.name] for field in fields(Manifest)}
        manifest = Manifest(**{**given, "shards": shards})
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: a field is missing or not known ({error}); {_REMEDY}", about=file) from error
    _check_numbers(file, manifest)
    return manifest


def _check_numbers(file: Path, manifest: Manifest) -> None:
    sizes = {"uint16": 2, "uint32": 4}
    if manifest.dtype not in sizes:
        raise DataError(f"{file}: tokens of type {manifest.dtype!r}, neither uint16 nor uint32; {_REMEDY}", about=file)
    size = sizes[manifest.dtype]
    if manifest.vocab_size > 1 << (8 * size):
        raise DataError(
            f"{file}: a vocabulary of {manifest.vocab_size} pieces does not fit into {manifest.dtype}; {_REMEDY}",
            about=file,
        )
    names = re.fullmatch(_NAME, file.name)
    if names and (int(names[1]), int(names[2])) != (manifest.rank, manifest.world_size):
        raise DataError(
            f"{file}: was written by rank {manifest.rank} of {manifest.world_size}, as its name does not say; "
            f"{_REMEDY}",
            about=file,
        )
    for shard in manifest.shards:
        if shard.split not in SPLITS or not shard.name or Path(shard.name).name != shard.name:
            raise DataError(f"{file}: a shard named {shard.name!r} in the split {shard.split!r}; {_REMEDY}", about=file)
        if shard.tokens * size != shard.bytes or not 0 < shard.documents <= shard.tokens:
            raise DataError(
                f"{file}: shard {shard.name} has {shard.tokens} tokens of {size} bytes and {shard.documents} documents "
                f"in {shard.bytes} bytes, which cannot be; {_REMEDY}",
                about=file,
            )


def read_manifests(folder: Path) -> list[Manifest]:
    """The manifests of all machines that prepared a folder, in order of rank.

    Raises:
        DataError: one is missing, they do not agree, or two of them hold a shard of the same name.
    """
    manifests = [read_manifest(file) for file in manifest_files(folder)]
    if not manifests:
        raise DataError(
            f"{folder}: holds no prepared data (no {manifest_name(0, 1)}); run prepare_data.py first", about=folder
        )
    first = manifests[0]
    for other in manifests[1:]:
        if found := differences(first, other):
            raise DataError(
                f"{folder}: rank {other.rank} was prepared with another {', another '.join(found)} than rank "
                f"{first.rank}; prepare one of them again",
                about=folder,
            )
    missing = sorted(set(range(first.world_size)) - {manifest.rank for manifest in manifests})
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        raise DataError(
            f"{folder}: prepared in part: of {first.world_size} ranks no manifest of {shown}; run prepare_data.py with "
            f"--rank {missing[0]} --world_size {first.world_size} and the same flags",
            about=folder,
        )
    seen = set()
    for shard in (shard for manifest in manifests for shard in manifest.shards):
        if (shard.split, shard.name) in seen:
            raise DataError(
                f"{folder}: shard {shard.split}/{shard.name} stands twice in the manifests; {_REMEDY}", about=folder
            )
        seen.add((shard.split, shard.name))
    return manifests
