"""The table of docs/parallelism.md: what works, measured, and what does not, with the reason.

Its own file because it is about a page; what is measured is in `test_matrix.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.distributed.matrix import CELLS, REFUSED, Cell, reasons

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parallelism.md"
_BEGIN, _END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"
_ROW = re.compile(r"^\| `(\w[\w-]*ranks)` \|.*$", re.MULTILINE)
PRECISIONS = ("fp32", "bf16", "fp16")


def write_page(results: dict[Cell, float | None]) -> None:
    """Put what was measured into the page; layouts of which no cell was run keep the row they have.

    Args:
        results: cell that was run → what `parity.check_all` returned; None where it failed.
    """
    before, rest = PAGE.read_text(encoding="utf-8").split(_BEGIN)
    old, after = rest.split(_END)
    rows = {match[1]: match[0] for match in _ROW.finditer(old)}
    text = _what_works(results, rows) + "\n" + _what_is_refused()
    PAGE.write_text(before + _BEGIN + text + _END + after, encoding="utf-8")


def cells_on_page() -> set[str]:
    """Names of the layouts in the page's table."""
    table = PAGE.read_text(encoding="utf-8").split(_BEGIN)[1].split(_END)[0]
    return {match[1] for match in _ROW.finditer(table)}


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _what_works(results: dict[Cell, float | None], old_rows: dict[str, str]) -> str:
    lines = ["| layout | fp32 | bf16 | fp16 |", "|---|---|---|---|"]
    for name in dict.fromkeys(str(cell.layout) for cell in CELLS):
        of_layout = [cell for cell in CELLS if str(cell.layout) == name]
        if not any(cell in results for cell in of_layout):
            lines += [old_rows[name]] if name in old_rows else []
            continue
        columns = [_column([cell for cell in of_layout if cell.precision == p], results) for p in PRECISIONS]
        lines.append(f"| `{name}` | " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def _column(cells: list[Cell], results: dict[Cell, float | None]) -> str:
    if not cells:
        return "not there"
    passed = [results[cell] for cell in cells if results.get(cell) is not None]
    if not passed:
        return f"fails, 0 of {len(cells)}"
    worst = f"{max(passed):.1e}" if cells[0].precision == "fp32" else f"{max(passed):.1f} x noise"
    return f"{len(passed)} of {len(cells)}: {worst}"


def _what_is_refused() -> str:
    lines = ["| refused | processes | why, and what to do |", "|---|---|---|"]
    for flags, processes in REFUSED:
        given = " ".join(f"--{name} {value}" for name, value in flags.items())
        lines.append(f"| `{given}` | {processes} | {'; '.join(map(escaped, reasons(flags, processes)))} |")
    return "\n".join(lines) + "\n"
