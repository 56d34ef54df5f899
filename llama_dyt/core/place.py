"""Which process of a run this one is, and where all of them meet: what a launcher says, before anything is joined."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Which process of a run this is, and where all of them meet.

    Attributes:
        rank, local_rank, world_size: as the launcher gave them.
        address, port: where rank 0 listens, or torchrun.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def hosts(self) -> bool:
        """Whether the store is this process's own. torchrun keeps one for its workers, and says so."""
        return self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    @property
    def speaks_without_first(self) -> bool:
        """Whether this is the one process of its machine that speaks where rank 0 cannot."""
        return self.local_rank == (1 if self.local_rank == self.rank else 0)

    def __str__(self) -> str:
        import socket  # where somebody asks: `--help` does not

        return f"rank {self.rank} on {socket.gethostname()}"
