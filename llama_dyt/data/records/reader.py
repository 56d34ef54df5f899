"""Which shape each record of a run's data has, and what becomes of it: texts to tokenize, or tokens of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llama_dyt.core.problem import Problem
from llama_dyt.core.suggest import unknown
from llama_dyt.data.formats.bad_records import LEAVE_OUT
from llama_dyt.data.records.record_shape import RECORD_SHAPES, RecordShape, Unusable

if TYPE_CHECKING:
    from llama_dyt.data.tokenizing.chat_template import LazyTemplate

AUTO = "auto"
_MOST_NAMES = 8


def shape_names() -> tuple[str, ...]:
    """What `--record_shape` may be."""
    return (AUTO, *RECORD_SHAPES.names())


def column_names(columns: Sequence[str]) -> dict[str, str]:
    """What `--columns` says, by column. Raises ValueError for one that says nothing, or of an unknown column."""
    known = [column for shape in RECORD_SHAPES for column in shape.columns]
    names = {}
    for given in columns:
        column, separator, name = given.partition("=")
        if not separator or not column or not name:
            raise ValueError(f"{given!r} names no column; give such as instruction=question")
        if column not in known:
            raise ValueError(unknown("column", column, known))
        names[column] = name
    return names


def column_problems(columns: Sequence[str]) -> list[Problem]:
    """What is wrong with `--columns`."""
    problems = []
    for given in columns:
        try:
            column_names([given])
        except ValueError as error:
            problems.append(Problem("columns", given, str(error)))
    return problems


@dataclass(frozen=True)
class ShapedRecords:
    """Reads records of whichever shape; a reader as `formats.sources.ReadOptions` takes one.

    Attributes:
        shape: AUTO, by each record's columns, or the one that all have.
        columns: a shape's column → what the data call it, where that is another name.
        template: makes text and tokens of conversations; None leaves them as they are, which is enough to look at.
    """

    shape: str = AUTO
    columns: Mapping[str, str] = field(default_factory=dict)
    template: LazyTemplate | None = None

    @property
    def mark(self) -> str:
        """Stands in fingerprints; empty where all is as it was when there was one shape."""
        parts = [f"\nshape\t{self.shape}"] if self.shape != AUTO else []
        own = {name: given for name, given in self.columns.items() if name not in ("prompt", "completion")}
        return "".join(parts + [f"\ncolumn\t{name}\t{given}" for name, given in sorted(own.items())])

    def with_columns(self, columns: Mapping[str, str]) -> ShapedRecords:
        """The same with other names for some columns."""
        return replace(self, columns={**self.columns, **columns})

    def pick(self, record: Mapping[str, Any]) -> tuple[Any, ...] | str:
        """(prompt, completion, and for a conversation its `Tokens`), or the reason why there are none.

        Raises:
            DataError: the run has no chat template that works.
        """
        shape = self._shape_of(record)
        if shape is None:
            return self._why_none(record)
        try:
            found = shape.read(record, self._names(shape))
            return found.picked(self.template)
        except Unusable as reason:
            return str(reason)

    def wanted(self, available: Sequence[str]) -> list[str]:
        """Of the columns that a file has, those to read."""
        wanted = {
            name for shape in self._shapes() for column, name in self._names(shape).items() if column not in shape.inner
        }
        return [name for name in available if name in wanted]

    def remedy(self, kinds: Mapping[str, set[str]], longest: Sequence[str]) -> str:
        """As `formats.record_files.RecordReader.remedy`."""
        names = [{self._names(shape)[column] for column in shape.needed} for shape in self._shapes()]
        if not kinds or any(needed <= set(kinds) for needed in names):
            return LEAVE_OUT
        there = ", ".join(f"{name} ({'/'.join(sorted(kind))})" for name, kind in list(kinds.items())[:_MOST_NAMES])
        more = f" and {len(kinds) - _MOST_NAMES} more" if len(kinds) > _MOST_NAMES else ""
        return (
            f"its records have {there}{more}: name the ones to read with --prompt_field and "
            f"--completion_field, or with --columns for another shape ({self._expected()})"
        )

    def _shapes(self) -> list[RecordShape]:
        chosen = RECORD_SHAPES if self.shape == AUTO else [RECORD_SHAPES.get(self.shape)]
        return sorted(chosen, key=lambda shape: shape.order)

    def _names(self, shape: RecordShape) -> dict[str, str]:
        return {column: self.columns.get(column, column) for column in shape.columns}

    def _shape_of(self, record: Mapping[str, Any]) -> RecordShape | None:
        if self.shape != AUTO:
            return RECORD_SHAPES.get(self.shape)
        for shape in self._shapes():
            names = self._names(shape)
            if all(record.get(names[column]) is not None for column in shape.needed):
                return shape
        return None

    def _why_none(self, record: Mapping[str, Any]) -> str:
        """The first field that is missing, of the shape that the record has most of."""
        missing = {
            shape: [name for column in shape.needed if record.get(name := self._names(shape)[column]) is None]
            for shape in self._shapes()
        }
        nearest = max(missing, key=lambda shape: (len(shape.needed) - len(missing[shape])) / len(shape.needed))
        return f"has no field '{missing[nearest][0]}'"

    def _expected(self) -> str:
        needed = {shape.name: [self._names(shape)[column] for column in shape.needed] for shape in self._shapes()}
        return "; ".join(f"{name}: {', '.join(columns)}" for name, columns in needed.items())
