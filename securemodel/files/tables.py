"""Columns of a text table as inputs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from protocols.errors import InputError, explain
from securemodel.files.batches import Batch, Choice, Problems, Wanted, as_input, check_division
from securemodel.files.reader import Table, counted, numbers, open_table, other_delimiters


def open_columns(path: Path, wanted: Sequence[Wanted], choice: Choice) -> Columns:
    """The chosen columns fill the inputs, one after the other. Raises InputError, FileError."""
    if choice.arrays:
        raise InputError(explain("a table has columns, no arrays", where=str(path), fix="choose with --columns"))
    check_division(wanted, choice.divide_by, path)
    table, size = open_table(path, choice.form, choice.columns, choice.id), sum(w.size for w in wanted)
    if len(table.columns) != size:
        fix = other_delimiters(table.first, table.delimiter, size + (table.id_column is not None))
        fix = fix or f"choose {size} with --columns"
        if table.names and "" in table.names and not choice.columns:
            fix += "; a column without a name may be an index that a program has added"
        raise InputError(explain(f"{counted(len(table.columns), 'column')} for inputs of {counted(size, 'number')} a row",
                                 where=str(path), why=table.seen(), fix=fix))  # fmt: skip
    return Columns(table, wanted, choice)


class Columns:
    """A table as a source of rows; without a column of ids they have no names."""

    def __init__(self, table: Table, wanted: Sequence[Wanted], choice: Choice) -> None:
        self._table, self._wanted, self._divide_by = table, tuple(wanted), choice.divide_by
        self._whole = [not w.dtype.is_floating_point for w in wanted for _ in range(w.size)]
        own = table.id_column
        self.id_name = "" if own is None else table.names[own] if table.names and table.names[own] else "id"
        names = ", ".join(repr(table.names[index]) for index in table.columns[:20]) if table.names else ""
        more = ", ..." if len(table.columns) > 20 else ""
        inferred = table.names and choice.form.header is None
        self.notes: tuple[str, ...] = (
            (f"{table.path}: line 1 is the header; inputs are the columns {names}{more}",) if inferred else ()
        )

    def batches(
        self, size: int, problems: Problems, chosen: Container[int] | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """See Source."""
        index, count, lines, rows, names = 0, 0, [], [], []
        for line, cells in self._table.rows():
            if chosen is None or index in chosen:
                lines.append(line)
                rows.append(self._numbers(line, cells, problems))
                if self.id_name:
                    names.append(self._name(line, cells, problems))
            count += 1
            if count == size:
                if rows:
                    yield index, self._batch(lines, rows, names, problems)
                index, count, lines, rows, names = index + 1, 0, [], [], []
        if rows:
            yield index, self._batch(lines, rows, names, problems)

    def names(self) -> Iterator[str]:
        """See Source."""
        return (cells[cast(int, self._table.id_column)].strip() for _, cells in self._table.rows())

    def _numbers(self, line: int, cells: Sequence[str], problems: Problems) -> list[float]:
        picked = [cells[index] for index in self._table.columns]
        made = numbers(picked, self._whole)
        if made is not None:
            return made
        for index, cell, whole in zip(self._table.columns, picked, self._whole, strict=True):
            if numbers([cell], [whole]) is None:
                problems.add(*self._fault(line, index, cell, whole))
        return [0.0] * len(picked)

    def _fault(self, line: int, index: int, cell: str, whole: bool) -> tuple[str, str, str]:
        kind, fix = "whole number" if whole else "finite number", "correct the file; no row is left out"
        if not cell.strip():
            return f"the cell is empty where a {kind} is due", self._table.place(line, index), fix
        if "," in cell:
            fix = "write numbers with a decimal point and without thousands separators, as in 1234.5"
        elif len(self._table.first) == 1:
            fix = other_delimiters([cell], self._table.delimiter, 0) or fix
        return f"there is no {kind}", self._table.place(line, index), fix

    def _name(self, line: int, cells: Sequence[str], problems: Problems) -> str:
        name = cells[cast(int, self._table.id_column)].strip()
        if not name or not name.isprintable():
            what = "the id has characters that cannot be printed" if name else "there is no id"
            problems.add(what, self._table.place(line, cast(int, self._table.id_column)))
        return name

    def _batch(self, lines: list[int], rows: list[list[float]], names: list[str], problems: Problems) -> Batch:
        columns = self._table.columns

        def place(row: int, element: int | None) -> str:
            return self._table.place(lines[row], columns[element]) if element is not None else (
                f"{self._table.path}, line {lines[row]}"
            )  # fmt: skip

        made, at = [], 0
        for w in self._wanted:
            kind = np.float64 if w.dtype.is_floating_point else object  # whole numbers of any size
            part = np.array([row[at : at + w.size] for row in rows], dtype=kind)
            tensor, bad, what = as_input(part, w, self._divide_by)
            if bad is not None:
                problems.add(what, place(bad // w.size, at + bad % w.size))
            made.append(tensor)
            at += w.size
        return Batch(made, place, names)
