"""A table of several parties as if it were one: its columns stay with their owners, and queries run under encryption.

What is public: the schema, which party has how many rows, the number of joint rows, and which of them a query reads. Ids
and values never leave their owner but as shares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch

from protocols.errors import InputError, Mismatch, explain
from protocols.psi.terms import ALL, COUNT, MOST_IDS, NOBODY, Terms
from securemodel.data.align import Aligned, TooFewRows
from securemodel.data.aligned_files import save
from securemodel.data.association import chi_square, population_stability
from securemodel.data.counting import group_by, histogram, value_counts
from securemodel.data.dividing import fold_parts, split_parts
from securemodel.data.evidence import information_value, woe
from securemodel.data.moments import correlation, covariance, vif
from securemodel.data.place import About, Place
from securemodel.data.query import CompiledQuery, Query, compile_query
from securemodel.data.schema import Column, Schema
from securemodel.data.splits import Fold
from securemodel.data.statistics import describe, quantiles
from securemodel.data.table import Table
from securemodel.engines.labels import QUERY
from securemodel.training.datasets import Owned, Positions, Way


@dataclass(frozen=True, repr=False)
class Joint:
    """Rows of a joint table; made by `securemodel.data.connecting`. A context manager: leaving it ends the connection.

    `counts`: how many rows each party's table has. `order`: for parties of this process, which row of its table each joint
    row is, -1 for none. `positions`: the joint rows that this view is about, of each part: a table that is split by columns
    has one part, one that is split by rows a part for each party.
    """

    schema: Schema
    parties: tuple[str, ...]
    place: Place
    tables: Mapping[str, Table]
    counts: Mapping[str, int]
    order: Mapping[str, np.ndarray]
    positions: Positions
    alignment: str = ""
    """What says that all parties mean the same rows, in hexadecimal; empty where rows belong together by their place."""
    presence: Mapping[str, np.ndarray] = field(default_factory=dict)
    """For parties of this process, whether they have each joint row, where some may not."""
    waiting: bool = False
    """Whether the rows are not aligned yet."""
    presence_of: tuple[str, ...] = ()
    """The parties whose rows may be none."""
    ways: Mapping[str, Way] = field(default_factory=dict)
    """How rows of parties are brought into the order of the one that alone learnt it."""
    held_out: bool = False
    """Whether these rows were split off for tests: nothing is fitted on them."""
    _made: dict[tuple[str, str, int], Owned] = field(default_factory=dict, compare=False)

    # ---- what is public
    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.positions))

    @property
    def by_rows(self) -> bool:
        """Whether the parties have other rows of the same columns; else they have other columns of the same rows."""
        return self.schema.split == "rows"

    @property
    def me(self) -> str | None:
        """The party of this process; None where all are in it."""
        return None if len(self.place.here) == len(self.parties) else self.place.here[0]

    def column(self, name: str) -> Column:
        """What the schema says of a column. Raises InputError for an unknown one."""
        if name not in self.schema.columns:
            known = ", ".join(self.schema.columns)
            raise InputError(explain(f"the schema has no column {name!r}", fix=f"it has {known}"))
        return self.schema.columns[name]

    def owner(self, name: str) -> str | None:
        """Who has a column; None where all have rows of it."""
        return self.column(name).owner

    @property
    def hidden(self) -> bool:
        """Whether some rows may lack a party, and not all know which: a row then counts as often as the product of `weights`."""
        return bool(self.presence_of)

    def is_mine(self, name: str) -> bool:
        """Whether this process has values of a column, or all of them where it is one party's."""
        owner = self.owner(name)
        return owner in self.place.here if owner else bool(self.place.here)

    # ---- rows
    def at(self, positions: Sequence[np.ndarray]) -> Joint:
        """The view on some of these rows: for each part their places here, each at most once, which are public.

        Raises InputError for other places.
        """
        if len(positions) != len(self.positions):
            many = f"{len(self.positions)} part{'' if len(self.positions) == 1 else 's'}"
            fix = "give a list with an array of places for each part: joint.at([np.arange(100)])"
            raise InputError(
                explain(f"places are given for {len(positions)} parts of the rows", why=f"there are {many}", fix=fix)
            )
        chosen = tuple(mine[_places(at, len(mine))] for mine, at in zip(self.positions, positions, strict=True))
        return replace(self, positions=chosen, _made={})

    def split(
        self,
        fraction: float,
        seed: int = 0,
        *,
        stratify: str | None = None,
        by: str | None = None,
        groups: str | None = None,
    ) -> tuple[Joint, Joint]:
        """Two views, the first with this fraction of the rows (of each party's, where rows are split), the second held out.

        By a public seed; or the owner of a column finds the rows and publishes them: `stratify` keeps the shares of a label's
        classes, `by` puts rows of small values first, `groups` keeps rows of one value together. Raises InputError.
        """
        self._check_aligned()
        return self._views(split_parts(self, fraction, seed, stratify, by, groups))

    def folds(
        self, count: int, seed: int = 0, *, stratify: str | None = None, groups: str | None = None
    ) -> list[tuple[Joint, Joint]]:
        """As many pairs of views; each row is held out in one of them. The arguments are those of `split`. Raises InputError."""
        self._check_aligned()
        return [self._views(fold) for fold in fold_parts(self, count, seed, stratify, groups)]

    def _views(self, folds: Sequence[Fold]) -> tuple[Joint, Joint]:
        train, test = self.at([train for train, _ in folds]), self.at([test for _, test in folds])
        return train, replace(test, held_out=True)

    def parts(self, name: str) -> tuple[Owned, ...]:
        """The values of a column, [rows] of each part: float64 of a number, int64 of the other kinds, 0 where missing.

        Where one party alone knows which rows belong together, those of others are in their own order and have a `way`;
        what owners make of them row by row is `part.made(...)`. Raises InputError before an alignment.
        """
        real = self.column(name).kind == "number"
        dtype = torch.float64 if real else torch.int64
        return self._parts(name, "values", dtype, lambda table: table.columns[name])

    def missing(self, name: str) -> tuple[Owned, ...] | None:
        """Where a column has no value: int64 of 0 and 1, [rows] of each part. None where the schema allows none."""
        if not self.column(name).missing:
            return None
        return self._parts(name, "missing", torch.int64, lambda table: table.missing[name])

    @property
    def weights(self) -> dict[str, Owned]:
        """By party, int64 of 0 and 1 [rows]: whether it has the row. Empty where all have all, so that none is `hidden`."""
        return {party: self._weight(party) for party in self.presence_of}

    def mine(self, name: str) -> np.ndarray:
        """A column's values at its owner, float64 or int64 [rows]. Raises InputError at the others."""
        return self._of_mine(self.parts(name), name)

    def mine_missing(self, name: str) -> np.ndarray:
        """Where a column has no value, at its owner: bool [rows]. Raises InputError at the others."""
        parts = self.missing(name)
        if parts is None:
            return np.zeros(len(self.mine(name)), bool)
        return self._of_mine(parts, name).astype(bool)

    def _of_mine(self, parts: tuple[Owned, ...], name: str) -> np.ndarray:
        found = [part.tensor.numpy() for part in parts if part.party in self.place.here]
        if not found:
            raise InputError(explain(f"column {name!r} is {parts[0].party!r}'s", fix="ask for it under encryption"))
        return np.concatenate(found)

    def _parts(
        self, name: str, what: str, dtype: torch.dtype, values: Callable[[Table], np.ndarray]
    ) -> tuple[Owned, ...]:
        self._check_aligned()
        owner = self.owner(name)
        owners = self.parties if owner is None else (owner,)
        return tuple(self._part(name, what, part, party, dtype, values) for part, party in enumerate(owners))

    def _part(
        self, name: str, what: str, part: int, party: str, dtype: torch.dtype, values: Callable[[Table], np.ndarray]
    ) -> Owned:
        """One part of a column, which is read where it is used, and once."""
        key, way = (name, what, part), self.ways.get(party)

        def read_now() -> torch.Tensor:
            rows = self.order[party] if way else self.order[party][self.positions[part]]
            found = values(self.tables[party])[rows]
            found[rows < 0] = 0  # a row that this party does not have
            return torch.from_numpy(found).to(dtype)

        if key not in self._made:
            rows, column = self.counts[party] if way else len(self.positions[part]), self.column(name)
            bounds = (min(column.low, 0.0), max(column.high, 0.0)) if what == "values" else (0.0, 1.0)
            self._made[key] = Owned(party, read_now, (rows,), dtype, self._way(way) if way else None, bounds)
        return self._made[key]

    def _way(self, way: Way) -> Way:
        """Of the rows of this view."""
        key = (way.positions.party, "way", id(way))
        if key not in self._made:
            (at,) = self.positions
            self._made[key] = Owned(way.positions.party, lambda: way.positions.rows(at), (len(at),), torch.int64)
        return replace(way, positions=self._made[key])

    def _weight(self, party: str) -> Owned:
        def values() -> torch.Tensor:
            return torch.from_numpy(self.presence[party][self.positions[0]].astype(np.int64))

        return Owned(party, values, (self.rows,), torch.int64, bounds=(0.0, 1.0))

    def _check_aligned(self) -> None:
        if self.waiting:
            what = "the rows are not aligned yet: whose row belongs to which is not known"
            raise InputError(explain(what, fix='joint = joint.align(learns=...): "all", "nobody" or a party'))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the schema, the alignment and which rows this is, the same at all parties, in hexadecimal."""
        places = [hashlib.sha256(at.astype("<i8").tobytes()).hexdigest() for at in self.positions]
        said = json.dumps([self.schema.digest, list(self.parties), self.alignment, places])
        return hashlib.sha256(said.encode()).hexdigest()

    # ---- alignment
    def align(
        self,
        learns: str,
        *,
        unmatched: str = "keep",
        largest: int = MOST_IDS,
        dealer: bool = False,
        out: str | Path | None = None,
    ) -> Joint:
        """The joint table of the rows whose ids belong together; this one is left as it is.

        learns, which has no default, as that somebody is in a file is personal data: "all" parties learn which of their ids
        are common, and these are the joint rows; "nobody": the joint rows are those of all ids of all parties, and their
        `weights` say in secret which are common; the name of a party: it alone learns. unmatched, where one party learns:
        "keep": all its rows are joint rows, with secret weights; "drop": those that all have. largest: no party may bring
        more rows. dealer: by numbers of the dealer's, many times as fast, where two parties align and all or one of them
        learn; that the dealer works together with neither of them is then trusted for the ids, too. out: a folder for what
        `connect(aligned=)` reads later. Every party makes the same call. Raises InputError, TooFewRows, Mismatch, PeerError,
        FileError; warns where a set has changed since an earlier alignment.
        """
        self._check_keys()
        if self.by_rows:
            what = "the parties have other rows of the same columns: there is nothing to align"
            raise InputError(explain(what, fix="count_common() says how many ids they have in common"))
        if learns == COUNT:
            raise InputError(explain("an alignment that only counts gives no rows", fix="call count_common()"))
        found = self._found(Terms(learns, self.schema.digest, largest, unmatched, dealer))
        for aligned in found.values() if out is not None else ():
            save(aligned, cast(Path, out))
        return self._aligned(found)

    def count_common(self, *, largest: int = MOST_IDS) -> int:
        """How many ids all parties have, and nothing else; all learn it. Raises as `align` does."""
        self._check_keys()
        found = self._found(Terms(COUNT, self.schema.digest, largest))
        return cast(int, next(iter(found.values())).common)

    def _check_keys(self) -> None:
        if not self.schema.keys:
            what = "the schema names no keys, so rows have no ids to align by"
            raise InputError(explain(what, fix='name the columns of the id: keys = ["email"] under [table]'))

    def _found(self, terms: Terms) -> dict[str, Aligned]:
        ids = {name: cast(tuple[bytes, ...], table.ids) for name, table in self.tables.items()}
        tables = {name: table.digest for name, table in self.tables.items()}
        return self.place.aligned(ids, terms, self.schema.minimum, tables)

    def _aligned(self, found: Mapping[str, Aligned]) -> Joint:
        some = next(iter(found.values()))
        learns, every = some.terms.learns, np.arange(some.rows)
        made = replace(self, positions=(every,), alignment=some.id, waiting=False, _made={})
        if learns in (ALL, NOBODY):
            order = {name: cast(np.ndarray, aligned.positions) for name, aligned in found.items()}
            presence = {name: cast(np.ndarray, each.presence) for name, each in found.items() if some.hidden}
            return replace(made, order=order, presence=presence, presence_of=self.parties if some.hidden else ())
        order = {
            name: cast(np.ndarray, aligned.positions if name == learns else aligned.outcome.order)
            for name, aligned in found.items()
        }
        presence = {learns: cast(np.ndarray, found[learns].presence)} if some.hidden and learns in found else {}
        ways = {name: _way(learns, found, name, some) for name in self.parties if name != learns}
        return replace(made, order=order, presence=presence, presence_of=(learns,) if some.hidden else (), ways=ways)

    # ---- queries
    def compiled(self, query: Query) -> CompiledQuery:
        """The programs of a query; `plan()` of it says what it costs and reveals. Raises UnsupportedOperator, InputError."""
        return compile_query(query, self.parties)

    def ask(self, query: Query | CompiledQuery) -> dict[str, torch.Tensor | None]:
        """The answer of a query by name; None for what nobody in this process may learn. Every party asks the same.

        Raises TooFewRows where these rows are fewer than the schema's minimum; Mismatch where a peer asks something else or
        about other rows; PeerError. Any error after the first message ends the connection.
        """
        self._check_aligned()
        self._check_minimum()
        compiled = self.compiled(query) if isinstance(query, Query) else query
        said = json.dumps([compiled.query.name, self.digest, [p.program.digest for p in compiled.pieces]])
        mine = hashlib.sha256(said.encode()).digest()
        sizes = dict.fromkeys(self.parties, 32)
        for got in self.place.swap(QUERY, dict.fromkeys(self.place.here, mine), sizes).values():
            for peer, theirs in got.items():
                if theirs != mine:
                    error = Mismatch(peer, explain(
                        f"party {peer!r} asks something else than {compiled.query.name!r}, or about other rows",
                        why="its schema, alignment, split or the arguments of the call are others",
                        fix="make the same calls in the same order at every party",
                    ))  # fmt: skip
                    self.place.fail(error)
                    raise error
        try:
            return self.place.ask(compiled, About(self.rows, self.digest))
        except BaseException as error:  # also an interrupt: the peers must not be left waiting
            self.place.fail(error)
            raise

    def _check_minimum(self) -> None:
        """Of two parties each could take its own rows out of a result: then what is left is of the other's alone."""
        fewest = min([self.rows, *(len(at) for at in self.positions if len(at) and len(self.positions) == 2)])
        if fewest < self.schema.minimum:
            why = f"the schema's minimum is {self.schema.minimum}"
            fix = "ask about more rows; or agree on another minimum in the schema, at all parties"
            whose = "of a party " if fewest < self.rows else ""
            raise TooFewRows(explain(f"a question about {fewest} rows {whose}is not answered", why=why, fix=fix))

    # ---- statistics
    describe, quantiles = describe, quantiles
    value_counts, histogram, group_by = value_counts, histogram, group_by
    correlation, covariance, vif = correlation, covariance, vif
    woe, information_value, chi_square, population_stability = woe, information_value, chi_square, population_stability

    def close(self) -> None:
        """Ends the connection. Harmless when it has ended."""
        self.place.close()

    def __enter__(self):
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.place.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"Joint({self.rows} rows, {len(self.schema.columns)} columns of {', '.join(self.parties)})"


def _places(given: np.ndarray, count: int) -> np.ndarray:
    """Places as numbers. Raises InputError unless they are different ones of so many, or a mask of them."""
    at = np.asarray(given)
    if at.dtype == bool and at.shape == (count,):
        return np.flatnonzero(at)
    right = at.ndim == 1 and (at.dtype.kind in "iu" or not at.size)
    at = at.astype(np.int64) if right else at
    if not right or (at.size and (at.min() < 0 or at.max() >= count)) or len(np.unique(at)) < len(at):
        why = "a row that counted twice would weigh twice, and hide how few rows there are"
        raise InputError(explain(f"places of rows are different whole numbers from 0 to {count - 1}", why=why,
                                 fix="give int64[n], or a mask of all rows"))  # fmt: skip
    return at


def _way(learns: str, found: Mapping[str, Aligned], party: str, some: Aligned) -> Way:
    """How rows of a party are brought into the order of the one that learns."""

    def links() -> torch.Tensor:
        return torch.from_numpy(found[learns].outcome.links[party])

    return Way(Owned(learns, links, (some.rows,), torch.int64), some.hidden)
