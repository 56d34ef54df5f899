"""The weights that an adapter was trained beside, as its checkpoints refer to them: where they are, and checksums.

    adapter/base.json    {"path": "…", "positions": 4096,
                          "files": {"model.safetensors": {"bytes": 1234, "sha256": "…"}}}

An adapter goes on with other weights without a word, and worse; so who resumes it compares them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_dyt.core import ranks
from llama_dyt.core.environment import ProcessEnvironment
from llama_dyt.core.errors import CheckpointError
from llama_dyt.training.checkpoint.marker import Written, identity_of, read_marker, sha256_of
from llama_dyt.training.checkpoint.verification import checkpoint_around, share

BASE_FILE = "base.json"


@dataclass(frozen=True)
class Base:
    """
    Attributes:
        path: folder or hub name.
        positions: the longest sequence that the adapter's training had, or the weights were made for.
        files: name of each file of weights → its size and, unless that was left out, its checksum.
    """

    path: str
    positions: int
    files: dict[str, Written]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Base:
        files = {name: Written(**written) for name, written in value["files"].items()}
        return cls(value["path"], value["positions"], files)

    def require_same(self, saved: Base, checkpoint: Any) -> None:
        """Raises CheckpointError where these weights are not the ones of a checkpoint; sizes, and checksums where both
        have them."""
        for name in sorted({*self.files, *saved.files}):
            now, then = self.files.get(name), saved.files.get(name)
            if now is None or then is None:
                what = f"{name} is {'missing' if now is None else 'new'}"
            elif now.bytes != then.bytes:
                what = f"{name} has {now.bytes} bytes, it had {then.bytes}"
            elif now.sha256 and then.sha256 and now.sha256 != then.sha256:
                what = f"{name} holds other bytes (SHA-256 {now.sha256[:16]}…, it was {then.sha256[:16]}…)"
            else:
                continue
            raise CheckpointError(
                f"--model_path {self.path} is not the base that {checkpoint} was trained beside: {what}; "
                f"give that one (it was {saved.path}), or start anew with --adapter {checkpoint}"
            )


def describe_base(folder: Path, path: str, positions: int, environment: ProcessEnvironment, read: bool) -> Base:
    """The reference to the weights in a folder. All ranks call it; those that see the same folder share its files.

    Args:
        path: as it is to be written down.
        read: compute checksums that are not there yet; those of a checkpoint are in its marker.
    """
    around = checkpoint_around(folder)
    if around is not None:
        marked = {name.removeprefix("model/"): file for name, file in read_marker(around).items() if _of_model(name)}
        return Base(path, positions, marked)
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    sizes = {name: Written((folder / name).stat().st_size, None) for name in names}
    if not read or not names:
        return Base(path, positions, sizes)
    what = f"reading {folder} for its checksums"
    seen = ranks.gather(identity_of(folder / names[0]), what)
    sharing = [rank for rank, theirs in enumerate(seen) if theirs == seen[environment.rank]]
    mine = share(sizes, sharing.index(environment.rank), len(sharing))
    found = ranks.together(lambda: {name: Written(sizes[name].bytes, sha256_of(folder / name)) for name in mine}, what)
    for rank, theirs in enumerate(ranks.gather(found, what)):
        if rank in sharing:
            sizes.update(theirs)
    return Base(path, positions, sizes)


def _of_model(name: str) -> bool:
    return name.startswith("model/") and name.endswith(".safetensors")
