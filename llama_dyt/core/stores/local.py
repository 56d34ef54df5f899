"""Folders of this machine, or ones it shares: files are made aside, synchronised and renamed.

A folder in the making is `.NAME.NONCE.unfinished`, and one whose place it takes is `.NAME.replaced` for a moment. Two
renames are needed there. Killed between them, a run leaves no folder of the name, but a whole new one and a whole old
one beside it: `folders` finds the new one there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llama_dyt.core import files
from llama_dyt.core.store import MARKER, Records, Say, Spool, Staging

_REPLACED = ".replaced"
_UNFINISHED = ".unfinished"


class LocalStore:
    """The file system's folders; an address is a path."""

    name = "file"

    def at(self, address: str) -> Path:
        return Path(address.removeprefix("file://"))

    def why_not_writable(self, place: Path) -> str | None:
        return files.why_not_writable(place)

    def write_text(self, place: Path, text: str) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(place, text)

    def sizes(self, folder: Path) -> dict[str, int]:
        found = {}
        for inner, _, names in os.walk(folder, followlinks=True):
            for path in (Path(inner, name) for name in names):
                if path.is_file():
                    found[path.relative_to(folder).as_posix()] = path.stat().st_size
        return found

    def local(self, folder: Path, only: str = "") -> Path:
        return folder

    def stage(self, final: Path, nonce: str) -> Staging:
        return _Aside(final, nonce)

    def folders(self, parent: Path, is_whole: Callable[[Path], bool]) -> dict[str, Path]:
        if not parent.is_dir():
            return {}
        found = {path.name: path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir()}
        for old in parent.glob(f".*{_REPLACED}"):
            found.setdefault(_name_of(old), _in_between(old, is_whole))
        return found

    def home_of(self, folder: Path) -> Path:
        aside = folder.name.startswith(".") and folder.name.endswith((_REPLACED, _UNFINISHED))
        return folder.with_name(_name_of(folder)) if aside else folder

    def clear(self, parent: Path, is_ours: Callable[[str], bool], is_whole: Callable[[Path], bool], say: Say) -> None:
        for old in parent.glob(f".*{_REPLACED}"):
            if is_ours(_name_of(old)):
                home = self.home_of(old)
                if not home.exists():
                    os.rename(_in_between(old, is_whole), home)
                    files.sync_folder(parent)
                    say(f"{home} has its name again, which a run that was killed did not come to give it")
                shutil.rmtree(old, ignore_errors=True)
        for unfinished in parent.glob(f".*{_UNFINISHED}"):
            if is_ours(_name_of(unfinished)):
                say(f"removed {unfinished}, the unfinished checkpoint of a run that is gone")
                shutil.rmtree(unfinished, ignore_errors=True)

    def remove(self, folder: Path) -> None:
        aside = folder.with_name(f".{folder.name}.removed{_UNFINISHED}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        (aside / MARKER).unlink(missing_ok=True)
        shutil.rmtree(aside)

    def sync_spools(self) -> None:
        pass

    def spool(self, folder: Path, *names: str) -> Spool:
        return _InPlace(folder)

    def records(self, folder: Path, name: str) -> Records:
        return _RecordFiles(folder, name)


def _name_of(aside: Path) -> str:
    """The name that a folder made or set aside is of."""
    return aside.name.split(".")[1]


def _in_between(old: Path, is_whole: Callable[[Path], bool]) -> Path:
    """Of a name whose folder was set aside: the one that was to take its place, else the old one itself."""
    asides = old.parent.glob(f"{old.name.removesuffix(_REPLACED)}.*{_UNFINISHED}")
    return next((aside for aside in sorted(asides) if is_whole(aside)), old)


class _Aside:
    """A folder made beside its place, which all processes see."""

    def __init__(self, final: Path, nonce: str) -> None:
        self._final = final
        self._folder = final.with_name(f".{final.name}.{nonce}{_UNFINISHED}")

        self._began = False

    def begin(self, say: Say) -> None:
        self._began = True
        self._folder.mkdir(parents=True)

    def folder(self, name: str = "") -> Path:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return folder

    def hand_over(self) -> None:
        pass

    def publish(self, marker: str, say: Say) -> None:
        files.write_text(self._folder / MARKER, marker)
        final = self._final
        if final.exists():
            say(f"{final} was there already, of another course of this run: it is replaced")
            old = final.with_name(f".{final.name}{_REPLACED}")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(final, old)
            os.rename(self._folder, final)
            files.sync_folder(final.parent)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(self._folder, final)
            files.sync_folder(final.parent)

    def discard(self) -> None:
        if self._began:  # away in one act: another thread may be about to give it its name
            aside = self._folder.with_name(f"{self._folder.name.removesuffix(_UNFINISHED)}.discarded{_UNFINISHED}")
            with suppress(OSError):
                os.rename(self._folder, aside)
            shutil.rmtree(aside, ignore_errors=True)


class _InPlace:
    """Files that grow where they belong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def sync(self, now: bool = True) -> None:
        pass

    def close(self) -> None:
        pass


class _RecordFiles:
    """Records that only one can make, by O_EXCL."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._pattern = re.compile(rf"\.{re.escape(name)}\.(\d+)")
        self._made: list[Path] = []
        self._descriptor = -1

    def prepare(self) -> None:
        missing = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made = missing[::-1] or self._made  # outermost first

    def numbers(self) -> list[int]:
        found = map(self._pattern.fullmatch, os.listdir(self._folder))
        return sorted(int(match[1]) for match in found if match)

    def read(self, number: int) -> bytes | None:
        try:
            return self._path(number).read_bytes()
        except FileNotFoundError:
            return None

    def name(self, number: int) -> str:
        return self._path(number).name

    def identity(self, number: int) -> int:
        return os.stat(self._path(number)).st_ino

    def make(self, number: int, content: Callable[[int], bytes]) -> bool:
        try:
            self._descriptor = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            self.rewrite(content(os.fstat(self._descriptor).st_ino))
            files.sync_folder(self._folder)
        except BaseException:
            self.remove(number)
            self.close()
            raise
        return True

    def rewrite(self, content: bytes) -> None:
        os.pwrite(self._descriptor, content, 0)
        os.fsync(self._descriptor)

    def remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._descriptor)

    def tidy(self) -> None:
        with suppress(OSError):  # something came into it
            for folder in reversed(self._made):
                folder.rmdir()

    def _path(self, number: int) -> Path:
        return self._folder / f".{self._name}.{number}"


STORE = LocalStore()
