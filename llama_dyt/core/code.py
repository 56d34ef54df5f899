"""Which code this is, as one hash: machines of a run must have the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]


def code_digest() -> str:
    """Hash of the package's programs, by their names in it and their contents."""
    files = sorted(path for suffix in ("*.py", "*.c") for path in FOLDER.rglob(suffix))
    content = b"\0".join(str(path.relative_to(FOLDER)).encode() + b"\0" + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:16]
