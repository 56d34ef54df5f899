"""What the processes of `test_snapshots.py` run of transfers alone: ranks send slots on, each of a size of its own."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from llama_dyt.training.snapshots import transfer
from llama_dyt.training.snapshots.transfer import Incoming, Outgoing, ship


def ring(sizes: list[int], piece_bytes: int, to: dict[int, int]) -> list[tuple[int, int, str, bool]]:
    """(from, number, marker, whether every byte is the sender's) of what came to this rank."""
    transfer._PIECE_BYTES = piece_bytes
    rank = dist.get_rank()
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=60))
    came: dict[int, torch.Tensor] = {}

    def place(sender: int):
        def memory(number: int) -> torch.Tensor:
            came[sender] = torch.zeros(sizes[sender], dtype=torch.uint8)
            return came[sender]

        return memory

    marker = "" if rank == 1 else f'{{"of": "{rank} é"}}'
    out = [Outgoing(to[rank], rank % 2, marker, _content(rank, sizes))] if rank in to else []
    senders = [sender for sender, receiver in to.items() if receiver == rank]
    found = ship(group, out, [Incoming(sender, place(sender)) for sender in senders])
    return [
        (sender, number, marker, torch.equal(came[sender], _content(sender, sizes)))
        for sender, (number, marker) in zip(senders, found, strict=True)
    ]


def _content(rank: int, sizes: list[int]) -> torch.Tensor:
    return torch.arange(sizes[rank]).mul(rank + 3).remainder(251).to(torch.uint8)
