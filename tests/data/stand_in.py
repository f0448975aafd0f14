"""A joint table in this process, as statistics ask it: queries run as programs of all parties, or in the clear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from securemodel.data.place import Here
from securemodel.data.query import Query, QueryPlan, compile_query
from securemodel.data.schema import Column, Schema
from securemodel.training.datasets import Owned

WAYS = ("known", "rows", "hidden")
"""Columns of owners who know all rows; rows of owners; columns of owners, none of whom knows the others' rows."""


@dataclass
class Table:
    """Columns in parts by owner; NaN is missing. `present`: 0 and 1 by party where nobody knows which rows are joint."""

    schema: Schema
    data: Mapping[str, list[tuple[str, np.ndarray]]]
    parties: tuple[str, ...]
    present: Mapping[str, np.ndarray] | None = None
    clear: bool = True
    me: str | None = None
    queries: list[Query] = field(default_factory=list)
    plans: list[QueryPlan] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(len(x) for _, x in next(iter(self.data.values())))

    @property
    def hidden(self) -> bool:
        return self.present is not None

    @property
    def weights(self) -> dict[str, Owned] | None:
        if self.present is None:
            return None
        made = {party: torch.from_numpy(np.asarray(x, np.int64)) for party, x in self.present.items()}
        return {party: Owned(party, x, tuple(x.shape), x.dtype) for party, x in made.items()}

    def parts(self, name: str) -> tuple[Owned, ...]:
        kind = np.float64 if self.schema.columns[name].kind == "number" else np.int64
        made = [(party, torch.from_numpy(np.nan_to_num(x).astype(kind))) for party, x in self.data[name]]
        return tuple(Owned(party, x, tuple(x.shape), x.dtype) for party, x in made)

    def missing(self, name: str) -> tuple[Owned, ...] | None:
        if not self.schema.columns[name].missing:
            return None
        return tuple(Owned(party, torch.from_numpy(np.isnan(x)), x.shape, torch.bool) for party, x in self.data[name])

    def ask(self, query: Query) -> dict[str, torch.Tensor | None]:
        self.queries.append(query)
        if not self.clear:
            compiled = compile_query(query, self.parties)
            self.plans.append(compiled.plan())
            return Here(self.parties).ask(compiled)
        rows = {name: torch.cat([part.tensor for part in parts]) for name, parts in query.rows.items()}
        once = {name: owned.tensor for name, owned in query.once.items()}
        return dict(query.finish(**query.sums(**rows), **once))


def number(name: str, owner: str | None = "bank", low: float = -10.0, high: float = 10.0, **rest) -> Column:
    return Column(name, owner, "number", low, high, **rest)


def integer(name: str, owner: str | None = "bank", low: int = 0, high: int = 100, **rest) -> Column:
    return Column(name, owner, "integer", low, high, **rest)


def boolean(name: str, owner: str | None = "bank", **rest) -> Column:
    return Column(name, owner, "boolean", 0, 1, **rest)


def category(name: str, values: Sequence[str], owner: str | None = "bank", **rest) -> Column:
    return Column(name, owner, "category", 0, len(values) - 1, values=tuple(values), **rest)


def table(
    columns: Sequence[Column],
    frame: pd.DataFrame,
    way: str = "known",
    seed: int = 0,
    minimum: int = 1,
    clear: bool = True,
    parties: Sequence[str] = ("bank", "shop"),
) -> tuple[Table, pd.DataFrame]:
    """A table of these columns and rows, and the rows that count. Absent rows are drawn, and have other numbers."""
    random = np.random.default_rng(seed)
    schema = Schema(
        {column.name: column for column in columns}, split="rows" if way == "rows" else "columns", minimum=minimum
    )
    data = {name: frame[name].to_numpy(np.float64) for name in schema.columns}
    if way == "rows":
        cuts = [0, *sorted(random.integers(1, len(frame), len(parties) - 1).tolist()), len(frame)]
        cuts = [max(cut, at) for at, cut in enumerate(cuts)]
        split = {
            name: [(p, x[a:b]) for p, a, b in zip(parties, cuts, cuts[1:], strict=False)] for name, x in data.items()
        }
        return Table(schema, split, tuple(parties), clear=clear), frame
    owners = {name: column.owner for name, column in schema.columns.items()}
    if way == "known":
        return Table(schema, {n: [(owners[n], x)] for n, x in data.items()}, tuple(parties), clear=clear), frame
    present = {party: random.random(len(frame)) < 0.8 for party in parties}
    for mine in present.values():
        mine[:2] = True
    made = {n: [(owners[n], np.where(present[owners[n]], x, 0.0))] for n, x in data.items()}
    there = np.all(list(present.values()), axis=0)
    return Table(schema, made, tuple(parties), present, clear), frame[there]
