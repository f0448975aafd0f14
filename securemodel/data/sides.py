"""Sums over the rows of a joint table, wherever its columns are: what owners add up, what only all together can.

The sum of what one owner computes of each row, or of the product of what two owners do, is
- the owner's own, where it has all rows and everybody knows which they are;
- a sum of what the owners of rows have, where the table is split by rows: its cost does not depend on their number;
- a matrix product of what the owners compute of each row, where there are two;
- weighted with the product of all presences, where nobody knows which rows are joint: each owner takes its own into what
  it computes, and the others' are the other side of the product.
All are whole numbers, so that sums are exact whatever the order and the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, cast

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.compiler.lower.wholes import MOST_BITS, small_whole
from securemodel.data.column import Column
from securemodel.data.noise import Noise
from securemodel.data.query import Query
from securemodel.data.schema import Schema
from securemodel.data.whole import FEW_FRAC_BITS, in_two, together
from securemodel.training.datasets import Owned, Way

_CHUNK = 1 << 16
_EXACT = 2.0**53
_FEW_CODES = 32

Features = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(values [rows, columns] float64, valid [rows, columns] int64 of 0 and 1) -> whole numbers [rows, size], zero where not
valid. Plain torch, of one owner's columns: computed by it in the clear."""
Prepare = Callable[["Own"], np.ndarray]
"""All that an owner has of the columns -> values [rows, columns]: what a feature needs to know of all rows."""


class Rows(Protocol):
    """What statistics ask of a joint table."""

    @property
    def schema(self) -> Schema: ...
    @property
    def parties(self) -> tuple[str, ...]: ...
    @property
    def me(self) -> str | None: ...
    @property
    def rows(self) -> int: ...
    @property
    def hidden(self) -> bool: ...
    @property
    def weights(self) -> Mapping[str, Owned] | None: ...
    def parts(self, name: str) -> tuple[Owned, ...]: ...
    def missing(self, name: str) -> tuple[Owned, ...] | None: ...
    def ask(self, query: Query) -> dict[str, torch.Tensor | None]: ...


@dataclass(frozen=True)
class Own:
    """Columns at one owner: its rows of them. Everything but `party` and `rows` is for the owner's process."""

    party: str
    rows: int
    columns: tuple[Owned, ...]
    missing: tuple[Owned | None, ...]
    present: Owned | None

    @property
    def way(self) -> Way | None:
        """How these rows come into the order of the joint ones, where another party alone knows it."""
        return self.columns[0].way

    @cached_property
    def values(self) -> np.ndarray:
        """[rows, columns] float64; 0 where not valid."""
        return np.stack([column.tensor.numpy().astype(np.float64) for column in self.columns], 1)

    @cached_property
    def valid(self) -> np.ndarray:
        """[rows, columns], whether there is a value: neither missing nor a row that is not this party's."""
        made = np.repeat(self.there.reshape(-1, 1), len(self.columns), 1)
        for at, missing in enumerate(self.missing):
            if missing is not None:
                made[:, at] &= ~missing.tensor.numpy().astype(bool)
        return made

    @cached_property
    def there(self) -> np.ndarray:
        """[rows], which rows are this party's."""
        return (
            np.ones(self.rows, bool) if self.present is None else self.present.tensor.numpy().astype(bool).reshape(-1)
        )

    def alone(self, at: int) -> Own:
        """One of the columns."""
        return Own(self.party, self.rows, self.columns[at : at + 1], self.missing[at : at + 1], self.present)

    def column(self, at: int = 0) -> np.ndarray:
        """The values that there are of one column."""
        return self.values[self.valid[:, at], at]


def owners(joint: Rows, names: Sequence[str]) -> tuple[Own, ...]:
    """Who has these columns: one party, or with rows split, all. Raises InputError where several have different ones."""
    parts = [joint.parts(name) for name in names]
    missing = [joint.missing(name) for name in names]
    made = []
    for at in range(len(parts[0])):
        mine = tuple(column[at] for column in parts)
        if len({part.party for part in mine}) != 1:
            raise InputError(explain(f"the columns {', '.join(names)} are of several owners"))
        present = (joint.weights or {}).get(mine[0].party)
        made.append(
            Own(mine[0].party, mine[0].shape[0], mine, tuple(None if m is None else m[at] for m in missing), present)
        )
    return tuple(made)


