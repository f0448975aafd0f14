"""What a metric is: sums over rows, what is revealed of them, and what a person reads.

A metric is made of three plain functions. `Part.sums` adds up over rows, `Metric.finish` makes of the sums what is
revealed: both work on tensors, in the clear and as a secure program. `Metric.read` makes a `Measured` of what was revealed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from protocols.errors import InputError, explain
from securemodel.shown import Shown

Tensors = Mapping[str, Tensor]
MOST_WEIGHT = 2**27
"""The weights of all rows, as whole numbers, stay below this: products of two sums of them have room in the ring."""
FEW = 200
"""A curve of fewer rows of a class is said to be uncertain."""


@dataclass(frozen=True)
class Terms:
    """What is public about the rows: how many there are, and how they are weighted and protected.

    `unit`: weights are whole multiples of 1 / unit. `weighted`: rows have weights; else each counts 1. `heaviest`: no row
    weighs more. `minimum`: what is said of fewer rows, by weight, is withheld.
    """

    rows: int
    weighted: bool = False
    unit: int = 1
    heaviest: float = 1.0
    minimum: int = 1

    @property
    def most(self) -> int:
        """What the whole weights of all rows cannot exceed."""
        return max(1, int(self.rows * self.heaviest * self.unit + 0.5))

    @property
    def least(self) -> int:
        """The whole weight of the fewest rows of which something is said: without a minimum, of any."""
        return self.minimum * self.unit if self.minimum > 1 else 1


def weight_unit(rows: int, heaviest: float = 1.0) -> int:
    """The finest grid of weights, 1 / unit, on which the sum of `rows` of them has room, and 2^16 at most.

    Raises InputError for weights too large to be summed.
    """
    unit = 2**16
    while unit > 1 and rows * heaviest * unit > MOST_WEIGHT:
        unit //= 2
    if rows * heaviest * unit > MOST_WEIGHT:
        what = f"{rows:,} rows with weights of up to {heaviest:g} have no room"
        raise InputError(explain(what, fix=f"scale the weights: their sum must stay below {MOST_WEIGHT:,}"))
    return unit


def whole_weights(weight: Tensor, unit: int) -> Tensor:
    """Weights as whole multiples of 1 / unit; whole numbers stay as they are."""
    return torch.round(weight.double() * unit).long() if weight.is_floating_point() else weight.long()


@dataclass(frozen=True)
class Part:
    """What is summed over rows, by a name that stands for all that it depends on.

    `sums(label, score, weight)` gives totals by name; the weight is None or whole numbers. `whole`: needs all rows at once.
    `presences`: takes weights that are 0 or 1 alone.
    """

    name: str
    sums: Callable[[Tensor, Tensor, Tensor | None], dict[str, Tensor]]
    whole: bool = False
    presences: bool = False


@dataclass(frozen=True, repr=False)
class Measured(Shown):
    """A metric of a set of rows. `value` is None where it is undefined or withheld, and `why` says why.

    `error`: the value is at most so far from that of the exact scores (of bins; None where it is exact to the digits
    shown). `threshold`: from which score on a row counts as positive. `curve`: tables by column, of curves, calibrations
    and matrices. `notes`: what to know when reading it.
    """

    name: str
    value: float | None = None
    error: float | None = None
    threshold: float | None = None
    curve: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    notes: tuple[str, ...] = ()
    method: str = ""

    def __str__(self) -> str:
        shown = self.why if self.value is None and not self.curve else ""
        if self.value is not None:
            shown = f"{self.value:.6g}" + (f" ± {self.error:.2g}" if self.error is not None else "")
        about = [f"threshold {self.threshold:g}"] if self.threshold is not None else []
        about += [self.method] if self.method else []
        table = "; ".join(f"{name} {_short(column)}" for name, column in self.curve.items())
        return f"{self.name}: {shown or table}" + (f" ({', '.join(about)})" if about else "")


def _short(column: Any) -> str:
    text = str(column)
    return text if len(text) <= 60 else f"{len(column)} values"


@dataclass(frozen=True)
class Metric:
    """A function of labels and scores that can be computed without anybody seeing them.

    `shows` names what `finish(totals, terms)` reveals; metrics with the same name and part reveal the same. `read(shown,
    terms)` makes a `Measured` of it. `curve`: it is a table of several numbers, and scores can nearly be told from it.
    """

    name: str
    part: Part
    shows: str
    finish: Callable[[Tensors, Terms], dict[str, Tensor]]
    read: Callable[[Tensors, Terms], Measured]
    classes: int = 2
    curve: bool = False

    def __call__(
        self, label: Tensor, score: Tensor, weight: Tensor | None = None, minimum: int = 1
    ) -> dict[str, Tensor]:
        """What is revealed of these rows, in the clear or within a secure program; `weight` has whole numbers or None."""
        terms = _terms_of(label, weight, minimum)
        return self.finish(self.part.sums(label, score, weight), terms)

    def measure(self, label: Tensor, score: Tensor, weight: Tensor | None = None, minimum: int = 1) -> Measured:
        """The metric of rows in the clear, as scikit-learn has it; weights may be any numbers from 0 on."""
        if weight is None:
            return self.read(self(label, score, None, minimum), _terms_of(label, None, minimum))
        if self.part.presences and bool(((weight != 0) & (weight != 1)).any()):
            fix = "take it from bins, without exact=True, or give presences of 0 and 1"
            raise InputError(explain(f"{self.name} by sorting does not take weights", fix=fix))
        heaviest = max(float(weight.max()), 2.0**-16) if len(weight) else 1.0
        unit = 1 if not weight.is_floating_point() or self.part.presences else weight_unit(len(label), heaviest)
        terms = Terms(len(label), True, unit, heaviest, minimum)
        weight = whole_weights(weight, unit)
        return self.read(self.finish(self.part.sums(label, score, weight), terms), terms)

    def of_batches(self, totals: Tensors, rows: int) -> Measured:
        """The metric of sums of batches, one below the other, as an evaluation of a training returns `part.sums`.

        `rows`: how many rows all batches have. Raises InputError for a metric that needs all rows at once.
        """
        if self.part.whole:
            fix = "take it from bins, without exact=True"
            raise InputError(explain(f"{self.name} by sorting is of all rows at once, not of batches", fix=fix))
        score = torch.zeros(2) if self.classes == 2 else torch.zeros(2, max(2, self.classes))
        like = self.part.sums(torch.zeros(2), score, None)
        added = {name: totals[name].reshape(-1, *x.shape).sum(0).to(x.dtype) for name, x in like.items()}
        terms = Terms(rows)
        return self.read(self.finish(added, terms), terms)


def _terms_of(label: Tensor, weight: Tensor | None, minimum: int) -> Terms:
    heaviest = 1.0 if weight is None else MOST_WEIGHT / max(1, len(label))
    return Terms(len(label), weight is not None, 1, heaviest, minimum)


def number(shown: Tensors, name: str) -> float:
    """One revealed number."""
    return float(shown[name])


def too_few(what: str, terms: Terms) -> str:
    """Why nothing is said of a group of rows."""
    if terms.minimum <= 1:
        return f"undefined: no {what}"
    return f"withheld: fewer than {terms.minimum} {what} (undefined with none)"
