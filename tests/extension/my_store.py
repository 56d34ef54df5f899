"""A user's store in one file: `shelf://…` keeps the files of runs as rows of a SQLite file, the one that SHELF names.

    python pretrain.py --import my_store --save_dir shelf://runs/7 …

It can put, get, list and delete whole files, as object storage does: it knows no renames and no folders.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from llama_dyt.core.object_store import ObjectStore
from llama_dyt.core.store import STORES


class Shelf(ObjectStore):
    name = "shelf"

    def put(self, address: str, file: Path) -> None:
        self._do("INSERT OR REPLACE INTO files VALUES (?, ?)", address, file.read_bytes())

    def put_new(self, address: str, file: Path) -> bool:
        try:
            self._do("INSERT INTO files VALUES (?, ?)", address, file.read_bytes())
        except FileExistsError:
            return False
        return True

    def get(self, address: str, file: Path) -> None:
        found = self._do("SELECT content FROM files WHERE address = ?", address)
        if not found:
            raise FileNotFoundError(f"{address} is not on the shelf")
        file.write_bytes(found[0][0])

    def list(self, address: str) -> dict[str, int]:
        below = f"{address}/"
        rows = self._do("SELECT address, length(content) FROM files")
        return {name: size for name, size in rows if name == address or name.startswith(below)}

    def delete(self, address: str) -> None:
        self._do("DELETE FROM files WHERE address = ?", address)

    def _do(self, statement: str, *values: object) -> list[tuple]:
        try:
            with closing(sqlite3.connect(os.environ["SHELF"], timeout=60)) as shelf, shelf:
                shelf.execute("CREATE TABLE IF NOT EXISTS files (address TEXT PRIMARY KEY, content BLOB)")
                return shelf.execute(statement, values).fetchall()
        except sqlite3.IntegrityError as error:
            raise FileExistsError(str(error)) from error
        except sqlite3.Error as error:
            raise OSError(str(error)) from error


STORES.register(Shelf())
