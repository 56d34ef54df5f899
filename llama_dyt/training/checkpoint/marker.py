"""The marker of a whole checkpoint and the names of their folders, which also other parts read: `core.marker`."""

from llama_dyt.core.marker import (
    MARKER,
    Written,
    damaged_files,
    described,
    identity,
    identity_of,
    marker_of,
    read_marker,
    sha256_of,
    step_folder,
    step_of,
    why_incomplete,
)

__all__ = [
    "MARKER",
    "Written",
    "damaged_files",
    "described",
    "identity",
    "identity_of",
    "marker_of",
    "read_marker",
    "sha256_of",
    "step_folder",
    "step_of",
    "why_incomplete",
]