def owner_of(joint: Rows, name: str) -> str | None:
    """The party that has all rows of a column; None where the rows are split."""
    parts = joint.parts(name)
    return parts[0].party if joint.schema.split == "columns" else None


def column_of(joint: Rows, name: str) -> Column:
    """What the schema says of a column. Raises InputError for one that it does not have."""
    if name not in joint.schema.columns:
        known = ", ".join(joint.schema.columns)
        raise InputError(explain(f"the schema has no column {name!r}", fix=f"name one of: {known}"))
    return joint.schema.columns[name]


def themselves(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Features that are values themselves: whole numbers, as they were prepared."""
    return values.to(torch.int64)


@dataclass(frozen=True)
class Side:
    """What the owner of columns computes of each row: whole numbers up to `most`, where that is known and small."""

    names: tuple[str, ...]
    size: int
    features: Features = themselves
    prepare: Prepare | None = None
    most: int = 0


Given = Mapping[str, torch.Tensor]
"""Arguments of a query's `finish`, by name."""
Total = Callable[[Given], torch.Tensor]
"""Takes a total out of these; a secret."""


@dataclass
class Sums:
    """Sums to be asked for together: `add` each, say with `tell` what is revealed of them, then make the `query`."""

    joint: Rows
    rows: dict[str, tuple[Owned, ...]] = field(default_factory=dict)
    once: dict[str, Owned] = field(default_factory=dict)
    results: dict[str, Total] = field(default_factory=dict)
    whole: bool = False
    row_elements: int = 0
    _totals: dict[str, Total] = field(default_factory=dict)
    _names: dict[tuple, str] = field(default_factory=dict)
    _owners: dict[tuple[str, ...], tuple[Own, ...]] = field(default_factory=dict)
    _features_of: dict[Side, Total] = field(default_factory=dict)
    _made: list[str] = field(default_factory=list)

    def add(self, left: Side, right: Side | None = None) -> Total:
        """The sum of left's features [left.size], or of all products of left's and right's [left.size, right.size]."""
        if self.alone(*(side.names for side in (left, right) if side)):
            return self._added_up(left, right)
        return self._total(self._of_rows(left, right))

    def histogram(self, side: Side) -> Total:
        """How often each code is there, [side.size]: the side's values are one column of codes, -1 for none."""
        if self.alone(side.names):
            return self._from_owners(side.names, (side.size,), partial(_own_histogram, side))
        if side.size <= _FEW_CODES:
            return self.add(replace(side, features=partial(one_hot, side.size), most=1))
        low = math.isqrt(side.size - 1) + 1
        high = -(-side.size // low)
        table = self.add(replace(side, size=high, features=partial(_digit, high, low, True), most=1),
                         replace(side, size=low, features=partial(_digit, low, low, False), most=1))  # fmt: skip
        return lambda given: table(given).reshape(-1)[: side.size]

    def largest(self, side: Side) -> Total:
        """The largest of each feature of all rows, [side.size], for features from 0 on; 0 where there are none."""
        if self.alone(side.names):
            names = [
                self.give(own.party, partial(_own_largest, side, own), (side.size,)) for own in self.owners(side.names)
            ]
            return lambda given: torch.stack([given[name] for name in names]).amax(0)
        self.whole = True
        features, factors = self._features(side), self._factors({self.owners(side.names)[0].party})
        return self._total(lambda rows: _product([features(rows), *factors(rows)]).amax(0))

    def give(self, party: str, numbers: Callable[[], torch.Tensor], shape: tuple[int, ...]) -> str:
        """Whole numbers that a party computes of its rows by itself; returns the name of the argument."""
        name = f"own_{len(self.once)}"
        self.once[name] = Owned(party, numbers, shape, torch.int64)
        return name

    def noise(self, noise: Noise, sensitivities: Sequence[float]) -> Total:
        """Noise of all parties for as many whole numbers, each of which one row may change by so much."""
        return self._added([(party, lambda: in_two(noise.draw(sensitivities))) for party in self.joint.parties],
                           (len(sensitivities),))  # fmt: skip

    def given(self, name: str) -> Total:
        """What a party computes by itself, by the name of the argument."""
        return partial(_taken, name)

    def once_made(self, make: Callable[[Given], Any]) -> Callable[[Given], Any]:
        """What several results read, made once."""
        name = f"made {len(self._made)}"
        self._made.append(name)

        def made(given: Given) -> Any:
            if name not in given:
                cast(dict, given)[name] = make(given)
            return given[name]

        return made

    def tell(self, name: str, result: Total) -> None:
        """Has something revealed."""
        self.results[name] = result

    def query(self, name: str, reveal: str | Mapping[str, str], frac_bits: int = FEW_FRAC_BITS) -> Query:
        """All that is to be told, as one query."""
        totals, results = dict(self._totals), dict(self.results)

        def sums(**rows: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: total(rows) for name, total in totals.items()}

        def finish(**given: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: result(given) for name, result in results.items()}

        return Query(
            name, sums=sums, finish=finish, reveal=reveal, rows=self.rows, once=self.once, whole=self.whole,
            frac_bits=frac_bits, row_elements=self.row_elements,
        )  # fmt: skip

    def alone(self, *names: tuple[str, ...]) -> bool:
        """Whether owners add these columns up by themselves."""
        first = [self.owners(some)[0] for some in names]
        parties = {own.party for own in first}
        known = not any(own.way for own in first)
        return self.joint.schema.split == "rows" or (known and len(parties) == 1 and not self._others(parties))

    def owners(self, names: tuple[str, ...]) -> tuple[Own, ...]:
        """`owners`, whose arrays are made once."""
        if names not in self._owners:
            self._owners[names] = owners(self.joint, names)
        return self._owners[names]

    def _total(self, of_rows: Total) -> Total:
        name = f"total_{len(self._totals)}"
        self._totals[name] = of_rows
        return partial(_taken, name)

    def _from_owners(
        self, names: tuple[str, ...], shape: tuple[int, ...], own_total: Callable[[Own], torch.Tensor]
    ) -> Total:
        """The sum of what the owners of rows compute."""
        return self._added([(own.party, partial(own_total, own)) for own in self.owners(names)], shape)

    def _added(self, given: Sequence[tuple[str, Callable[[], torch.Tensor]]], shape: tuple[int, ...]) -> Total:
        """The sum of what parties give: at least of two, as what one has alone would enter as one number too large."""
        if len(given) == 1:
            other = next(party for party in self.joint.parties if party != given[0][0])
            given = [*given, (other, partial(torch.zeros, *shape, 2, dtype=torch.int64))]
        return partial(_added, [self.give(party, total, (*shape, 2)) for party, total in given])

    def _added_up(self, left: Side, right: Side | None) -> Total:
        """Each owner of rows adds up its own."""
        if right is None:
            return self._from_owners(left.names, (left.size,), partial(_own_sum, left))
        pairs = zip(self.owners(left.names), self.owners(right.names), strict=True)
        given = [(own.party, partial(_own_products, left, right, own, other)) for own, other in pairs]
        return self._added(given, (left.size, right.size))

    def _of_rows(self, left: Side, right: Side | None) -> Total:
        """A product of what owners give for each row."""
        first = self._features(left)
        second = None if right is None else self._features(right)
        factors = self._factors({self.owners(side.names)[0].party for side in (left, right) if side})
        most = self.joint.rows * left.most * (1 if right is None else right.most)
        bits = most.bit_length() + 1

        def total(rows: Given) -> torch.Tensor:
            others = [*([second(rows)] if second else []), *factors(rows)]
            if not others:
                return first(rows).sum(0)
            made = first(rows).T @ _product(others)
            made = small_whole(made, bits) if most and bits <= MOST_BITS else made
            return made if second else made[:, 0]

        return total

    def _factors(self, parties: set[str]) -> Callable[[Given], list[torch.Tensor]]:
        """The presences of all parties but these, [rows, 1] each."""
        names = [self._row(("present", party), present) for party, present in self._others(parties).items()]
        return lambda rows: [rows[name].reshape(-1, 1).to(torch.int64) for name in names]

    def _features(self, side: Side) -> Total:
        """What the owner computes of each row; once for all sums that it is in."""
        if side in self._features_of:
            return self._features_of[side]
        (own,) = self.owners(side.names)
        self.row_elements += side.size
        if own.way:  # what comes in another order is secret there: its owner makes the features of it before
            made = own.columns[0].made(lambda: torch.cat(list(_chunks(own, side))), (side.size,), torch.int64)
            self._features_of[side] = partial(_taken, self._row(("features", side), made))
            return self._features_of[side]
        values = self._row(("values", side.names, side.prepare), _prepared(own, side))
        all_valid = own.present is None and all(missing is None for missing in own.missing)
        valid = None if all_valid else self._row(("valid", side.names), _valid(own, side.names))
        name = f"features {len(self._features_of)}"

        def features(rows: Given) -> torch.Tensor:
            if name not in rows:
                x = rows[values]
                there = torch.ones(x.shape[0], len(side.names), dtype=torch.int64) if valid is None else rows[valid]
                cast(dict, rows)[name] = side.features(x, there.to(torch.int64))
            return rows[name]

        self._features_of[side] = features
        return features

    def _others(self, parties: set[str]) -> dict[str, Owned]:
        """The presences, where nobody knows all of them, of other parties than these."""
        weights = (self.joint.weights or {}) if self.joint.hidden else {}
        return {party: present for party, present in weights.items() if party not in parties}

    def _row(self, key: tuple, owned: Owned) -> str:
        if key not in self._names:
            self._names[key] = f"rows_{len(self.rows)}"
            self.rows[self._names[key]] = (owned,)
        return self._names[key]


def one_hot(size: int, codes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Features of one column of codes: 1 at the code of a row, [rows, size]; nothing for a code that is none of them."""
    return (codes == torch.arange(size)).to(torch.int64)


def one_hots(sizes: Sequence[int], codes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The same of several columns of codes, side by side."""
    return torch.cat([one_hot(size, codes[:, at : at + 1], valid) for at, size in enumerate(sizes)], 1)


def _digit(size: int, low: int, upper: bool, codes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The upper or lower digit of codes, as `one_hot` has it: two short vectors in place of a long one."""
    digit = torch.where(codes < 0, -1, codes // low if upper else codes % low)
    return one_hot(size, digit, valid)


def _taken(name: str, given: Given) -> torch.Tensor:
    return given[name]


def _added(names: Sequence[str], given: Given) -> torch.Tensor:
    return together(torch.stack([given[name] for name in names]).sum(0))


def _own_histogram(side: Side, own: Own) -> torch.Tensor:
    codes = _prepared(own, side).tensor[:, 0].long()
    return in_two(torch.bincount(codes[(codes >= 0) & (codes < side.size)], minlength=side.size))


def _prepared(own: Own, side: Side) -> Owned:
    """The values of all rows, as the side wants them."""
    prepare = side.prepare or (lambda own: own.values)
    made = lambda: torch.from_numpy(np.ascontiguousarray(prepare(own), np.float64))
    return Owned(own.party, made, (own.rows, len(side.names)), torch.float64)


def _valid(own: Own, names: tuple[str, ...]) -> Owned:
    return Owned(own.party, lambda: torch.from_numpy(own.valid.astype(np.int8)), (own.rows, len(names)), torch.int8)


def _chunks(own: Own, side: Side) -> Iterator[torch.Tensor]:
    """The features of an owner's rows, some at a time."""
    values, valid = _prepared(own, side).tensor, torch.from_numpy(own.valid).long()
    for start in range(0, own.rows, _CHUNK):
        yield side.features(values[start : start + _CHUNK], valid[start : start + _CHUNK])


def _own_sum(side: Side, own: Own) -> torch.Tensor:
    return in_two(torch.stack([made.sum(0) for made in _chunks(own, side)]).sum(0))


def _own_products(left: Side, right: Side, own: Own, other: Own) -> torch.Tensor:
    pairs = zip(_chunks(own, left), _chunks(other, right), strict=True)
    return in_two(torch.stack([_exact_product(x, y) for x, y in pairs]).sum(0))


def _own_largest(side: Side, own: Own) -> torch.Tensor:
    return torch.stack([made.amax(0) for made in _chunks(own, side)]).amax(0)


def _product(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    made = factors[0]
    for factor in factors[1:]:
        made = made * factor
    return made


def _exact_product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x^T y of whole numbers, with float64 where that is exact, as it is fast."""
    most = float(x.abs().max()) * float(y.abs().max()) * x.shape[0]
    return (x.double().T @ y.double()).long() if most < _EXACT else x.T @ y
