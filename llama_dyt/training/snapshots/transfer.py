"""Slots from rank to rank, over a group of their own, in pieces: what training sends meanwhile is not held up long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.distributed as dist

_PIECE_BYTES = 1 << 24

Message = tuple[int, torch.Tensor]
"""(rank that it goes to, or comes from; its bytes)"""


@dataclass(frozen=True)
class Outgoing:
    """A slot to send.

    Attributes:
        receiver: rank.
        number: of the slot.
        marker: its text; empty where what is sent is not to be kept.
    """

    receiver: int
    number: int
    marker: str
    memory: torch.Tensor


@dataclass(frozen=True)
class Incoming:
    """A slot that comes.

    Attributes:
        sender: rank.
        place: (number of the slot) → the memory for it, unmarked.
    """

    sender: int
    place: Callable[[int], torch.Tensor]


def ship(group: dist.ProcessGroup, out: Sequence[Outgoing], coming: Sequence[Incoming]) -> list[tuple[int, str]]:
    """Send and receive slots; every rank of the group that has any calls it, and who sends and who receives agree.

    Returns:
        (number, marker) of each that came, in the order of `coming`.
    """
    texts = [torch.frombuffer(bytearray(one.marker.encode() or b" "), dtype=torch.uint8) for one in out]
    heads = [torch.tensor([one.number, len(text)]) for one, text in zip(out, texts, strict=True)]
    heads_in = [torch.zeros(2, dtype=torch.int64) for _ in coming]
    senders, receivers = [one.sender for one in coming], [one.receiver for one in out]
    _swap(group, list(zip(receivers, heads, strict=True)), list(zip(senders, heads_in, strict=True)))
    texts_in = [torch.empty(int(head[1]), dtype=torch.uint8) for head in heads_in]
    _swap(group, list(zip(receivers, texts, strict=True)), list(zip(senders, texts_in, strict=True)))
    places = [one.place(int(head[0])) for one, head in zip(coming, heads_in, strict=True)]
    going = [[(one.receiver, piece) for piece in one.memory.split(_PIECE_BYTES)] for one in out]
    arriving = [[(sender, piece) for piece in place.split(_PIECE_BYTES)] for sender, place in zip(senders, places)]
    # All ranks go through the pieces in one order, each with all it talks to at once: nobody waits in a circle.
    for sent, received in zip_longest(zip_longest(*going), zip_longest(*arriving), fillvalue=()):
        _swap(group, list(filter(None, sent)), list(filter(None, received)))
    markers = [bytes(text.numpy()).decode().strip() for text in texts_in]
    return [(int(head[0]), marker) for head, marker in zip(heads_in, markers, strict=True)]


def _swap(group: dist.ProcessGroup, out: Sequence[Message], coming: Sequence[Message]) -> None:
    work = [dist.irecv(piece, src=sender, group=group) for sender, piece in coming]
    work += [dist.isend(piece, dst=receiver, group=group) for receiver, piece in out]
    for one in work:
        one.wait()
