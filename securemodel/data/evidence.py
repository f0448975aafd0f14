"""What a column tells of a label: weight of evidence, information value, chi-square; what changed between two tables.

Of each bin k of a column, e_k rows have the label and n_k do not; E and N are their sums. With half a row added to each,
the weight of evidence is log((e_k + 1/2) / E) - log((n_k + 1/2) / N), and the information value the sum of
(e_k / E - n_k / N) times that [Siddiqi 2006, chapter 6]. The table of e_k and n_k stays secret.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.answers import asked_columns, check_rows, warn_of_leak
from securemodel.data.binning import Bins, bins_of, pandas
from securemodel.data.sides import Given, Own, Rows, Side, Sums, Total, column_of, one_hots, owner_of
from securemodel.data.statistics import quantiles
from securemodel.data.withholding import enough
from securemodel.shown import Shown

LEAKS_ABOVE = 1.0
"""An information value that is hardly ever honest."""
FRAC_BITS = 16
"""Of programs with logarithms: these are right within 2^-14 for counts up to 2^28."""


@dataclass(frozen=True, repr=False)
class Evidence(Shown):
    """Weight of evidence of a column's bins, and its information value; at whoever may learn them.

    names: of the bins; edges are their owner's, and others see numbers. woe: NaN where fewer rows than `minimum` are in
    the bin. undefined: why there is nothing, as for a label of one class.
    """

    column: str
    label: str
    names: tuple[str, ...]
    woe: tuple[float, ...]
    iv: float
    minimum: int
    undefined: str = ""

    @property
    def frame(self):
        """The bins as a pandas.DataFrame."""
        return pandas().DataFrame({"woe": self.woe}, index=pandas().Index(self.names, name=self.column))

    @property
    def withheld(self) -> tuple[str, ...]:
        """The bins that are not told."""
        return tuple(name for name, x in zip(self.names, self.woe, strict=True) if math.isnan(x) and not self.undefined)

    def __str__(self) -> str:
        if self.undefined:
            return f"{self.column}: undefined, {self.undefined}"
        lines = [self.frame.to_string(), f"information value of {self.column} for {self.label}: {self.iv:.4f}"]
        few = f"withheld, of fewer than {self.minimum} rows: {', '.join(self.withheld)}"
        return "\n".join([*lines, *([few] if self.withheld else [])])


def woe(
    joint: Rows,
    columns: str | Sequence[str],
    label: str,
    bins: int | Sequence[float] | Mapping[str, int | Sequence[float]] = 10,
    *,
    reveal: str | None = None,
) -> dict[str, Evidence]:
    """Weight of evidence and information value of columns for a label of two classes, the table itself staying secret.

    A bin is pandas.qcut's where `bins` is a number, of given edges (right-closed), or one for each value of a category;
    missing values are one, too. Each column's owner learns its weights, or whoever `reveal` names: what this party does
    not learn is not in the result. Beware: who knows how many rows each bin has can work out the label's share of them
    from the weights. Where rows are split, edges are told to all first. Warns of information values above 1. Raises
    InputError.
    """
    names = asked_columns(joint, columns)
    if label in names or not names:
        raise InputError(explain(f"weights of evidence are of other columns than the label {label!r}"))
    if isinstance(bins, Mapping) and (without := [name for name in names if name not in bins]):
        what = f"there are no bins of {', '.join(map(repr, without))}"
        raise InputError(explain(what, where="bins=", fix="name all columns, or give a number for all"))
    positive = label_side(joint, label)
    check_rows(joint)
    chosen = {name: joint_bins(joint, name, bins[name] if isinstance(bins, Mapping) else bins) for name in names}
    sums, receivers = Sums(joint), {}
    tables = _tables(joint, sums, chosen, positive)
    found = sums.once_made(partial(_of_tables, list(tables.values()), joint.schema.minimum))
    for at, name in enumerate(names):
        for place, what in enumerate((_WEIGHTS, _VALUE, _TOLD)):
            size = None if what == _VALUE else chosen[name].size
            sums.tell(f"{what} of {name}", partial(_part, found, place, at, size))
            receivers[f"{what} of {name}"] = reveal or owner_of(joint, name) or "all"
    asked = f"weights of evidence of {', '.join(names)} for {label}"
    answer = joint.ask(sums.query(asked, receivers, frac_bits=FRAC_BITS))
    made = {}
    for name in names:
        weights, value, told = (answer[f"{what} of {name}"] for what in (_WEIGHTS, _VALUE, _TOLD))
        if weights is not None and value is not None and told is not None:
            made[name] = _evidence(joint, sums, chosen[name], label, weights, value, told)
    return made


_WEIGHTS, _VALUE, _TOLD = "weights of evidence", "information value", "bins of enough rows"


def information_value(
    joint: Rows, columns: str | Sequence[str], label: str, bins: int = 10, *, reveal: str | None = None
) -> dict[str, float]:
    """The information values that `woe` finds, by column; NaN where they are undefined."""
    return {name: found.iv for name, found in woe(joint, columns, label, bins, reveal=reveal).items()}


def label_side(joint: Rows, label: str) -> Side:
    """Two features of a label of two classes: whether it is the second one, and whether it is the first.

    Raises InputError for another label.
    """
    of = column_of(joint, label)
    if of.kind not in ("boolean", "integer", "category") or (of.low, of.high) != (0, 1):
        fix = "name a boolean, a category of two values, or whole numbers that are 0 or 1"
        raise InputError(explain(f"the label {label!r} does not have two classes", fix=fix))
    return Side((label,), 2, _classes, most=1)


def _classes(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    positive = values.to(torch.int64) * valid
    return torch.cat([positive, valid - positive], 1)


def joint_bins(joint: Rows, name: str, bins: int | Sequence[float]) -> Bins:
    """The bins of a column: where no party has it whole, those of quantiles that all are told. Raises InputError."""
    made = bins_of(column_of(joint, name), bins)
    if made.labeled or made.edges is not None or owner_of(joint, name) is not None:
        return made
    found = quantiles(joint, name, [at / made.count for at in range(1, made.count)], reveal="all")
    inner = sorted({x for x in (found or {}).values() if made.column.low < x < made.column.high})
    return bins_of(made.column, [made.column.low, *inner, made.column.high])


def _tables(joint: Rows, sums: Sums, chosen: Mapping[str, Bins], label: Side) -> dict[str, Total]:
    """Of each column, how many rows of each class are in each bin, [bins, 2]; columns of one owner in one product."""
    made: dict[str, Total] = {}
    for party in dict.fromkeys(owner_of(joint, name) for name in chosen):
        names = tuple(name for name in chosen if owner_of(joint, name) == party)
        sizes = [chosen[name].size for name in names]
        codes = partial(_codes, [chosen[name] for name in names])
        products = sums.add(Side(names, sum(sizes), partial(one_hots, sizes), codes, 1), label)
        for at, name in enumerate(names):
            made[name] = partial(_rows, products, sum(sizes[:at]), sizes[at])
    return {name: made[name] for name in chosen}


def _codes(bins: Sequence[Bins], own: Own) -> np.ndarray:
    return np.concatenate([of.codes(own.alone(at)) for at, of in enumerate(bins)], 1)


def _rows(table: Total, start: int, size: int, given: Given) -> torch.Tensor:
    return table(given)[start : start + size]


def _of_tables(totals: Sequence[Total], minimum: int, given: Given) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of all columns at once: weights [columns, bins], values [columns], and [columns, bins + 1] what of it is told: bins of
    enough rows, and whether both classes are there.
    """
    tables = [total(given) for total in totals]
    most = max(table.shape[0] for table in tables)
    table = torch.stack([torch.nn.functional.pad(table, (0, 0, 0, most - table.shape[0])) for table in tables])
    classes = table.sum(1, keepdim=True)
    there = classes >= 1
    classes = torch.where(there, classes, 1)
    both = there[:, 0, 0] & there[:, 0, 1]
    logs, all_logs = torch.log(table + 0.5), torch.log(classes.to(torch.float32))
    weights = logs[..., 0] - logs[..., 1] - (all_logs[..., 0] - all_logs[..., 1])
    shares = table / classes
    values = ((shares[..., 0] - shares[..., 1]) * weights).sum(1)
    told = enough(table.sum(2), minimum)
    seen = torch.where(told & both.unsqueeze(1), weights, 0.0)
    return seen, torch.where(both, values, 0.0), torch.cat([both.unsqueeze(1), told], 1)


def _part(found: Callable[[Given], Any], place: int, at: int, size: int | None, given: Given) -> torch.Tensor:
    """What is told of one column."""
    of = found(given)[place][at]
    return of if size is None else of[: size + (place == 2)]


def _evidence(
    joint: Rows, sums: Sums, bins: Bins, label: str, weights: torch.Tensor, value: torch.Tensor, told: torch.Tensor
) -> Evidence:
    (own, *_) = sums.owners((bins.column.name,))
    names = bins.names(own if joint.me in (None, own.party) else None)
    both, *enough_rows = told.tolist()
    if not both:
        nothing = (math.nan,) * bins.size
        why = f"all rows have one class of {label}"
        return Evidence(bins.column.name, label, names, nothing, math.nan, joint.schema.minimum, why)
    made = tuple(x if seen else math.nan for x, seen in zip(weights.tolist(), enough_rows, strict=True))
    if float(value) > LEAKS_ABOVE:
        warn_of_leak(bins.column.name, label, f"its information value is {float(value):.2f}")
    return Evidence(bins.column.name, label, names, made, float(value), joint.schema.minimum)
