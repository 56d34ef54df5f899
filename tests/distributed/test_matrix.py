"""The whole matrix of layouts, and the table of it in docs/parallelism.md.

    bash scripts/test.sh -m matrix --write-table            runs all of it, half an hour or more, and writes the table
    bash scripts/test.sh -m matrix --write-table -k zbv     a part, whose entries it writes anew

What of it the suite runs every time is in `test_parity.py`.
"""

from __future__ import annotations

import pytest

from tests.distributed import cases, table
from tests.distributed.matrix import CELLS, REFUSED, Cell, reasons
from tests.distributed.parity import check_all


@pytest.mark.matrix
@pytest.mark.distributed
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell_equals_plain_pytorch(pool, matrix_results, cell: Cell):
    matrix_results[cell] = None
    results = pool(cell.layout.world_size).run(
        cases.train,
        layout=cell.layout,
        precision=cell.precision,
        accumulation=cell.accumulation,
        norm=cell.norm,
        gradient_checkpoint=cell.recompute,
        # Some of these gradients are too large for the usual first scale, and a skipped step shows nothing.
        loss_scale=2.0**12 if cell.precision == "fp16" else None,
    )
    matrix_results[cell] = check_all(results, cell.precision, norm=cell.norm)


def test_the_page_shows_that_every_layout_passes():
    on_page = table.on_page()
    assert on_page.keys() == {str(cell.layout) for cell in CELLS}
    for name, entries in on_page.items():
        for precision, entry in zip(table.PRECISIONS, entries, strict=True):
            count = sum(str(cell.layout) == name and cell.precision == precision for cell in CELLS)
            assert entry.startswith(f"{count} of {count}: " if count else "not there"), f"{name}: {precision}: {entry}"


@pytest.mark.parametrize(("flags", "processes"), REFUSED, ids=str)
def test_the_page_gives_the_reason_for_what_is_refused(flags, processes):
    assert reasons(flags, processes), "it is not refused"
    for reason in reasons(flags, processes):
        assert table.escaped(reason) in table.PAGE.read_text(encoding="utf-8"), "write the page anew: see above"
