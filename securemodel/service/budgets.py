"""How many rows each key has asked for today, of each model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

DAY_S = 86_400
Spent = tuple[str, str, int]
"""A key's id, a model, and a day (whole days of UTC since 1970)."""


def today() -> int:
    """The day it is, in UTC."""
    return int(time.time()) // DAY_S


class Budgets:
    """Rows are taken when a request is held and given back when it is refused, so that no run can exceed them.

    The journal keeps what was computed; `spent` is what it has of today.
    """

    def __init__(self, spent: Mapping[Spent, int], day: Callable[[], int] = today) -> None:
        self._spent, self._day = dict(spent), day

    def take(self, key_id: str, model: str, rows: int, most: int | None) -> int | None:
        """Takes rows for today, and says which day it is; None where fewer are left. most: rows a day, None: no limit."""
        day = self._day()
        spent = self._spent.get((key_id, model, day), 0)
        if most is not None and spent + rows > most:
            return None
        if spent == 0:
            self._spent = {entry: count for entry, count in self._spent.items() if entry[2] >= day - 1}
        self._spent[key_id, model, day] = spent + rows
        return day

    def give_back(self, key_id: str, model: str, rows: int, day: int) -> None:
        """Rows that were taken on that day and not computed, or lost."""
        if (key_id, model, day) in self._spent:
            self._spent[key_id, model, day] -= rows

    def left(self, key_id: str, model: str, most: int) -> int:
        """Rows that are left today."""
        return most - self._spent.get((key_id, model, self._day()), 0)


def renewed_in_s() -> float:
    """Seconds until budgets are renewed, at midnight in UTC."""
    return DAY_S - time.time() % DAY_S
