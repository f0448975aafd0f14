"""From cells to the values of a column, by the schema alone: nothing is guessed, and what does not fit is a fault.

A fault says what kind it is and in which row, never what stands there.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from securemodel.data.cells import Bad, Form, whole_digits
from securemodel.data.column import Column, days

if TYPE_CHECKING:
    import pyarrow

NO_NUMBER = "something else than a number"
NO_DECIMAL_POINT = "a number with a comma, or with thousands separators"
NOT_FINITE = "an infinite number"
NO_INTEGER = "a fraction where a whole number is due"
ROUNDED = "a whole number above 2^53 that its file holds only roughly"
TOO_LARGE = "a whole number beyond 64 bits"
NO_BOOLEAN = "something else than 0 or 1, or the words that the schema has for them"
NO_DATE = "something else than a date"
TIME_OF_DAY = "a time of day where a date is due"
NO_CATEGORY = "a category that the schema does not have"
NO_TEXT = "something else than text or a whole number where a category or an id is due"
DATE_ID = "a date where a category or an id is due"
NOT_THERE = "no value, where the schema allows none to be missing"
OUT_OF_BOUNDS = "a value out of bounds"

_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NUMERIC = re.compile(r"[0-9eE+\-.]*")  # with these characters alone, float() reads decimal numbers only
_WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
_ISO = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]00:00(?::00(?:\.0+)?)?)?")
_GROUPED = re.compile(r"[+-]?[0-9]{1,3}(?:[,. ][0-9]{3})+(?:[.,][0-9]+)?|[+-]?[0-9]+,[0-9]+")
_TRUE, _FALSE = ("1", "true"), ("0", "false")
_MOST_KNOWN = 1 << 16  # texts of a column whose meaning is remembered

Faults = list[tuple[int, str]]
"""Rows of a block, counted from 0, and the kind of what is wrong there."""


class Reader:
    """Reads cells of one column, block by block. `others` counts values that fell into the class for others."""

    def __init__(self, column: Column, form: Form) -> None:
        self.column, self.others = column, 0
        self._form, self._absent = form, frozenset(form.na_values)
        self._known: dict[Any, Any] = {}
        self._codes = {_composed(value): code for code, value in enumerate(column.values)}
        ones: dict[str, Callable[[Any], Any]] = {
            "number": self._number, "integer": self._integer, "boolean": self._boolean, "category": self._category,
            "date": self._date,
        }  # fmt: skip
        self._one = ones[column.kind]
        if column.kind == "boolean" and not column.values:
            self._codes = {**dict.fromkeys(_FALSE, 0), **dict.fromkeys(_TRUE, 1)}

    def read(self, cells: list[Any] | pyarrow.Array) -> tuple[np.ndarray, np.ndarray, Faults]:
        """Values, whether each is missing (then it is 0), and faults; of a fault the value is missing, too."""
        fast = self._fast_text(cells) if isinstance(cells, list) else self._fast_array(cells)
        if fast is not None:
            return (*fast, [])
        objects = cells if isinstance(cells, list) else cells.to_pylist()
        kind = np.float64 if self.column.kind == "number" else np.int64
        values, missing, faults = np.zeros(len(objects), kind), np.zeros(len(objects), bool), []
        for row, cell in enumerate(objects):
            made = self._remembered(cell) if type(cell) is str else self._one(cell)
            if made is None:
                missing[row] = True
            elif isinstance(made, Bad):
                missing[row] = True
                faults.append((row, made.kind))
            else:
                values[row] = made
        if self.column.kind == "category" and self.column.other:
            self.others += int((values[~missing] == len(self.column.values)).sum())
        return values, missing, faults

    def _remembered(self, cell: str) -> Any:
        try:
            return self._known[cell]
        except KeyError:
            made = None if self._is_absent(cell) else self._one(cell)
        if len(self._known) < _MOST_KNOWN:
            self._known[cell] = made
        return made

    def _is_absent(self, text: str) -> bool:
        if text in self._absent or not text.strip():
            return True
        return self.column.kind in ("number", "integer") and text.strip().lower() == "nan"

    # ---- the usual, quickly
    def _fast_text(self, cells: list[Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Plain numbers and empty cells; None if there is anything else."""
        if self.column.kind != "number" or self._form.decimal != "." or self._absent:
            return None
        try:
            if not _NUMERIC.fullmatch("".join(cells)):
                return None
            missing = np.array([not cell for cell in cells], bool)
            values = np.array([float(cell) if cell else 0.0 for cell in cells], np.float64)
        except (TypeError, ValueError):
            return None
        return (values, missing) if np.isfinite(values).all() else None

    def _fast_array(self, array: Any) -> tuple[np.ndarray, np.ndarray] | None:
        """Numbers of Arrow that have the column's kind; None if there is anything else."""
        import pyarrow

        missing = array.is_null().to_numpy(zero_copy_only=False)
        whole = pyarrow.types.is_integer(array.type)
        if self.column.kind == "number":
            values = array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64)
            missing = missing | np.isnan(values)
            values = np.where(missing, 0.0, values)
            return (values, missing) if np.isfinite(values).all() else None
        if self.column.kind == "integer" and whole and array.type != pyarrow.uint64():
            return array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64), missing
        return None

    # ---- one cell: its value, None where it is missing, or Bad
    def _number(self, cell: Any) -> Any:
        if cell is None or isinstance(cell, Bad):
            return cell
        if type(cell) is str:
            return self._number_of(cell.strip())
        if type(cell) not in (int, float, Decimal):
            return Bad(NO_NUMBER)
        try:
            value = float(cell)
        except OverflowError:
            return Bad(NOT_FINITE)
        return None if math.isnan(value) else value if math.isfinite(value) else Bad(NOT_FINITE)

    def _number_of(self, text: str) -> Any:
        plain = self._plain(text)
        if plain is not None and _FLOAT.fullmatch(plain):
            value = float(plain)
            return value if math.isfinite(value) else Bad(NOT_FINITE)
        if text.lstrip("+-").lower() in ("inf", "infinity"):
            return Bad(NOT_FINITE)
        return Bad(NO_DECIMAL_POINT if _GROUPED.fullmatch(text) else NO_NUMBER)

    def _plain(self, text: str) -> str | None:
        """A number with a decimal point; None where the text has one and is not to have any."""
        if self._form.decimal == ".":
            return text
        return None if "." in text else text.replace(self._form.decimal, ".")

    def _integer(self, cell: Any) -> Any:
        if cell is None or isinstance(cell, Bad):
            return cell
        if type(cell) is str:
            made = _WHOLE.fullmatch(self._plain(cell.strip()) or "")
            if made:
                return _within_64_bits(int(made[1])) if len(made[1]) < 40 else Bad(TOO_LARGE)
            value = self._number_of(cell.strip())
            return value if isinstance(value, Bad) else Bad(NO_INTEGER)
        if type(cell) is int:
            return _within_64_bits(cell)
        if type(cell) is Decimal and cell.is_finite():
            return _within_64_bits(int(cell)) if cell == cell.to_integral_value() else Bad(NO_INTEGER)
        value = self._number(cell)
        if not isinstance(value, float):
            return value
        digits = whole_digits(value)
        return int(digits) if digits is not None else Bad(ROUNDED if value == int(value) else NO_INTEGER)

    def _boolean(self, cell: Any) -> Any:
        if cell is None or isinstance(cell, Bad):
            return cell
        if type(cell) is str:
            text = cell.strip()
            code = self._codes.get(text if self.column.values else text.lower())
            return Bad(NO_BOOLEAN) if code is None else code
        if type(cell) is float and math.isnan(cell):
            return None
        if self.column.values or type(cell) not in (bool, int, float, Decimal) or cell not in (0, 1):
            return Bad(NO_BOOLEAN)
        return int(cell)

    def _category(self, cell: Any) -> Any:
        if type(cell) is not str:
            cell = text_of(cell)
            if cell is None or isinstance(cell, Bad):
                return cell
        code = self._codes.get(_composed(cell))
        if code is None:
            return len(self.column.values) if self.column.other else Bad(NO_CATEGORY)
        return code

    def _date(self, cell: Any) -> Any:
        made = day_of(cell, self._form)
        return days(made) if isinstance(made, date) else made


