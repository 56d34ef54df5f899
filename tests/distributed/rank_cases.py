"""Ranks that fail, wait and meet: in processes of their own, for what ends a process cannot be a case of a pool."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from tests import forks


@dataclass(frozen=True)
class End:
    """How a rank ended: its status, what it printed on stderr, and how long it took."""

    status: int
    stderr: str
    seconds: float


def run_ranks(
    case: Callable[..., Any],
    folder: Path,
    port: int,
    *arguments: Any,
    timeout: int = 60,
    ranks: tuple[int, ...] = (0, 1),
    say_after: float = 30.0,
) -> list[End]:
    """Run a function as the main of an entry on two ranks, or on one of them, launched with `--timeout`.

    Args:
        say_after: seconds after which a wait is told; on a busy machine, seconds pass without one that is meant.
    """
    started, ends = time.monotonic(), []
    files = [folder / f"stderr-{rank}" for rank in ranks]
    processes = [
        forks.start(_main, case, rank, port, timeout, say_after, str(file), arguments)
        for rank, file in zip(ranks, files, strict=True)
    ]
    for process, file in zip(processes, files, strict=True):
        process.join(120)
        if process.exitcode is None:
            process.kill()
            process.join()
        text = file.read_text(encoding="utf-8", errors="replace")
        ends.append(End(process.exitcode, text, time.monotonic() - started))
    return ends


def _main(
    case: Callable[..., Any], rank: int, port: int, timeout: int, say_after: float, file: str, arguments: tuple
) -> None:
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o644), 2)
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    os.environ["MASTER_ADDR"] = "localhost"

    from llama_dyt.core import rendezvous
    from llama_dyt.launch.process_group import launch
    from llama_dyt.training.entry import run_entry

    def main() -> None:
        with mock.patch.object(rendezvous, "SAY_AFTER_SECONDS", say_after):
            launch(0, timeout=timeout)
            case(rank, *arguments)

    run_entry(main)


def fail_to_gather(rank: int, folder: str) -> None:
    """A save in which rank 1 has no memory for a tensor that all gather."""
    from tests.distributed import small_run
    from tests.distributed.training_cases import start

    trainer = start(small_run.run_config(small_run.Layout("zero1", 2), "fp32"), Path(folder))
    batches = small_run.batches(trainer.boosted.run, trainer.boosted.grid.dp_rank, trainer.boosted.grid.dp_size)
    for step in islice(batches, 1):
        trainer.train_step(step)
    failing = mock.patch.object(trainer.boosted.state, "gather", side_effect=MemoryError("no room for a tensor"))
    with failing if rank == 1 else nullcontext():
        trainer.save()


def count_for_long(rank: int, seconds: float) -> None:
    """Rank 0 works longer than `--timeout` while the other waits for what comes of it."""
    from llama_dyt.core import ranks

    assert ranks.from_first(lambda: (time.sleep(seconds), "counted")[1], "counting") == "counted"


def fail_while_counting(rank: int) -> None:
    """What rank 0 computes for all fails in a way nobody foresaw."""
    from llama_dyt.core import ranks

    ranks.from_first(lambda: {}["no such key"], "counting")


def never_come(rank: int) -> None:
    """Rank 1 does not come to what rank 0 waits for."""
    from llama_dyt.core import ranks

    if rank == 1:
        time.sleep(100)
    ranks.gather(rank, "saving the random generators")


def fail_in_a_step(rank: int, how: str, folder: str) -> None:
    """Rank 1 is stopped or killed, or raises, in a step in which the other waits for it."""
    import torch
    import torch.distributed as dist

    from llama_dyt.core import ranks
    from llama_dyt.core.standing import Phase, enter, in_step

    ranks.keep_accounts(Path(folder))
    dist.all_reduce(torch.ones(2))
    in_step(41)
    enter(Phase.FORWARD)
    if rank == 1:
        enter(Phase.OPTIMIZER)
        if how == "raise":
            raise MemoryError("no room for a gradient")
        os.kill(os.getpid(), signal.SIGSTOP if how == "stop" else signal.SIGKILL)
    dist.all_reduce(torch.ones(3, 5))


def write_for_ever(rank: int, disk: str) -> None:
    """Rank 1 writes to a disk that does not answer, which takes as long as it takes, while the other waits for it."""
    from llama_dyt.core import ranks

    ranks.together(lambda: rank == 1 and (Path(disk) / "shard").write_text("weights"), "writing a checkpoint")


def meet_and_part(rank: int) -> None:
    """Nothing: the ranks have met."""


def find_no_gpu(rank: int, port: int) -> None:
    """Rank 1 does not see the GPU that rank 0 has."""
    from llama_dyt.core import ranks
    from llama_dyt.core.environment import read_environment

    ranks.leave()
    place = replace(read_environment().place, port=port)
    ranks.join(place, 60, "cpu" if rank else "cuda")
    time.sleep(60)  # where torch would make two different groups


def disagree() -> str:
    """What a pool's rank is told when ranks have different code; its own error, and none where they are alike."""
    import torch.distributed as dist

    from llama_dyt.core import ranks
    from llama_dyt.core.errors import ConfigurationError

    same = {"the seed": ranks.Fact("1", f"rank {dist.get_rank()} got it from here")}
    ranks.agree(same)
    try:
        ranks.agree({**same, "the code of llama_dyt": ranks.Fact(f"code {dist.get_rank() // 2}")})
    except ConfigurationError as error:
        return str(error)
    return ""
