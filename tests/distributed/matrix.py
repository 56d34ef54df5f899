"""Every layout in every precision, accumulating or not, recomputing or not, with DyT and with RMSNorm: the matrix.

Its own file because the matrix is a table of data that two things read: the long test, and the page that it writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from llama_dyt.config import check
from llama_dyt.config.run import RunConfig
from tests.distributed.small_run import GLOBAL_ROWS, LAYOUTS, Layout, hybrid

MATRIX_LAYOUTS = [
    *LAYOUTS,
    Layout("gemini", 4, tp=2),
    Layout("gemini", 4, flags=(("extra_dp", 2),)),
    Layout("gemini", 4, tp=2, flags=(("extra_dp", 2),)),
    Layout("gemini_auto", 2, tp=2),
    Layout("hybrid_parallel_cpu", 2, pp=2),
    Layout("hybrid_parallel_cpu", 2, zero=2),
    hybrid(2, tp=2, sp_mode="split_gather"),
    hybrid(4, tp=2, zero=2, sp_mode="split_gather"),
    hybrid(4, tp=2, pp=2, sp_mode="split_gather"),
    hybrid(2, sp=2),
    hybrid(4, sp=4),
    hybrid(4, sp=2, zero=1),
    hybrid(4, tp=2, sp=2),
    hybrid(4, pp=2, sp=2),
    hybrid(2, pp=2, pp_style="interleaved"),
    hybrid(4, tp=2, pp=2, pp_style="interleaved", sp_mode="split_gather"),
    hybrid(2, pp=2, pp_style="zbv"),
    hybrid(4, tp=2, pp=2, pp_style="zbv"),
    hybrid(4, pp=2, pp_style="zbv", zero=1),
    hybrid(4, pp=2, pp_style="zbv", sp=2),
]


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    layout: Layout
    precision: str
    accumulation: int
    recompute: bool
    norm: str

    def __str__(self) -> str:
        parts = [str(self.layout), self.precision, f"accumulation{self.accumulation}", self.norm]
        return "-".join([*parts, *(["recompute"] if self.recompute else [])])


CELLS = [
    Cell(layout, precision, accumulation, recompute, norm)
    for layout in MATRIX_LAYOUTS
    for precision in layout.precisions
    for accumulation, recompute, norm in product((1, 2), (False, True), ("dyt", "rmsnorm"))
    # A pipeline takes all micro batches of a step as one schedule, and needs one for every stage.
    if GLOBAL_ROWS // (layout.dp * accumulation) >= (2 if layout.pp > 1 else 1)
]

REFUSED: list[tuple[dict[str, Any], int]] = [
    ({"plugin": "gemini", "mixed_precision": "fp32"}, 2),
    ({"plugin": "gemini", "pp": 2}, 2),
    ({"plugin": "zero2", "tp": 2}, 2),
    ({"plugin": "zero2", "extra_dp": 2}, 2),
    ({"plugin": "fsdp", "pp": 2}, 2),
    ({"plugin": "hybrid_parallel", "zero": 1, "mixed_precision": "fp32"}, 2),
    ({"plugin": "hybrid_parallel", "zero": 2, "pp": 2, "batch_size": 4}, 4),
    ({"plugin": "hybrid_parallel_cpu", "zero": 0}, 2),
    ({"plugin": "hybrid_parallel", "tp": 2, "sp_mode": "ring"}, 2),
    ({"plugin": "hybrid_parallel", "sp": 2, "sp_mode": "ring_attn"}, 2),
    ({"plugin": "hybrid_parallel", "pp": 2, "pp_style": "interleaved", "batch_size": 3}, 2),
    ({"plugin": "hybrid_parallel", "config": "70b", "tp": 16}, 16),
    ({"plugin": "hybrid_parallel", "config": "70b", "sp": 3}, 3),
    ({"plugin": "hsdp", "shard_size": 3}, 4),
]
"""Runs that are refused before launch, as (flags, processes): what a user is most likely to try."""


def reasons(flags: dict[str, Any], processes: int) -> list[str]:
    """Why a run is refused, as the user is told."""
    run = RunConfig.build("benchmark", **{"mixed_precision": "bf16", "config": "15m", **flags})
    return check.collect_problems(run, processes, "cpu")
