"""Cells of keys as parts of ids, column by column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from securemodel.data.cells import Bad, Form
from securemodel.data.normalize import BadId, framed, normal
from securemodel.data.values import day_of, text_of

SCIENTIFIC = "an id in scientific notation, as Excel writes long numbers"
_SCIENTIFIC = re.compile(r"[+-]?[0-9](?:[.,][0-9]+)?E[+-][0-9]{2,3}")
_MOST_KNOWN = 1 << 16  # cells of a column whose part is remembered


class KeyReader:
    """Reads cells of one column of the key, block by block."""

    def __init__(self, rule: str, form: Form) -> None:
        self._rule, self._form, self._absent = rule, form, frozenset(form.na_values)
        self._known: dict[str, bytes | Bad | None] = {}

    def read(self, cells: Any) -> Sequence[bytes | Bad | None]:
        """For each cell its part of the id behind its length; None where there is nothing."""
        if not isinstance(cells, list):
            cells = cells.to_pylist()
        if self._rule == "text" and not self._absent and _is_plain(cells):
            return [framed(text) if (text := cell.strip().lower()) else None for cell in cells]
        return [self._remembered(cell) if type(cell) is str else self._part(cell) for cell in cells]

    def _remembered(self, cell: str) -> bytes | Bad | None:
        try:
            return self._known[cell]
        except KeyError:
            made = None if cell in self._absent else self._part(cell)
        if len(self._known) < _MOST_KNOWN:
            self._known[cell] = made
        return made

    def _part(self, cell: Any) -> bytes | Bad | None:
        if self._rule == "date":
            day = None if type(cell) is str and not cell.strip() else day_of(cell, self._form)
            return framed(day.isoformat()) if isinstance(day, date) else day
        text = text_of(cell)
        if text is None or isinstance(text, Bad):
            return text
        if text in self._absent:
            return None
        if self._rule != "exact" and type(cell) is str and _SCIENTIFIC.fullmatch(text.strip()):
            return Bad(SCIENTIFIC)
        try:
            made = normal(text, self._rule)
        except BadId as error:
            return Bad(error.kind)
        return framed(made) if made else None


def _is_plain(cells: list[Any]) -> bool:
    """Whether all cells are ASCII text, and none in scientific notation."""
    try:
        text = "\n".join(cells)
    except TypeError:
        return False
    return text.isascii() and "E+" not in text and "E-" not in text
