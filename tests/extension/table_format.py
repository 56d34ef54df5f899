"""A format in one file of a user's own: .table with a header, a record a row."""

import csv
from dataclasses import dataclass
from itertools import islice

from llama_dyt.config.options import option
from llama_dyt.data.formats.format import FORMATS, FileFormat


@dataclass(frozen=True)
class TableSettings:
    """How .table files are read."""

    table_delimiter: str = option(",", "What stands between two values of a .table file.")


class Table(FileFormat):
    name, suffixes, settings = "table", (".table",), TableSettings

    def records(self, path, first, settings):
        with open(path, newline="", encoding="utf-8") as file:
            yield from islice(csv.DictReader(file, delimiter=settings.table_delimiter), first, None)


FORMATS.register(Table())