def day_of(cell: Any, form: Form) -> date | Bad | None:
    """The date in a cell: ISO text, or as `date_format` says, or a date of a typed file at midnight."""
    if cell is None or isinstance(cell, Bad):
        return cell
    if type(cell) is float and math.isnan(cell):
        return None
    if isinstance(cell, datetime):
        at = cell.time()
        return cell.date() if not (at.hour or at.minute or at.second or at.microsecond) else Bad(TIME_OF_DAY)
    if isinstance(cell, date):
        return cell
    if type(cell) is not str:
        return Bad(NO_DATE)
    text = cell.strip()
    try:
        if form.date_format is not None:
            return day_of(datetime.strptime(text, form.date_format), form)
        if iso := _ISO.fullmatch(text):
            return date.fromisoformat(iso[1])
        whole = datetime.fromisoformat(text)
    except ValueError:
        return Bad(NO_DATE)
    return Bad(TIME_OF_DAY) if whole.time().isoformat() != "00:00:00" else Bad(NO_DATE)


def text_of(cell: Any) -> str | Bad | None:
    """A cell as text where it has one form only: text, or a whole number that its file holds exactly."""
    if cell is None or isinstance(cell, (str, Bad)):
        return cell
    if type(cell) is int:
        return str(cell)
    if type(cell) is float:
        if math.isnan(cell):
            return None
        digits = whole_digits(cell)
        return digits if digits is not None else Bad(ROUNDED if cell in (math.inf, -math.inf) or cell == int(cell) else NO_TEXT)  # fmt: skip
    if type(cell) is Decimal and cell.is_finite() and cell == cell.to_integral_value():
        return str(int(cell))
    return Bad(DATE_ID if isinstance(cell, date) else NO_TEXT)


def _within_64_bits(value: int) -> int | Bad:
    return value if -(2**63) <= value < 2**63 else Bad(TOO_LARGE)


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
