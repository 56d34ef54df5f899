"""Puts the tables of the newest results in benchmarks/results/ into docs/performance.md:

    python scripts/performance_tables.py --write    writes the page; without it, prints it

Every report with a summary has its table; a test compares the page with what this prints, so a figure in it is one that
a file in benchmarks/results/ holds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "performance.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
BEGIN = "<!-- tables begin: python scripts/performance_tables.py --write -->"
END = "<!-- tables end -->"
ELSEWHERE = ("data-", "async-save-", "snapshots", "faults", "chaos")
"""Reports whose figures stand in other pages (docs/data.md, docs/reliability.md)."""


def newest(results: Path) -> list[dict[str, Any]]:
    """The newest report of every benchmark, by name; those without a summary have tables of their own."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(results.glob("*.json")):
        report = json.loads(file.read_text(encoding="utf-8"))
        name = report.get("benchmark")
        if name is None or not report.get("summary") or name.startswith(ELSEWHERE):
            continue
        if name not in found or report["date"] >= found[name]["date"]:
            found[name] = {**report, "file": file.name}
    return [found[name] for name in sorted(found)]


def shown(value: Any) -> str:
    if isinstance(value, dict) and "interval" in value:
        low, high = value["interval"]
        return f"{value['median']:.3f} ({low:.3f} to {high:.3f}, {value['pairs']} pairs)"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [f"### {report['benchmark']}", "", f"`{report['command']}`", ""]
    load = f", load {report['load_average'][0]:.1f} at the end" if "load_average" in report else ""
    lines += [f"{report['date'][:10]}, {report['machine']}{load}; {versions}; all rows: `{report['file']}`.", ""]
    lines += ["| figure | value |", "| --- | --- |"]
    lines += [f"| {key} | {shown(value)} |" for key, value in report["summary"].items()]
    return "\n".join(lines)


def page(results: Path) -> str:
    """The page with its tables replaced."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    tables = "\n\n".join(table(report) for report in newest(results)) or "Nothing has been measured."
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the reports")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    text = page(given.results)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
