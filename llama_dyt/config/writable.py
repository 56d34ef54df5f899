"""Whether a folder can be written, asked before a run rather than at its first save.

Its own file because settings of several kinds ask it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path


def why_not_writable(folder: str | Path) -> str | None:
    """Why nothing can be written in a folder that exists or is to be made, or None. Leaves nothing behind.

    It tries in the nearest folder that exists: permissions alone do not tell of read-only or full disks, and say
    nothing to root.
    """
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is a file" if existing != folder else "it is a file"
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{existing} cannot be written ({error.strerror})"
