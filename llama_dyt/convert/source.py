"""What reads a format: its seam, and finding out which one a path is of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.core.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llama_dyt.convert.weights import Weights


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose headers were read and judged.

    Attributes:
        weights: to be read one by one while the source is open.
        logits: ((1, length) ids, dtype) → (length, vocabulary) in fp32, with weights rounded to the dtype: what the
            model says by its own format's reading, as far from the conversion's as it can be.
        tokenizer: folder or file; None where it has none.
        load_tokenizer: makes it, where it is in a form that this format alone has.
        generation: folder with a generation_config.json, where there is one.
        run: --save_dir of the run of ours that wrote it.
        step: of that run.
        notes: what was found or assumed, a sentence each, for the user.
    """

    weights: Weights
    logits: Callable[[Tensor, torch.dtype], Tensor]
    tokenizer: Path | None = None
    load_tokenizer: Callable[[], Any] | None = None
    generation: Path | None = None
    run: Path | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """One format that is read. Its module is light: what it needs of torch it imports where it opens.

    Attributes:
        name: what `--from` takes.
        in_words: what a person calls one.
        files: by which one is known.
        order: the place in which formats are asked whose a path is; may be absent.
        takes_config: its files may not tell all figures, so `--config` says them.
    """

    name: str
    in_words: str
    files: str
    takes_config: bool

    def matches(self, path: Path) -> bool:
        """Whether a path looks like this format; by names, and by what a header says where names do not tell.

        Raises:
            CheckpointError: a header that would tell cannot be read.
        """

    def open(self, path: Path, config: str | None) -> AbstractContextManager[Opened]:
        """Read headers and figures, and judge them.

        Args:
            config: what `--config` says.

        Raises:
            CheckpointError: a file or tensor is missing, cut short, holds code, or is of another shape; named.
            ConfigurationError: the figures cannot be read or are of no model that there is.
        """


SOURCES: Registry[Source] = Registry("source format", "llama_dyt.convert.formats", "SOURCE", "from")


def source_of(path: Path, name: str | None) -> Source:
    """The format of a path: the one named, or the one it looks like.

    Raises:
        ConfigurationError: it looks like none.
        CheckpointError: what it is stands in a file that cannot be read.
    """
    if name is not None:
        return SOURCES.get(name)
    for source in SOURCES:
        if source.matches(path):
            return source
    known = "; ".join(f"{source.name}: {source.files}" for source in SOURCES)
    if not path.exists():
        raise ConfigurationError(Problem("input_path", path, "no such file or folder"))
    raise ConfigurationError(
        Problem("input_path", path, f"it looks like none of the formats that can be read ({known})", "give --from")
    )
