"""What the first rank that knows of a failure puts where all look, and how long they stay for it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

import torch.distributed as dist

from llama_dyt.core.place import Place


@dataclass
class Failure:
    """What a rank tells the others of a failure.

    Attributes:
        rank: of the one that tells.
        message, status: what it prints, and what all end with.
        accounts: all are to say where they stood.
        fate: what has become of it, where it speaks of itself: "raised".
        plain: the message says all that there is to say where they stood alike.
        silent: ranks that can say nothing, and not end by themselves.
    """

    rank: int
    message: str
    status: int
    accounts: bool = False
    fate: str = ""
    plain: bool = False
    silent: list[int] = field(default_factory=list)


def tell(store: dist.Store, failure: Failure) -> bool:
    """Put a failure where all ranks look; False if one was there already."""
    mine = json.dumps(vars(failure))
    return store.compare_set("failure", "", mine) == mine.encode()


def told_failure(store: dist.Store) -> Failure | None:
    return Failure(**json.loads(store.get("failure"))) if store.check(["failure"]) else None


def linger(store: dist.Store, place: Place, seconds: float) -> None:
    """Say that this process has read of the failure; the one with the store waits, for so long, until all have."""
    seen = store.add("failure seen", 1)
    deadline = time.monotonic() + seconds
    while place.hosts and seen < place.world_size and time.monotonic() < deadline:
        time.sleep(0.1)
        seen = store.add("failure seen", 0)
