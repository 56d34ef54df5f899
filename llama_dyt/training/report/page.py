"""The page: one HTML file with its data, style and script in it; nothing is fetched, and the page forbids itself to."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

_DATA = '<script type="application/json" id="data">'
_FIGURES = ("loss", "grad_norm", "lr", "tokens_per_second", "mfu", "max_memory_mb", "tokens_seen")


def page(runs: Sequence[dict[str, Any]]) -> str:
    """The HTML of these runs (`RunData.to_json`)."""
    # Without these characters no text in it can end the element it stands in.
    data = json.dumps(runs, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    title = " and ".join(run["name"] for run in runs)
    parts = {"TITLE": html.escape(title), "SUMMARY": _summary(runs), "DATA": data}
    parts |= {"STYLE": _part("page.css"), "SCRIPT": _part("page.js")}
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def embedded(text: str) -> list[dict[str, Any]]:
    """The runs in a page that `page` made; none where it is another file."""
    _, _, rest = text.partition(_DATA)
    try:
        found = json.loads(rest.partition("</script>")[0])
    except ValueError:
        return []
    return found if isinstance(found, list) else []


@cache
def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _summary(runs: Sequence[dict[str, Any]]) -> str:
    """A table of the last figures, there without a script too."""
    shown = [name for name in _FIGURES if any(name in run["lines"] for run in runs)]
    validated = dict.fromkeys(n for run in runs for n in run["lines"] if n.startswith("validation_loss/"))
    columns = ["run", "step", *shown, *validated]
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    rows = []
    for run in runs:
        steps = [points[0][-1] for points in run["lines"].values() if points[0]]
        cells = [f'<th scope="row">{html.escape(run["name"])}</th>', f"<td>{max(steps, default=0):,}</td>"]
        for name in [*shown, *validated]:
            points = run["lines"].get(name)
            cells.append(f"<td>{_shown(points[1][-1]) if points else '–'}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<table><caption>Newest figures</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
