"""What writes a format: its seam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llama_dyt.core.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llama_dyt.convert.source import Opened
    from llama_dyt.convert.weights import Weights


@dataclass(frozen=True)
class Job:
    """What is to be written, and how.

    Attributes:
        weights: as they shall be written, but for their names.
        opened: where they come from.
        source: what that is, in words.
        tokenizer: a HuggingFace tokenizer, or None.
        tokenizer_files: folder or file that it was loaded from.
        max_shard_bytes: of one file.
        num_shards: tensor-parallel files, where a format has such.
        changes: what was done to the weights, a sentence each.
    """

    weights: Weights
    opened: Opened
    source: str
    input_path: str
    tokenizer: Any
    tokenizer_files: Path | None
    max_shard_bytes: int
    num_shards: int
    changes: Sequence[str]


class Target(Protocol):
    """One format that is written. Its module is light, as a source's.

    Attributes:
        name: what `--to` takes.
        dtype: a word of `weights.DTYPES` that it is written in unless asked for otherwise; None: as it comes.
        divided: it takes `--shards`.
    """

    name: str
    dtype: str | None
    divided: bool

    def problems(self, weights: Weights, num_shards: int) -> list[str]:
        """Why weights cannot be written so."""

    def write(self, job: Job, folder: Path) -> dict[str, str]:
        """Write all files into a folder, which is there and empty.

        Returns:
            name → SHA-256 of those whose sum is known from writing them.
        """

    def logits(self, folder: Path, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """What the written model says, read as its user reads it; as `Opened.logits`."""


TARGETS: Registry[Target] = Registry("target format", "llama_dyt.convert.formats", "TARGET", "to")
