"""A store whose puts of step 4 (HELD_STEP) wait for a file `go`, or fail where there is a file `full`.

HELD=/folder python pretrain.py --import slow_store --save_dir held://runs/7 …
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

from llama_dyt.core.object_store import ObjectStore
from llama_dyt.core.store import STORES


class Held(ObjectStore):
    name = "held"

    def put(self, address: str, file: Path) -> None:
        held = Path(os.environ["HELD"])
        if f"/step_{int(os.environ.get('HELD_STEP', 4)):08d}/model/" in address:
            if (held / "full").exists():
                raise OSError(28, "No space left on device")
            whole = held / f"waits.{threading.get_ident()}"  # who looks for it reads it at once
            whole.write_text(str(os.getpid()))
            whole.replace(held / "waits")
            while not (held / "go").exists():
                time.sleep(0.02)
        path = self._path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.aside")
        shutil.copyfile(file, aside)
        os.replace(aside, path)

    def get(self, address: str, file: Path) -> None:
        shutil.copyfile(self._path(address), file)

    def list(self, address: str) -> dict[str, int]:
        top = self._path(address)
        found = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
        root = self._path("held://")
        sizes = {}
        for path in found:
            if path.suffix != ".aside" and path.exists():
                sizes[f"held://{path.relative_to(root).as_posix()}"] = path.stat().st_size
        return sizes

    def delete(self, address: str) -> None:
        self._path(address).unlink(missing_ok=True)

    @staticmethod
    def _path(address: str) -> Path:
        return Path(os.environ["HELD"], "files", address.removeprefix("held://"))


STORES.register(Held())
