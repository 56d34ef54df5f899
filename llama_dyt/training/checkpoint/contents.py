"""What of a run's weights a checkpoint holds, and under which names: all of a model, or an adapter alone."""

from __future__ import annotations

from dataclasses import dataclass

from llama_dyt.models.adapters.peft_files import PREFIX, STEM


@dataclass(frozen=True)
class Contents:
    """
    Attributes:
        folder: of the checkpoint, in which the weights are.
        stem: of their files, before `.safetensors`.
        prefix: of the names that parameters have there.
        in_one_file: however large.
    """

    folder: str
    stem: str
    prefix: str = ""
    in_one_file: bool = False


FORWARD_CHECK = "forward_check.json"

MODEL = Contents("model", "model")
ADAPTER = Contents("adapter", STEM, PREFIX, in_one_file=True)
"""In peft's format, which knows no shards."""
