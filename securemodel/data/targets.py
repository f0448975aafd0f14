"""Steps that look at a label: of each category or bin, the table of its rows and of the labels of these.

The owner of a feature knows how many rows each category has. Where the label is another party's, sums of it are added up in
secret and revealed to the owner of the feature alone, as it could work them out from the encodings; to all, where the rows
are split. A category with fewer rows than the schema's minimum is withheld and gets what an unknown one gets: its sum would
nearly be the labels of few people. So is whatever would let it be worked out (`securemodel.data.withheld_cells`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.asks import Ask, Fit
from securemodel.data.fields import Field
from securemodel.data.preprocess import Fields, Parameters, Step
from securemodel.data.totals import Part, Rows
from securemodel.data.withheld_cells import told_cells
from securemodel.training.datasets import Owned


@dataclass(frozen=True, repr=False)
class Labels:
    """The column of labels: parts of the same rows as those of the feature, or one with all of them."""

    parts: tuple[Part, ...]
    field: Field


@dataclass(frozen=True, repr=False)
class Table:
    """Of one feature: how many rows, the sum of their labels and of the squares of these, float64[folds + 1, categories], and
    of all categories together, float64[folds + 1]. The first is of all rows, the others of those outside of a fold.

    What is withheld is 0; `told` says what is not.
    """

    rows: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    totals: torch.Tensor

    @property
    def told(self) -> torch.Tensor:
        return self.rows > 0

    @property
    def mean(self) -> torch.Tensor:
        """[folds + 1, 1]"""
        return (self.totals[1] / self.totals[0]).unsqueeze(1)

    @property
    def var(self) -> torch.Tensor:
        """[folds + 1, 1]"""
        return (self.totals[2] / self.totals[0]).unsqueeze(1) - self.mean**2


@dataclass(frozen=True)
class LabelStep(Step):
    """A step that looks at a label, the column `label`: a boolean, or numbers."""

    label: str

    @property
    def looks_at(self) -> str:
        return self.label

    @property
    def folds(self) -> int:
        """How many folds the rows of the fit are encoded in; 0: they are encoded as all others."""
        return 0

    def problems_of_label(self, label: Field) -> list[str]:
        """Why that column is no label for the step."""
        name = type(self).__name__
        if label.missing:
            return [f"{name}: the label {label.name!r} may be missing"]
        return [] if label.number else [f"{name}: the label {label.name!r} has classes; it takes booleans and numbers"]

    def fold_numbers(self, rows: int) -> np.ndarray:
        """int64[rows]: the fold of each row of the fit, which is public."""
        return np.zeros(rows, np.int64)

    @abstractmethod
    def size(self, field: Field) -> int:
        """How many categories or bins a feature has; public."""

    def edges(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        """What the owner of all rows fits before, as edges of bins."""
        return {}

    @abstractmethod
    def codes(self, x: torch.Tensor, p: Parameters, fields: Fields, at: int) -> torch.Tensor:
        """[rows]: the category or bin of one feature; others than 0..size-1 are unknown."""

    @abstractmethod
    def encoded(self, tables: list[Table], fields: Fields, label: Field) -> dict[str, torch.Tensor]:
        """The parameters, without the edges."""

    def fit_to(self, rows: Rows, fields: Fields, labels: Labels, minimum: int, here: Callable[[str], bool]) -> Fit:
        """The parameters, at the owner of the feature, or at all where several parties have rows. Raises InputError."""
        what = type(self).__name__
        if rows.hidden or any(part.of.way for part in labels.parts):
            raise InputError(explain(f"{what} on hidden rows", why="nobody knows how many rows a category has",
                                     fix="use an alignment in which the owner learns which rows are joint"))  # fmt: skip
        (owner, *others), label_parts = rows.parts, labels.parts
        if others and self.edges_of(fields):
            raise InputError(explain(f"{what} of numbers whose rows several parties have", why="its bins need all of them",
                                     fix="make bins with KBinsDiscretizer(encode='ordinal') for this column"))  # fmt: skip
        edges: dict[str, torch.Tensor] = {}
        if not others and here(owner.party):
            edges = {n: torch.from_numpy(v) for n, v in self.edges(owner.x().numpy(), fields).items()}
        tables: list[Table] = []
        for at, field in enumerate(fields):
            cells = Cells(self, fields, at, edges, labels.field, minimum, rows.count)
            if not others and label_parts[0].party == owner.party:
                if here(owner.party):
                    tables.append(cells.alone(owner, label_parts[0]))
                continue
            found = yield from cells.added(rows.parts, label_parts) if others else cells.joined(owner, label_parts[0])
            if found:
                shown, first, second = found["table"]
                tables.append(Table(shown, first, second, found["totals"]))
        if len(tables) < len(fields):  # they are not for this party
            return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in self.shapes(fields).items()}
        return {**edges, **self.encoded(tables, fields, labels.field)}

    def edges_of(self, fields: Fields) -> tuple[str, ...]:
        """The parameters that `edges` gives."""
        return ()


@dataclass(frozen=True, repr=False)
class Cells:
    """How the table of one feature is made. Folds count from 0 here, and there is one at least."""

    step: LabelStep
    fields: Fields
    at: int
    edges: Parameters
    label: Field
    minimum: int
    rows: int

    @property
    def _size(self) -> int:
        return self.step.size(self.fields[self.at])

    @property
    def _folds(self) -> int:
        return max(self.step.folds, 1)

    @cached_property
    def _numbers(self) -> torch.Tensor:
        """int64[rows]: the fold of each row; public."""
        return torch.from_numpy(self.step.fold_numbers(self.rows))

    def alone(self, x: Part, y: Part) -> Table:
        """One party has both, and withholds nothing from itself."""
        cells, totals = self._cells(x, y, 0)
        shown, first, second = self._outside(cells)
        return Table(shown, first, second, self._outside(totals)[:, :, 0])

    def joined(self, x: Part, y: Part) -> Fit:
        """The feature is one party's, the label another's: products of secrets, revealed to the first."""

        def hot() -> torch.Tensor:
            return (self._codes(x).unsqueeze(1) == torch.arange(self._size)).float()

        def labels() -> torch.Tensor:
            inside = self._numbers.unsqueeze(1) == torch.arange(self._folds)
            return (self._powers(y)[:, 1:].unsqueeze(2) * inside.unsqueeze(1)).flatten(1)

        def finish(cells: torch.Tensor, told: torch.Tensor, totals: torch.Tensor) -> Mapping[str, torch.Tensor]:
            found = self._outside(cells.T.reshape(2, self._folds, self._size))
            return {"table": found * told, "totals": totals * 1.0}

        shape = (self.step.folds + 1, self._size)
        once = {
            "told": Owned(x.party, lambda: self._told(self._counts(x, 0)).double(), shape, torch.float64),
            "totals": Owned(y.party, lambda: self._outside(self._totals(y, 0))[:, :, 0], (3, shape[0]), torch.float64),
        }
        rows = {
            "hot": (Owned(x.party, hot, (x.count, self._size), torch.float32),),
            "y": (Owned(y.party, labels, (y.count, 2 * self._folds), torch.float64),),
        }
        results = yield Ask(self._what, finish, dict.fromkeys(("table", "totals"), x.party), rows, once,
                            lambda hot, y: {"cells": hot.T @ y})  # fmt: skip
        table, totals = results["table"], results["totals"]
        if table is None or totals is None:
            return {}
        counts = self._counts(x, 0)
        shown = self._outside(counts.unsqueeze(0))[0] * self._told(counts)
        return {"table": torch.cat([shown.unsqueeze(0), table.double()]), "totals": totals.double()}

    def added(self, x: tuple[Part, ...], y: tuple[Part, ...]) -> Fit:
        """Parties have rows with both: their tables are added up, and revealed to all. Counts first, which say what may be."""
        firsts = np.cumsum([0, *(part.count for part in x)]).tolist()
        whose = list(zip(x, y, firsts, strict=False))
        shape = (self._folds, self._size)
        count = lambda part, first: lambda: self._counts(part, first).long()
        counts = {part.party: Owned(part.party, count(part, first), shape, torch.int64) for part, _, first in whose}
        least = self._least

        def enough(**each: torch.Tensor) -> Mapping[str, torch.Tensor]:
            inside: torch.Tensor = sum(each.values())  # type: ignore[assignment]
            both = torch.cat([inside, inside.sum(0, keepdim=True)])
            return {"counts": both * (both >= least)}

        results = yield Ask(f"rows of {self.fields[self.at].name}", enough, {"counts": "all"}, once=counts)
        shown = cast(torch.Tensor, results["counts"]).double()
        told = self._told(shown[:-1], shown[-1]).double()
        cells = lambda *given: lambda: torch.cat(self._cells(*given), 2)
        sums = {
            part.party: Owned(part.party, cells(part, label, first), (3, shape[0], shape[1] + 1), torch.float64)
            for part, label, first in whose
        }

        def finish(**each: torch.Tensor) -> Mapping[str, torch.Tensor]:
            whole: torch.Tensor = sum(each.values())  # type: ignore[assignment]
            return {"table": self._outside(whole[:, :, :-1]) * told, "totals": self._outside(whole[:, :, -1:])[:, :, 0]}

        found = yield Ask(self._what, finish, dict.fromkeys(("table", "totals"), "all"), once=sums)
        return {name: cast(torch.Tensor, values).double() for name, values in found.items()}

    @property
    def _what(self) -> str:
        return f"labels {self.label.name} of {self.fields[self.at].name}"

    @property
    def _least(self) -> int:
        return max(self.minimum, 1)

    def _told(self, inside: torch.Tensor, every: torch.Tensor | None = None) -> torch.Tensor:
        """bool[folds + 1, categories]: what may be told, from rows within folds."""
        sizes = np.bincount(self._numbers.numpy(), minlength=self._folds)
        every = inside.sum(0) if every is None else every
        made = told_cells(inside.numpy(), every.numpy(), sizes, self._least, bool(self.step.folds))
        return torch.from_numpy(made)

    def _codes(self, x: Part) -> torch.Tensor:
        """int64[rows]: the category of each row; -1 for an unknown one."""
        codes = self.step.codes(x.x(), self.edges, self.fields, self.at).nan_to_num(-1.0)
        return torch.where((codes >= 0) & (codes < self._size), codes, -1.0).long()

    def _cells(self, x: Part, y: Part, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[3, folds, categories] and [3, folds, 1]: rows, labels and squares by fold and category, and by fold."""
        codes, powers = self._codes(x), self._powers(y)
        numbers = self._numbers[first : first + x.count]
        known = codes >= 0
        made = torch.zeros(self._folds * self._size, 3, dtype=torch.float64)
        made.index_add_(0, (numbers * self._size + codes)[known], powers[known])
        return made.T.reshape(3, self._folds, self._size), self._totals(y, first)

    def _counts(self, x: Part, first: int) -> torch.Tensor:
        """[folds, categories]: rows by fold and category."""
        codes, numbers = self._codes(x), self._numbers[first : first + x.count]
        known = codes >= 0
        made = torch.bincount((numbers * self._size + codes)[known], minlength=self._folds * self._size)
        return made.double().reshape(self._folds, self._size)

    def _powers(self, y: Part) -> torch.Tensor:
        """[rows, 3]: 1, the label as 0..1, its square."""
        units = (y.x()[:, 0] - self.label.low) / ((self.label.high - self.label.low) or 1.0)
        return torch.stack([torch.ones_like(units), units, units * units], 1)

    def _totals(self, y: Part, first: int) -> torch.Tensor:
        """[3, folds, 1]: sums of the rows of each fold."""
        numbers = self._numbers[first : first + y.count]
        made = torch.zeros(self._folds, 3, dtype=torch.float64).index_add_(0, numbers, self._powers(y))
        return made.T.unsqueeze(2)

    def _outside(self, inside: torch.Tensor) -> torch.Tensor:
        """[k, folds + 1, n] from sums within folds, [k, folds, n]: of all rows, and of those outside of each fold."""
        whole = inside.sum(1, keepdim=True)
        return torch.cat([whole, whole - inside], 1) if self.step.folds else whole
