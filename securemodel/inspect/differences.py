"""What `compare` finds: layer by layer, drift and the distance to the nearest limit; as a table when printed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from securemodel.shown import Shown

COLUMNS = 110
_HEADINGS = ("layer", "largest", "fixed -\nfloat", "secure -\nfixed", "nearest limit", "bits\nto it")


@dataclass(frozen=True)
class Limit:
    """An interval [low, high) that values must stay in, and the smallest and largest value that was seen."""

    what: str
    low: float
    high: float
    smallest: float
    largest: float

    @property
    def outside(self) -> bool:
        """Whether some value left the interval."""
        return not (self.low <= self.smallest and self.largest < self.high)

    @property
    def headroom(self) -> float:
        """Bits that the values could still grow or shrink by; negative outside, infinite where no end is near."""
        return min(self._room)

    @property
    def nearest(self) -> float:
        """The value that is nearest to an end of the interval, or farthest outside."""
        below, above = self._room
        return self.smallest if below < above else self.largest

    @property
    def _room(self) -> tuple[float, float]:
        """Bits to the lower and to the upper end."""
        above = math.inf if self.largest <= 0 else _bits(self.high, self.largest)
        if self.low > 0:
            return (-math.inf if self.smallest <= 0 else _bits(self.smallest, self.low)), above
        return (math.inf if self.smallest >= 0 else _bits(-self.low, -self.smallest)), above


def _bits(large: float, small: float) -> float:
    return math.log2(large) - math.log2(small) if large > 0 else -math.inf


@dataclass(frozen=True)
class Row:
    """One layer. Drifts are largest absolute differences; None where the layer has no value of its own to compare.

    `fixed_drift`: fixed point in the clear against float64. `secure_drift`: the secure run against fixed point.
    `largest`: the largest magnitude in float64. `limit`: the limit whose distance is smallest.
    """

    layer: str
    largest: float | None
    fixed_drift: float | None
    secure_drift: float | None
    limit: Limit | None

    @property
    def outside(self) -> bool:
        """Whether a value of this layer left a range."""
        return self.limit is not None and self.limit.outside


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Float, fixed-point and secure results side by side, in the order of the model; print it for a table.

    Made from one owner's test data: every number here is in the clear. `halved`: how many tables have fewer pieces because
    the program is tuned.
    """

    rows: tuple[Row, ...]
    halved: int = 0

    @property
    def first_out_of_range(self) -> Row | None:
        """The first layer with a value outside its range, if there is one."""
        return next((row for row in self.rows if row.outside), None)

    def first_beyond(self, drift: float) -> Row | None:
        """The first layer whose results, fixed or secure, are farther from float than `drift`."""
        return next((row for row in self.rows if _total(row) > drift), None)

    def __str__(self) -> str:
        return comparison_text(self)


def _total(row: Row) -> float:
    return (row.fixed_drift or 0.0) + (row.secure_drift or 0.0)


def comparison_text(comparison: Comparison) -> str:
    """The table that `print` shows, at most 110 columns wide."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    cells = [_cells(row) for row in comparison.rows]
    columns = list(zip(_HEADINGS, *cells, strict=True))[1:]
    others = sum(max(map(len, [*heading.split("\n"), *column])) + 2 for heading, *column in columns)
    for heading in _HEADINGS:
        left = heading in ("layer", "nearest limit")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for name, *rest in cells:
        table.add_row(*map(Text, (_shortened(name, COLUMNS - others - 2), *rest)))
    out = StringIO()
    console = Console(file=out, width=COLUMNS, color_system=None, highlight=False)
    console.print("test data of one owner, all in the clear: not a secure run", table, sep="\n")
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    lines = [text, _verdict(comparison)]
    if comparison.halved:
        lines.insert(
            1, f"tuned: {comparison.halved} tables of smooth functions have fewer pieces, which adds to the drift"
        )
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    drifts = ("" if x is None else f"{x:.1e}" for x in (row.fixed_drift, row.secure_drift))
    return (" ".join(row.layer.split()), _number(row.largest), *drifts, *_limit_cells(row.limit))


def _shortened(name: str, columns: int) -> str:
    return name if len(name) <= columns else name[: columns - 3] + "..."


def _limit_cells(limit: Limit | None) -> tuple[str, str]:
    if limit is None:
        return "", ""
    room = "OUTSIDE" if limit.outside else "any" if math.isinf(limit.headroom) else f"{limit.headroom:.1f}"
    return f"{limit.what}: {_number(limit.nearest)} in {_interval(limit)}", room


def _interval(limit: Limit) -> str:
    if limit.low == -limit.high:
        return f"±{_end(limit.high)}"
    return f"[{_end(limit.low)}, {_end(limit.high)})"


def _verdict(comparison: Comparison) -> str:
    first = comparison.first_out_of_range
    if first is None or first.limit is None:
        return "no value leaves its range"
    limit = first.limit
    return (
        f"first out of range: {' '.join(first.layer.split())}\n"
        f"  {limit.what}: a value of {_number(limit.nearest)}, allowed is {_interval(limit)}; "
        "what follows is meaningless where it depends on it"
    )


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


def _end(x: float) -> str:
    """The end of an interval: far ones as powers of two."""
    power = math.log2(x) if 0 < x < math.inf else 0.0
    return f"2^{power:.0f}" if power.is_integer() and abs(power) >= 10 else _number(x)
