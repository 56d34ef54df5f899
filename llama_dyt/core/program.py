"""How a program that is no run of several processes begins and ends; those of runs are in `training.entry`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from llama_dyt.core.errors import EXIT_STATUS, LlamaDytError
from llama_dyt.core.secrets import keep_out_of_output


def run_program(main: Callable[[], None], of_stdout: bool = True) -> None:
    """Run the main of an entry: no secret is printed, and a mistake is one line and EXIT_STATUS.

    Args:
        of_stdout: as of `keep_out_of_output`.
    """
    keep_out_of_output(of_stdout=of_stdout)
    try:
        main()
    except LlamaDytError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
