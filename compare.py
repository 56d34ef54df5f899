"""Put runs beside each other, or look at one: a page made of what stands in their --save_dir.

python compare.py runs/dyt runs/rmsnorm --output compared.html
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from llama_dyt.core.errors import DataError
from llama_dyt.core.program import run_program
from llama_dyt.core.store import at, store_of
from llama_dyt.training.report.page import page
from llama_dyt.training.report.reading import REPORT_FILE, distinct_names, read_run


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("save_dir", nargs="+", help="The --save_dir of a run, or several.")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=f"HTML file to write; {REPORT_FILE} in the --save_dir where one is given, else compared.html here.",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    folders = [at(address) for address in arguments.save_dir]
    runs = [read_run(folder, name).to_json() for folder, name in zip(folders, distinct_names(folders))]
    output = at(arguments.output) if arguments.output else None
    if output is None:
        output = folders[0] / REPORT_FILE if len(folders) == 1 else Path("compared.html")
    try:
        store_of(output).write_text(output, page(runs))
    except OSError as error:
        raise DataError(
            f"--output {output}: cannot be written ({error.strerror or error}); give another file"
        ) from None
    print(f"report  {output}")


if __name__ == "__main__":
    run_program(main)
