"""The second stage: what is wrong with a run by its flags alone, as many processes as there are and their device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from llama_dyt.config.check import collect_problems
from llama_dyt.config.run import RunConfig
from llama_dyt.core.environment import ProcessEnvironment, device_type, read_environment
from llama_dyt.core.errors import ConfigurationError, LlamaDytError, StoreError
from llama_dyt.core.problem import Problem, flags_of
from llama_dyt.training.plan.global_batch import with_global_batch
from llama_dyt.training.plan.parse import Asked


@dataclass
class Found:
    """What is wrong with a run, gathered in place of stopping at the first of it.

    Attributes:
        dry: the run is only sized up, and may be meant for another machine: what follows from this one is no obstacle.
        problems: what keeps the run from starting.
        in_passing: what would keep it from starting on this machine; of a dry run.
    """

    dry: bool = False
    problems: list[str] = field(default_factory=list)
    in_passing: list[str] = field(default_factory=list)

    def add(self, problem: str, *, local: bool = False) -> None:
        """Keep a problem, once.

        Args:
            local: it follows from what this machine has, as a `Problem` itself may say.
        """
        local = local or (isinstance(problem, Problem) and problem.local)
        kept = self.in_passing if self.dry and local else self.problems
        if problem not in kept:
            kept.append(problem)

    def attempt(self, action: Callable[[], Any], *, local: bool = False) -> Any:
        """The action's value, or None after keeping what it complained about."""
        try:
            return action()
        except ConfigurationError as error:
            for problem in error.problems:
                self.add(problem, local=local)
        except StoreError as error:
            if not error.is_told_in(self.problems):
                self.add(str(error), local=local)
        except LlamaDytError as error:
            self.add(str(error), local=local)
        return None

    def raise_if_any(self) -> None:
        if self.problems:
            raise ConfigurationError(self.problems)


@dataclass
class Checked:
    """A run whose flags have been judged.

    Attributes:
        environment: which process this is, and of how many; in a dry run as many as it plans for.
        device: "cuda" or "cpu".
        found: what is wrong so far.
        missing: what is wrong with the datasets it names; None where nobody has looked yet.
        asked: the run as its flags are.
    """

    run: RunConfig
    environment: ProcessEnvironment
    device: str
    found: Found
    missing: list[Problem] | None = None
    asked: RunConfig | None = None


def check(asked: Asked) -> Checked:
    """Judge the flags of a run.

    Raises:
        ConfigurationError: the launcher's variables say nothing that can be understood.
    """
    run, environment, device = asked.run, read_environment(), device_type()
    if run.run.dry_run and run.run.dry_run_processes is not None:
        environment = replace(environment, world_size=run.run.dry_run_processes)
    found = Found(run.run.dry_run)
    for problem in asked.unread:
        found.add(problem)
    # A flag that cannot be read has its default from here on; what follows from a default was not asked for.
    unread = {flag for problem in asked.unread for flag in flags_of(problem)}
    run = found.attempt(lambda: with_global_batch(asked.run, environment.world_size)) or run
    for problem in collect_problems(run, environment.world_size, device):
        if unread.isdisjoint(flags_of(problem)):
            found.add(problem)
    return Checked(run, environment, device, found, asked=asked.run)
