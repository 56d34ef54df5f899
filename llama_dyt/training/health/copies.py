"""Whether ranks that must hold the same weights do: what a memory or a processor changes without a word shows here.

Bits are added up as whole numbers where they are, one pass over what a rank holds of what others hold too: a bit that
is not the same makes another sum. Only digests travel, and the sums where those differ.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch

from llama_dyt.boosters.training_state import TrainingState
from llama_dyt.core import ranks
from llama_dyt.core.rendezvous import ranks_in_words

_WHAT = "comparing checksums of weights"


@dataclass(frozen=True)
class Difference:
    """What some ranks hold otherwise than those that should hold the same.

    Attributes:
        what: the first tensor, by its parameter's name.
        others: how many tensors more.
        odd: the ranks that differ from most; where as many hold one as the other, those that differ from the lowest.
        even: the ranks that most have it like.
        tie: as many hold it one way as the other, so that nobody can tell which is right.
    """

    what: str
    others: int
    odd: tuple[int, ...]
    even: tuple[int, ...]
    tie: bool

    def in_words(self, hosts: Sequence[str]) -> str:
        """`hosts`: of all ranks, in order."""
        places = ", ".join(dict.fromkeys(hosts[rank] for rank in self.odd))
        odd = f"{ranks_in_words(self.odd)} (host{'s' if ',' in places else ''} {places})"
        more = f" (and {self.others} tensor{'s' if self.others > 1 else ''} more)" if self.others else ""
        of_which = "; which of them is right cannot be told" if self.tie else ""
        have = "holds" if len(self.odd) == 1 else "hold"
        return f"{odd} {have} another {self.what}{more} than {ranks_in_words(self.even)}{of_which}"


class Copies:
    """What of a training state several ranks hold.

    All methods are collective, between two steps.
    """

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        self._shared: set[Hashable] | None = None

    def any_shared(self) -> bool:
        """Whether there is anything to compare."""
        return any(ranks.gather(bool(self._held_by_several()), _WHAT))

    def _held_by_several(self) -> set[Hashable]:
        if self._shared is None:
            own = {whose for whose, _, _ in self._state.copies()}
            holders = Counter(whose for theirs in ranks.gather(own, _WHAT) for whose in theirs)
            self._shared = {whose for whose in own if holders[whose] > 1}
        return self._shared

    def difference(self) -> Difference | None:
        """Compare; the same answer on every rank."""
        sums = self._sums()
        digests = {whose: _digest(of_tensors) for whose, of_tensors in sums.items()}
        of_ranks = ranks.gather(digests, _WHAT)
        bad = {whose for theirs in of_ranks for whose in theirs if len(_values(of_ranks, whose)) > 1}
        if not bad:
            return None
        whole = ranks.gather({whose: sums[whose] for whose in bad if whose in sums}, _WHAT)
        return _first_difference(whole)

    def _sums(self) -> dict[Hashable, dict[str, int]]:
        """Whose copy → tensor → the sum of its bits, of what others hold too."""
        shared = self._held_by_several()
        keys, totals = [], []
        for whose, what, tensor in self._state.copies():
            if whose in shared:
                keys.append((whose, what))
                totals.append(sum_of_bits(tensor))
        found: dict[Hashable, dict[str, int]] = {}
        for (whose, what), total in zip(keys, _to_host(totals), strict=True):
            found.setdefault(whose, {})[what] = total
        return found


def sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's bits, eight bytes at a time read as a whole number, and of those that are left over one by
    one, modulo 2^64: an int64 scalar on its device. Of equal elements it is equal, wherever they lie."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.storage_offset() * flat.element_size() % _WORD:
        flat = flat.clone()
    size = _WORD // flat.element_size()
    whole = flat.numel() // size * size
    total = flat[:whole].view(torch.int64).sum()
    return total + flat[whole:].view(torch.uint8).sum() if whole < flat.numel() else total


_WORD = 8


def _to_host(totals: Sequence[torch.Tensor]) -> list[int]:
    """One wait a device."""
    by_device: dict[torch.device, list[int]] = {}
    for place, total in enumerate(totals):
        by_device.setdefault(total.device, []).append(place)
    found = [0] * len(totals)
    for places in by_device.values():
        for place, number in zip(places, torch.stack([totals[place] for place in places]).tolist(), strict=True):
            found[place] = number
    return found


def _digest(of_tensors: dict[str, int]) -> bytes:
    return hashlib.sha256(repr(sorted(of_tensors.items())).encode()).digest()


def _values(of_ranks: Iterable[dict[Hashable, bytes]], whose: Hashable) -> set[bytes]:
    return {theirs[whose] for theirs in of_ranks if whose in theirs}


def _first_difference(of_ranks: Sequence[dict[Hashable, dict[str, int]]]) -> Difference:
    """Of the ranks' sums of what does not agree."""
    found: list[tuple[str, dict[int, int | None]]] = []
    for whose in dict.fromkeys(whose for theirs in of_ranks for whose in theirs):
        holders = {rank: theirs[whose] for rank, theirs in enumerate(of_ranks) if whose in theirs}
        for what in dict.fromkeys(what for sums in holders.values() for what in sums):
            by_rank = {rank: sums.get(what) for rank, sums in holders.items()}
            if len(set(by_rank.values())) > 1:
                found.append((what, by_rank))
    what, by_rank = found[0]
    (usual, count), *others = Counter(by_rank.values()).most_common()
    odd = tuple(rank for rank, total in by_rank.items() if total != usual)
    even = tuple(rank for rank, total in by_rank.items() if total == usual)
    return Difference(what, len(found) - 1, odd, even, tie=any(number == count for _, number in others))
