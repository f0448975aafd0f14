"""Steps that look at a label: of each category or bin, the table of its rows and of the labels of these.

The owner of a feature knows how many rows each category has. Where the label is another party's, sums of it are added up in
secret and revealed to the owner of the feature alone, as it could work them out from the encodings; to all, where the rows
are split. A category with fewer rows than the schema's minimum is withheld and gets what an unknown one gets: its sum would
nearly be the labels of few people.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.asks import Ask, Fit
from securemodel.data.fields import Field
from securemodel.data.preprocess import Fields, Parameters, Step
from securemodel.data.totals import Part, Rows
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
                found = cells.alone(owner, label_parts[0]) if here(owner.party) else None
            else:
                ask = cells.added(rows.parts, label_parts) if others else cells.joined(owner, label_parts[0])
                results = yield ask
                found = cells.read(results)
            if found is not None:
                tables.append(found)
        if len(tables) < len(fields):  # they are not for this party
            return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in self.shapes(fields).items()}
        return {**edges, **self.encoded(tables, fields, labels.field)}

    def edges_of(self, fields: Fields) -> tuple[str, ...]:
        """The parameters that `edges` gives."""
        return ()


@dataclass(frozen=True, repr=False)
class Cells:
    """How the table of one feature is made."""

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
    def _shape(self) -> tuple[int, int]:
        return max(self.step.folds, 1), self._size

    def alone(self, x: Part, y: Part) -> Table:
        """One party has both, and withholds nothing from itself."""
        cells = self._hot(x, 0).T @ self._powers(y)
        totals = self._outside(self._by_fold(self._powers(y), 0))
        rows, first, second = self._outside(cells.T.reshape(3, *self._shape))
        return Table(rows, first, second, totals.squeeze(2))

    def joined(self, x: Part, y: Part) -> Ask:
        """The feature is one party's, the label another's: products of secrets, revealed to the first."""
        hot = Owned(x.party, lambda: self._hot(x, 0), (x.count, self._shape[0] * self._size), torch.float64)
        powers = Owned(y.party, lambda: self._powers(y)[:, 1:], (y.count, 2), torch.float64)

        def counts() -> torch.Tensor:
            inside = self._hot(x, 0).sum(0).reshape(1, *self._shape)
            return torch.cat([self._outside(inside), self._allowed(inside).double()])

        once = {
            "counts": Owned(x.party, counts, (2, self.step.folds + 1, self._size), torch.float64),
            "totals": Owned(y.party, lambda: self._outside(self._by_fold(self._powers(y), 0)),
                            (3, self.step.folds + 1, 1), torch.float64),
        }  # fmt: skip

        def finish(cells: torch.Tensor, counts: torch.Tensor, totals: torch.Tensor) -> Mapping[str, torch.Tensor]:
            found = self._outside(cells.T.reshape(2, *self._shape))
            table = torch.cat([counts[:1], found]) * counts[1:]
            return {"table": table, "totals": totals * 1.0}

        what = f"labels {self.label.name} of {self.fields[self.at].name}"
        rows = {"hot": (hot,), "y": (powers,)}
        return Ask(
            what, finish, dict.fromkeys(("table", "totals"), x.party), rows, once, lambda hot, y: {"cells": hot.T @ y}
        )

    def added(self, x: tuple[Part, ...], y: tuple[Part, ...]) -> Ask:
        """Parties have rows with both: their tables are added up, and revealed to all."""
        once, first = {}, 0
        for features, labels in zip(x, y, strict=True):

            def own(features: Part = features, labels: Part = labels, first: int = first) -> torch.Tensor:
                powers = self._powers(labels)
                cells = (self._hot(features, first).T @ powers).T.reshape(3, *self._shape)
                return torch.cat([cells, self._by_fold(powers, first)], 2)

            shape = (3, self._shape[0], self._size + 1)
            once[features.party] = Owned(features.party, own, shape, torch.float64)
            first += features.count

        def finish(**tables: torch.Tensor) -> Mapping[str, torch.Tensor]:
            whole: torch.Tensor = sum(tables.values())  # type: ignore[assignment]
            inside = whole[:, :, :-1]
            allowed = self._allowed(inside[:1]).to(whole.dtype)
            return {"table": self._outside(inside) * allowed, "totals": self._outside(whole[:, :, -1:])}

        what = f"labels {self.label.name} of {self.fields[self.at].name}"
        return Ask(what, finish, dict.fromkeys(("table", "totals"), "all"), once=once)

    def read(self, results: Mapping[str, torch.Tensor | None]) -> Table | None:
        """The table that was revealed, if to this party."""
        table, totals = results["table"], results["totals"]
        if table is None or totals is None:
            return None
        rows, first, second = table.double()
        return Table(rows.round(), first, second, totals.double()[:, :, 0])

    def _hot(self, x: Part, first: int) -> torch.Tensor:
        """float64[rows, folds * categories]: the fold and category of rows of the fit, from the row `first` of all on."""
        codes = self.step.codes(x.x(), self.edges, self.fields, self.at)
        known = (codes >= 0) & (codes < self._size)
        numbers = torch.from_numpy(self.step.fold_numbers(self.rows)[first : first + x.count])
        places = torch.arange(self._shape[0] * self._size)
        return (
            (codes.nan_to_num(-1.0).long() + self._size * numbers).unsqueeze(1).eq(places) & known.unsqueeze(1)
        ).double()

    def _powers(self, y: Part) -> torch.Tensor:
        """[rows, 3]: 1, the label as 0..1, its square."""
        units = (y.x()[:, 0] - self.label.low) / ((self.label.high - self.label.low) or 1.0)
        return torch.stack([torch.ones_like(units), units, units * units], 1)

    def _by_fold(self, powers: torch.Tensor, first: int) -> torch.Tensor:
        """[3, folds, 1]: sums of the rows of each fold."""
        numbers = torch.from_numpy(self.step.fold_numbers(self.rows)[first : first + len(powers)])
        made = torch.zeros(self._shape[0], 3, dtype=torch.float64).index_add_(0, numbers, powers)
        return made.T.unsqueeze(2)

    def _outside(self, inside: torch.Tensor) -> torch.Tensor:
        """[k, folds + 1, n] from sums within folds, [k, folds, n]: of all rows, and of those outside of each fold."""
        whole = inside.sum(1, keepdim=True)
        return torch.cat([whole, whole - inside], 1) if self.step.folds else whole

    def _allowed(self, inside: torch.Tensor) -> torch.Tensor:
        """What has rows enough to be told: no table, and no difference of two, may be of few rows. [1, folds + 1, n]."""
        least = max(self.minimum, 1) - 0.5
        made = self._outside(inside) > least
        if not self.step.folds:
            return made
        enough = (inside > least) | (inside < 0.5)
        return made & torch.cat([torch.ones_like(made[:, :1]), enough], 1)
