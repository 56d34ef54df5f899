"""A format in one file of a user's own: .csv with a header, a record a row."""

import csv
from dataclasses import dataclass
from itertools import islice

from llama_dyt.config.options import option
from llama_dyt.data.formats.format import FORMATS, FileFormat


@dataclass(frozen=True)
class CsvSettings:
    """How .csv files are read."""

    csv_delimiter: str = option(",", "What stands between two values of a .csv file.")


class Csv(FileFormat):
    name, suffixes, settings = "csv", (".csv",), CsvSettings

    def records(self, path, first, settings):
        with open(path, newline="", encoding="utf-8") as file:
            yield from islice(csv.DictReader(file, delimiter=settings.csv_delimiter), first, None)


FORMATS.register(Csv())
