"""A joint table in one process, of arrays: what fits and transforms need of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from securemodel.data.place import here
from securemodel.data.query import Query, compile_query
from securemodel.data.schema import Schema
from securemodel.training.datasets import Owned, owned

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class StandIn:
    """`tables`: of each party its columns, float64[rows] with NaN where missing."""

    schema: Schema
    tables: Mapping[str, Values]
    me: str | None = None
    held_out: bool = False
    hidden: bool = False
    weights: Mapping[str, Owned] | None = None
    asked: list[Query] = field(default_factory=list)

    @property
    def parties(self) -> tuple[str, ...]:
        return tuple(self.tables)

    @property
    def rows(self) -> int:
        counts = [len(next(iter(values.values()))) for values in self.tables.values()]
        return sum(counts) if self.schema.split == "rows" else counts[0]

    def _owners(self, name: str) -> tuple[str, ...]:
        owner = self.schema.columns[name].owner
        return self.parties if owner is None else (owner,)

    def parts(self, name: str) -> tuple[Owned, ...]:
        kind = torch.float64 if self.schema.columns[name].kind == "number" else torch.int64
        return tuple(
            self._owned(party, torch.from_numpy(np.nan_to_num(self.tables[party][name])).to(kind))
            for party in self._owners(name)
        )

    def missing(self, name: str) -> tuple[Owned, ...] | None:
        if not self.schema.columns[name].missing:
            return None
        return tuple(
            self._owned(party, torch.from_numpy(np.isnan(self.tables[party][name])).float())
            for party in self._owners(name)
        )

    def _owned(self, party: str, values: torch.Tensor) -> Owned:
        """At other parties nobody can read it."""
        if self.me not in (None, party):
            return owned(party, lambda: pytest_fails(party), shape=values.shape, dtype=values.dtype)
        return owned(party, values)

    def ask(self, query: Query):
        self.asked.append(query)
        return here(self.parties).ask(compile_query(query, self.parties))

    def at(self, places: np.ndarray, **changes) -> "StandIn":
        """Some of the rows."""
        taken = {party: {name: v[places] for name, v in values.items()} for party, values in self.tables.items()}
        return replace(self, tables=taken, **changes)


def pytest_fails(party: str):
    raise AssertionError(f"rows of {party} are read elsewhere")
