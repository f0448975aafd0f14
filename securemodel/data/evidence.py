"""What a column tells of a label: weight of evidence, information value, chi-square; what changed between two tables.

Of each bin k of a column, e_k rows have the label and n_k do not; E and N are their sums. With half a row added to each,
the weight of evidence is log((e_k + 1/2) / E) - log((n_k + 1/2) / N), and the information value the sum of
(e_k / E - n_k / N) times that [Siddiqi 2006, chapter 6]. The table of e_k and n_k stays secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from protocols.errors import InputError, explain
from securemodel.data.answers import check_rows, warn_of_leak
from securemodel.data.binning import Bins, bins_of, pandas
from securemodel.data.sides import Given, Rows, Side, Sums, Total, column_of, one_hot, owner_of
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
    names = (columns,) if isinstance(columns, str) else tuple(columns)
    if label in names or not names:
        raise InputError(explain(f"weights of evidence are of other columns than the label {label!r}"))
    positive = label_side(joint, label)
    check_rows(joint)
    chosen = {name: joint_bins(joint, name, bins[name] if isinstance(bins, Mapping) else bins) for name in names}
    sums, minimum = Sums(joint), joint.schema.minimum
    receivers: dict[str, str] = {}
    for name in names:
        table = sums.add(
            Side((name,), chosen[name].size, partial(one_hot, chosen[name].size), chosen[name].codes), positive
        )
        for what, result in ((_WEIGHTS, _weights), (_VALUE, _value), (_TOLD, _told)):
            sums.tell(f"{what} of {name}", partial(result, table, minimum))
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
    return Side((label,), 2, _classes)


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


def _of_classes(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums of both classes, at least 1; whether both are there)."""
    both = table.sum(0)
    there = both >= 1
    return torch.where(there, both, 1), there[0] & there[1]


def _logs(table: torch.Tensor) -> torch.Tensor:
    classes, _ = _of_classes(table)
    logs = torch.log(table + 0.5)
    totals = torch.log(classes.to(torch.float32))
    return logs[:, 0] - logs[:, 1] - (totals[0] - totals[1])


def _weights(total: Total, minimum: int, given: Given) -> torch.Tensor:
    table = total(given)
    return torch.where(enough(table.sum(1), minimum) & _of_classes(table)[1], _logs(table), 0.0)


def _value(total: Total, minimum: int, given: Given) -> torch.Tensor:
    table = total(given)
    classes, both = _of_classes(table)
    shares = table / classes
    return torch.where(both, ((shares[:, 0] - shares[:, 1]) * _logs(table)).sum(), 0.0)


def _told(total: Total, minimum: int, given: Given) -> torch.Tensor:
    table = total(given)
    return torch.cat([enough(table.sum(1), minimum), _of_classes(table)[1].reshape(1)])


def _evidence(
    joint: Rows, sums: Sums, bins: Bins, label: str, weights: torch.Tensor, value: torch.Tensor, told: torch.Tensor
) -> Evidence:
    (own, *_) = sums.owners((bins.column.name,))
    names = bins.names(own if joint.me in (None, own.party) else None)
    *enough_rows, both = told.tolist()
    if not both:
        nothing = (math.nan,) * bins.size
        why = f"all rows have one class of {label}"
        return Evidence(bins.column.name, label, names, nothing, math.nan, joint.schema.minimum, why)
    made = tuple(x if seen else math.nan for x, seen in zip(weights.tolist(), enough_rows, strict=True))
    if float(value) > LEAKS_ABOVE:
        warn_of_leak(bins.column.name, label, f"its information value is {float(value):.2f}")
    return Evidence(bins.column.name, label, names, made, float(value), joint.schema.minimum)
