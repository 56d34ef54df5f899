"""What is wrong with a run before anything is launched: every problem at once, each one line with value and remedy.

The rules stand with the settings they are about (`Owned.problems`), the bounds of single values with their fields.
"""

from __future__ import annotations

from collections.abc import Callable

from llama_dyt.config.run import RunConfig, all_options, owners
from llama_dyt.core.errors import StoreError


def collect_problems(run: RunConfig, world_size: int | None = None, device: str | None = None) -> list[str]:
    """Everything that keeps `run` from starting; an empty list when nothing does.

    Args:
        run: the run.
        world_size: number of processes; None leaves out what depends on it.
        device: "cuda" or "cpu", the kind of device it trains on; None leaves out what depends on it.
    """
    flags = run.flags()
    found = [problem for opt in all_options(run.kind) if (problem := opt.out_of_range(flags[opt.name])) is not None]
    if not found:  # ratios of numbers that are out of range would only repeat the same mistake in other words
        for owned in owners():
            _collect(found, lambda owned=owned: owned.problems(run, world_size, device))
    for owned in owners():
        _collect(found, lambda owned=owned: owned.path_problems(run))
    return found


def _collect(found: list[str], look: Callable[[], list[str]]) -> None:
    """Add what a look finds; a store that does not answer it is what is wrong, once."""
    try:
        found += look()
    except StoreError as error:
        if not error.is_told_in(found):
            found.append(str(error))


def warnings(
    run: RunConfig,
    world_size: int | None = None,
    device: str | None = None,
    *,
    total_steps: int | None = None,
) -> list[str]:
    """What is probably not meant, though the run can start.

    Args:
        run, world_size, device: as for `collect_problems`.
        total_steps: optimizer steps of the run where that is known; --max_steps otherwise.
    """
    return [line for owned in owners() for line in owned.warnings(run, world_size, device, total_steps)]
