"""What everybody knows of a feature on its way through the steps of a pipeline: name, bounds, whether it may be missing.

These follow from the schema alone, never from rows: so the names and the number of features are public before a fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

MOST_CATEGORIES = 4096


@dataclass(frozen=True)
class Field:
    """One feature: float64 numbers of a column, NaN where missing.

    `low`, `high`: public bounds, infinite where they follow from parameters that not all know. `categories`: the names of
    the codes 0, 1, ... of a column of categories. `whole`: whole numbers only.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    missing: bool = False
    categories: tuple[str, ...] | None = None
    whole: bool = False

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def number(self) -> bool:
        """Whether arithmetic on the values means something."""
        return self.categories is None

    def within(self, low: float = -math.inf, high: float = math.inf, **changes: Any) -> Field:
        """The same feature with other values."""
        return replace(self, low=low, high=high, whole=False, **changes)

    def flag(self, name: str) -> Field:
        """A feature that is 0 or 1."""
        return Field(name, 0.0, 1.0, whole=True)


def field_of(name: str, column: Any) -> Field:
    """What the schema says of a column (see `securemodel.data.schema`)."""
    kind, missing = column.kind, bool(column.missing)
    categories = tuple(column.labels) if kind == "category" else None
    return Field(name, float(column.low), float(column.high), missing, categories, whole=kind != "number")
