"""The table of docs/parallelism.md: what works, measured, and what does not, with the reason.

Its own file because it is about a page; what is measured is in `test_matrix.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.distributed.matrix import CELLS, REFUSED, Cell, reasons

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parallelism.md"
_BEGIN, _END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"
_ROW = re.compile(r"^\| `(\w[\w-]*ranks)` \|(.*)\|$", re.MULTILINE)
PRECISIONS = ("fp32", "bf16", "fp16")


def write_page(results: dict[Cell, float | None]) -> None:
    """Put what was measured into the page; a layout's precision of which not every cell was run keeps what it says.

    Args:
        results: cell that was run → what `parity.check_all` returned; None where it failed.
    """
    before, rest = PAGE.read_text(encoding="utf-8").split(_BEGIN)
    _, after = rest.split(_END)
    text = _what_works(results, on_page()) + "\n" + _what_is_refused()
    PAGE.write_text(before + _BEGIN + text + _END + after, encoding="utf-8")


def on_page() -> dict[str, list[str]]:
    """Name of the layout → what the page's table says of it in each of `PRECISIONS`."""
    table = PAGE.read_text(encoding="utf-8").split(_BEGIN)[1].split(_END)[0]
    return {match[1]: [entry.strip() for entry in match[2].split("|")] for match in _ROW.finditer(table)}


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _what_works(results: dict[Cell, float | None], old: dict[str, list[str]]) -> str:
    lines = ["| layout | fp32 | bf16 | fp16 |", "|---|---|---|---|"]
    for name in dict.fromkeys(str(cell.layout) for cell in CELLS):
        of_layout = [cell for cell in CELLS if str(cell.layout) == name]
        entries = [
            _entry([cell for cell in of_layout if cell.precision == precision], results) or before
            for precision, before in zip(PRECISIONS, old.get(name, ["not measured"] * 3), strict=True)
        ]
        lines.append(f"| `{name}` | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def _entry(cells: list[Cell], results: dict[Cell, float | None]) -> str | None:
    """What one layout's cells of one precision came to; None where not all of them were run."""
    if not cells:
        return "not there"
    if not results.keys() >= set(cells):
        return None
    passed = [results[cell] for cell in cells if results[cell] is not None]
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
