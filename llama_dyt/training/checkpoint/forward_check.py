"""What a checkpoint's weights compute: the loss and some logits of tokens that are always the same, kept beside them.

    forward_check.json    {"tokens": […], "positions": […], "entries": […], "loss": 5.54, "logits": [[…], …],
                           "mixed_precision": "bf16", "fp8": null}

Checksums tell whether the files are those that were written. This tells whether the model that was built of them, by
whatever layout, precision and version of the program, is the model that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.boosters.known_forward import KnownForward
from llama_dyt.core.errors import CheckpointError
from llama_dyt.core.store import Location
from llama_dyt.models.spec import family_of
from llama_dyt.training.checkpoint.contents import FORWARD_CHECK

_LENGTH = 16
_POSITIONS = tuple(range(1, _LENGTH, 2))
_ENTRIES = 8
TOLERANCES = {"fp32": 2e-3, "fp16": 1e-2, "bf16": 4e-2, "fp8": 0.25}
"""How far logits may be apart, by their size. Layouts and one process in fp32 were, at four layers, up to 3e-7, 7e-4
and 6e-3; deeper models and other devices round more."""
_LOSS = 0.1
"""The part of that by which losses may be apart, by their own size or 1, whichever is more: means vary less. They were
up to 2e-7, 3e-5 and 2e-4."""


@dataclass(frozen=True)
class Computed:
    """What came of the tokens.

    Attributes:
        logits: by position and entry.
        mixed_precision, fp8: of the run that computed it.
    """

    known: KnownForward
    loss: float
    logits: Sequence[Sequence[float]]
    mixed_precision: str
    fp8: str | None

    @classmethod
    def by(cls, boosted: Boosted, known: KnownForward | None = None) -> Computed:
        """By the present weights; collective, the same on all ranks. Nothing of the run changes."""
        known = known or known_forward(boosted.module.config.vocab_size)
        loss, logits = known.of(boosted)
        run = boosted.run
        return cls(known, loss, logits, run.booster.mixed_precision, run.precision.fp8)

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Computed:
        known = KnownForward(*(value[name] for name in ("tokens", "positions", "entries")))
        return cls(known, *(value[name] for name in ("loss", "logits", "mixed_precision", "fp8")))

    def to_json(self) -> dict[str, Any]:
        figures = {name: getattr(self, name) for name in ("loss", "logits", "mixed_precision", "fp8")}
        return {**asdict(self.known), **figures}

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, [self.loss, *(value for row in self.logits for value in row)]))

    @property
    def precision(self) -> str:
        return "fp8" if self.fp8 is not None else self.mixed_precision


def known_forward(vocab_size: int) -> KnownForward:
    """The tokens of a model of so many, spread over its vocabulary, and what is looked at."""
    return KnownForward(_spread(_LENGTH, vocab_size), _POSITIONS, _spread(_ENTRIES, vocab_size, first=_LENGTH))


def _spread(count: int, size: int, first: int = 0) -> tuple[int, ...]:
    """Multiples of the golden ratio's fraction: as even as can be however many are taken (Knuth, volume 3, 6.4)."""
    return tuple((number * 2654435769 % 2**32) * size >> 32 for number in range(first + 1, first + count + 1))


def apart(one: Computed, other: Computed, by_choice: bool) -> tuple[float, float]:
    """How far two are apart: (losses, by the larger of the first and 1; logits, by the size of the first's).

    Args:
        by_choice: layers choose which experts a token goes to, so that rounding can send one to another: what the
            middle one of the positions differs by counts, and not what they all do.
    """
    losses = abs(one.loss - other.loss) / max(abs(one.loss), 1.0)
    squares = [
        (sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)), sum(a * a for a in ours))
        for ours, theirs in zip(one.logits, other.logits, strict=True)
    ]
    if by_choice:
        return losses, median(_ratio(*pair) for pair in squares)
    return losses, _ratio(*(sum(column) for column in zip(*squares, strict=True)))


def _ratio(difference: float, size: float) -> float:
    return math.sqrt(difference / size) if size else math.inf * difference if difference else 0.0


def why_different(expected: Computed, found: Computed, by_choice: bool) -> str | None:
    """In what a model is another than the one that was saved; None where the precisions allow for it.

    Args:
        by_choice: as of `apart`.
    """
    precision = max(expected.precision, found.precision, key=TOLERANCES.__getitem__)
    bound = TOLERANCES[precision]
    losses, logits = apart(expected, found, by_choice)
    if losses <= _LOSS * bound and logits <= bound:  # nan is not
        return None
    return (
        f"on fixed tokens it gives a loss of {found.loss:.4f}, and gave {expected.loss:.4f} when it was written; "
        f"logits are {logits:.2%} apart (in {precision} {bound:.2%} is allowed, and {_LOSS * bound:.2%} of the loss)"
    )


def require_same(path: Location, expected: dict[str, Any] | None, boosted: Boosted, strict: bool) -> str | None:
    """Compare what the model of a run that resumes computes with what was computed before the checkpoint was written.
    Collective.

    Args:
        expected: as it was read; None in checkpoints of earlier versions.
        strict: a difference is an error.

    Returns:
        A warning, or None.

    Raises:
        CheckpointError: they differ; on all ranks.
    """
    if expected is None:
        return None
    before = Computed.of_json(expected)
    by_choice = family_of(boosted.module.config).experts is not None
    fault = why_different(before, Computed.by(boosted, before.known), by_choice)
    if fault is None:
        return None
    fault = f"the model of {path} computes something else than before: {fault}"
    if strict:
        raise CheckpointError(
            f"{fault}. Its weights, or what is made of them, have changed since: load an earlier checkpoint, or copy "
            "it there again; --no-verify goes on with it where that was meant"
        )
    return f"{fault} (--no-verify: the run goes on)"


def to_store(boosted: Boosted) -> dict[str, Any]:
    """Name → content of what a checkpoint of the present weights holds of this; collective. Nothing where half
    precision overflows on the way, though weights are finite."""
    computed = Computed.by(boosted)
    return {FORWARD_CHECK: computed.to_json()} if computed.is_finite else {}
