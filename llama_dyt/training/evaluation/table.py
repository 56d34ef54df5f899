"""The figures of a model, or of two beside each other, as a table for people."""

from __future__ import annotations

from typing import Any

_OF_A_DATASET = {"loss": "loss", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}


def in_columns(found: dict[str, Any], other: dict[str, Any] | None = None) -> str:
    """A line a figure; with another model its value and the difference, this one's less the other's."""
    head = ["", found["model_path"], *([other["model_path"], "difference"] if other else [])]
    rows = [head]
    for group in ("datasets", "tasks"):
        for name, figures in found[group].items():
            for key, value in figures.items():
                label = _OF_A_DATASET.get(key, key if group == "tasks" else None)
                if label is None or value is None:
                    continue
                row = [f"{name}: {label}", _number(value)]
                if other:
                    theirs = other[group][name][key]
                    row += [_number(theirs), f"{value - theirs:+.4f}"]
                rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *_notes(found, other)])


def _number(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.3e}"


def _notes(found: dict[str, Any], other: dict[str, Any] | None) -> list[str]:
    """How it was measured, and what cannot be compared."""
    notes = []
    if found["datasets"]:
        sizes = [
            f"{name} {figures['tokens']:,} tokens of {figures['documents']:,} documents"
            for name, figures in found["datasets"].items()
        ]
        notes.append(f"({found['windows']}; {'; '.join(sizes)})")
    if other and found["datasets"]:
        if other["windows"] != found["windows"]:
            notes.append(f"(the other: {other['windows']}: give --max_length to have them alike)")
        if other["tokenizer"] != found["tokenizer"]:
            notes.append("(their tokenizers differ: of these figures bits per byte alone can be compared)")
    return notes
