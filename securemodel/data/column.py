"""What is public of one column of a joint table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

KINDS = ("number", "integer", "boolean", "category", "date")
SPLITS = ("columns", "rows")
OUTSIDE = ("error", "clip")
ID_MISSING = ("error", "drop")
DUPLICATES = ("error", "first", "sum", "mean")
MOST_VALUES = 4096
MINIMUM = 20
OTHER = "other"
_EPOCH = date(1970, 1, 1)


def days(day: date) -> int:
    """Days since 1970-01-01, as columns of dates hold them."""
    return (day - _EPOCH).days


def day(count: int) -> date:
    """The date so many days after 1970-01-01."""
    return _EPOCH + timedelta(count)


@dataclass(frozen=True)
class Column:
    """What is public of a column; its values are their owner's.

    owner: the party that has it; None where the table is split by rows and all parties have it.
    kind: "number" (float64), "integer", "boolean" (0 and 1), "category" (places in `labels`) or "date" (days since
        1970-01-01). Columns of all kinds but "number" are int64.
    low, high: no value is below or above; of a boolean 0 and 1, of a category the first place and the last.
    outside: whether a value beyond them is an error, or becomes the bound.
    missing: whether values may be absent.
    values: the vocabulary of a category, in the order of its codes; of a boolean the words for 0 and 1, if not the usual.
    other: whether a category has a last class for all other values.
    duplicates: what becomes of several rows with one id: an error, their first value, sum or mean.
    """

    name: str
    owner: str | None
    kind: str
    low: float
    high: float
    outside: str = "error"
    missing: bool = False
    values: tuple[str, ...] = ()
    other: bool = False
    duplicates: str = "error"

    @property
    def labels(self) -> tuple[str, ...]:
        """What the codes of a category or boolean mean; empty for the other kinds."""
        if self.kind == "boolean":
            return self.values or ("0", "1")
        return self.values + ((OTHER,) if self.other else ()) if self.kind == "category" else ()

    @property
    def described(self) -> dict[str, object]:
        """All that is public of it, for comparison."""
        return {name: getattr(self, name) for name in ("owner", "kind", "low", "high", "outside", "missing", "values",
                                                       "other", "duplicates")}  # fmt: skip
