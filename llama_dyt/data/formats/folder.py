"""Folders and globs, whose files are read by their own formats, and what else is meant for this machine."""

from __future__ import annotations

from llama_dyt.data.formats.format import Format, open_files, readers
from llama_dyt.data.formats.matching import is_local
from llama_dyt.data.formats.sources import ReadOptions, Source


class Folder(Format):
    name = "folder"
    order = 70

    def matches(self, dataset: str) -> bool:
        return is_local(dataset, readers())

    def open(self, dataset: str, options: ReadOptions) -> Source:
        return open_files(dataset, options)


FORMAT = Folder()
