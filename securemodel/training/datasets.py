"""Data of several parties: who owns which columns and rows, and in which order steps read them.

Positions are public and follow from a seed that all parties have, so nothing is sent to agree on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.compiler.positions import order, order_of_epoch

Source = torch.Tensor | Callable[[], torch.Tensor] | None
Positions = tuple[np.ndarray, ...]
"""For each part of the rows, which of them."""


@dataclass(frozen=True, repr=False)
class Way:
    """How rows of one party are brought into the order of another, which alone knows it (`securemodel.permute`).

    positions: int64 [rows] of that other party, the row at each place. missing: whether -1 stands for a row of zeros.
    """

    positions: Owned
    missing: bool


@dataclass(frozen=True, repr=False)
class Owned:
    """A tensor of one party. `source` is the tensor, or a function that gives it and is called by its owner alone.

    `shape` is public, [rows, ...], and so are `dtype`, and `bounds`, which no value is beyond, where they are known. `way`:
    how its rows are brought into the order of others', for queries to joint tables; None where they are in that order.
    """

    party: str
    source: Source
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    way: Way | None = None
    bounds: tuple[float, float] | None = None

    @cached_property
    def tensor(self) -> torch.Tensor:
        """The data; for the owner's process. Raises InputError for another shape or type than was said."""
        made = self.source() if callable(self.source) else self.source
        if not isinstance(made, torch.Tensor):
            raise InputError(
                explain(f"party {self.party!r} gave no tensor", why=f"its source is a {type(made).__name__}",
                        fix="give a tensor, or a function that returns one")
            )  # fmt: skip
        if tuple(made.shape) != self.shape or made.dtype != self.dtype:
            found = f"{made.dtype} {list(made.shape)}"
            raise InputError(
                explain(
                    f"the data of party {self.party!r} are not what was said", why=f"{found} in place of "
                    f"{self.dtype} {list(self.shape)}", fix="say the right shape and dtype in owned(), at every party",
                )
            )  # fmt: skip
        return made

    def made(
        self, source: Source, shape: Sequence[int], dtype: torch.dtype, bounds: tuple[float, float] | None = None
    ) -> Owned:
        """What its owner makes of it row by row: a tensor [rows, *shape], within these bounds."""
        return replace(self, source=source, shape=(self.shape[0], *shape), dtype=dtype, bounds=bounds)

    def rows(self, places: np.ndarray) -> torch.Tensor:
        """Some of the rows. Raises InputError."""
        return self.tensor[torch.from_numpy(places)]


def owned(
    party: str, source: Source = None, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> Owned:
    """Data of one party: a tensor, or a function that only the owner's process calls; `shape` is [rows, ...].

    Shape and type may be left out where the tensor itself is given. Raises InputError.
    """
    if isinstance(source, torch.Tensor):
        shape, dtype = shape or source.shape, dtype or source.dtype
    elif source is not None and not callable(source):
        fix = "give a tensor (torch.from_numpy of an array), or a function that returns one"
        raise InputError(explain(f"owned({party!r}) is given a {type(source).__name__}", fix=fix))
    if not shape or any(size < 1 for size in shape):
        raise InputError(
            explain(f"owned({party!r}) needs a shape with rows", fix="give shape=(rows, ...): every party must know it")
        )
    return Owned(party, source, tuple(int(size) for size in shape), dtype or torch.float32)


def rows(**parts: Owned) -> tuple[Owned, ...]:
    """Rows of several parties, one below the other: `rows(a=owned(...), b=owned(...))`. Raises InputError."""
    made = tuple(parts.values())
    if not made or len({(part.shape[1:], part.dtype) for part in made}) != 1:
        raise InputError(explain("rows() wants parts that differ in their number of rows alone"))
    return made


@dataclass(frozen=True, repr=False)
class Dataset:
    """Columns by name. Each has parts with the rows of one party after the other; all columns have parts of as many rows."""

    columns: Mapping[str, tuple[Owned, ...]]
    positions: Positions

    def __len__(self) -> int:
        return sum(map(len, self.positions))

    def split(self, fraction: float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Two data sets, the first with this fraction of each party's rows, chosen by a public seed. Raises InputError."""
        shuffled = [at[order(len(at), seed, 0, part)] for part, at in enumerate(self.positions)]
        cuts = [round(fraction * len(at)) for at in shuffled]
        if any(not 0 < cut < len(at) for cut, at in zip(cuts, shuffled, strict=True)):
            raise InputError(explain(f"split({fraction}) leaves no rows on one side", fix="give a fraction in between"))
        first = tuple(np.sort(at[:cut]) for at, cut in zip(shuffled, cuts, strict=True))
        second = tuple(np.sort(at[cut:]) for at, cut in zip(shuffled, cuts, strict=True))
        return replace(self, positions=first), replace(self, positions=second)

    def batches(self, size: int, seed: int = 0, shuffle: bool = True, resident: bool | None = None) -> Batches:
        """Batches of `size` rows; in each epoch in another order, that of a public seed. Rows left over wait an epoch.

        Of rows of several parties each batch has the same share. Warns where that leaves more rows out of an epoch than
        the last batch of so many rows would lack, or always the same. `resident`: the owners share all rows once, before the
        first step, and every party keeps them masked (8 bytes a number); False: each step shares the rows that it reads,
        and takes batches of your own; by default, once unless they take more than a GiB. Raises InputError.
        """
        made = Batches(self, self.shares(size), int(seed), bool(shuffle), resident)
        if made.left_out and (made.steps_per_epoch < len(self) // size or not shuffle):
            warnings.warn(made.what_is_left_out(), stacklevel=2)
        return made

    def blocks(self, size: int, resident: bool | None = None) -> Iterator[Batches]:
        """All rows in order, in batches of `size` rows, then those left over: at most two groups of batches."""
        full = Batches(self, self.shares(min(len(self), size)), 0, False, resident)
        ends = [full.steps_per_epoch * part for part in full.sizes]
        left = [len(at) - end for at, end in zip(self.positions, ends, strict=True)]
        if any(left) and not all(left):  # a batch has rows of every party: the last full one waits for the rest
            ends = [end - part for end, part in zip(ends, full.sizes, strict=True)]
        if any(ends):
            first = tuple(at[:end] for at, end in zip(self.positions, ends, strict=True))
            yield replace(full, data=replace(self, positions=first))
        rest = tuple(at[end:] for at, end in zip(self.positions, ends, strict=True))
        if any(map(len, rest)):
            yield Batches(replace(self, positions=rest), tuple(map(len, rest)), 0, False, resident)

    def shares(self, size: int) -> tuple[int, ...]:
        """How many rows of each part are in a batch of `size` rows. Raises InputError."""
        if not isinstance(size, int):
            raise InputError(explain(f"no batches of {size!r} rows", fix="give a whole number"))
        counts, total = [len(at) for at in self.positions], len(self)
        sizes = [size * count // total for count in counts]
        by_rest = sorted(range(len(sizes)), key=lambda part: -(size * counts[part] % total))
        for part in by_rest[: size - sum(sizes)]:
            sizes[part] += 1
        if not 0 < size <= total or 0 in sizes:
            raise InputError(
                explain(f"no batches of {size} rows", why=f"there are {counts} of each party",
                        fix="give a size that leaves at least one row of each party in a batch")
            )  # fmt: skip
        return tuple(sizes)


def dataset(**columns: Owned | tuple[Owned, ...]) -> Dataset:
    """A data set by columns: each `owned(...)`, or `rows(...)` of several parties. Raises InputError."""
    for name, column in columns.items():
        if not all(isinstance(part, Owned) for part in (column if isinstance(column, tuple) else (column,))):
            what = f"the column {name!r} is a {type(column).__name__} that nobody owns"
            raise InputError(explain(what, fix='give owned("bank", tensor), or rows(...) of these'))
    parts = {name: (column,) if isinstance(column, Owned) else tuple(column) for name, column in columns.items()}
    counts = {name: [part.shape[0] for part in column] for name, column in parts.items()}
    if not parts or len({tuple(count) for count in counts.values()}) != 1:
        raise InputError(
            explain("the columns of a data set have different rows", why=f"{counts}",
                    fix="give columns of as many rows, in the same order; of rows(), the same parts in each column")
        )  # fmt: skip
    (first, *_) = counts.values()
    return Dataset(parts, tuple(np.arange(count) for count in first))


def _said(counts: Sequence[int]) -> str:
    *first, last = map(str, counts)
    return f"{', '.join(first)} and {last}" if first else last


@dataclass(frozen=True, repr=False)
class Batches:
    """The batches of a data set, step after step: `sizes` rows of each part."""

    data: Dataset
    sizes: tuple[int, ...]
    seed: int
    shuffle: bool
    resident: bool | None = None
    _orders: dict[int, Positions] = field(default_factory=dict, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that each epoch has."""
        return min(len(at) // size for at, size in zip(self.data.positions, self.sizes, strict=True))

    @property
    def left_out(self) -> int:
        """Rows that an epoch does not read. In the order of a seed they are others in each epoch."""
        return len(self.data) - self.steps_per_epoch * sum(self.sizes)

    def what_is_left_out(self) -> str:
        """Says how many rows these are, why, and which sizes near this one leave fewest out."""
        size, total, counts = sum(self.sizes), len(self.data), [len(at) for at in self.data.positions]
        why = f"a batch has {_said(self.sizes)} of the parties' {_said(counts)} rows, which is enough for {self.steps_per_epoch}"
        if len(counts) == 1:
            why = f"{total} rows are no multiple of {size}"
        if not self.shuffle:
            why += "; with shuffle=False they are the same in each epoch"
        near = [self._of(other) for other in range(max(len(counts), size // 2), min(2 * size, total) + 1)]
        best = [min(some, key=lambda b: (b.left_out, abs(sum(b.sizes) - size)))
                for some in ([b for b in near if b and sum(b.sizes) < size], [b for b in near if b and sum(b.sizes) > size])
                if some]  # fmt: skip
        said = " or ".join(f"{sum(b.sizes)} ({b.left_out} left out)" for b in best if b.left_out < self.left_out)
        fix = f"give batches of {said}" if said else "give other sizes, or leave some rows away"
        return explain(
            f"batches of {size} rows leave {self.left_out} of {total} rows out of each epoch", why=why, fix=fix
        )

    def _of(self, size: int) -> Batches | None:
        try:
            return replace(self, sizes=self.data.shares(size))
        except InputError:
            return None

    def parts(self) -> Iterator[tuple[str, int, Owned]]:
        """(column, part, whose) in the order in which the inputs of a program are."""
        for name, column in self.data.columns.items():
            for part, piece in enumerate(column):
                yield name, part, piece

    def owners(self) -> list[str]:
        """The owner of each input."""
        return [piece.party for _, _, piece in self.parts()]

    def examples(self) -> list[torch.Tensor]:
        """Inputs of the right shapes, with no data in them."""
        return [torch.zeros(self.sizes[part], *piece.shape[1:], dtype=piece.dtype) for _, part, piece in self.parts()]

    def positions(self, step: int) -> Positions:
        """The rows of each part that a step reads; steps count from 0. Public."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders.clear()
            mine = [
                places[order_of_epoch(len(places), self.seed, self.shuffle, epoch, part)]
                for part, places in enumerate(self.data.positions)
            ]
            self._orders[epoch] = tuple(mine)
        return tuple(
            order[at * size : (at + 1) * size] for order, size in zip(self._orders[epoch], self.sizes, strict=True)
        )

    def inputs(self, step: int, mine: Callable[[str], bool]) -> list[torch.Tensor | None]:
        """The tensors of a step; None for what others own."""
        return self._at(self.positions(step), mine)

    def whole(self, step: int) -> list[torch.Tensor]:
        """The same with the tensors of all, where this process has them. Raises InputError."""
        places = self.positions(step)
        return [piece.rows(places[part]) for _, part, piece in self.parts()]

    def in_turn(self) -> Iterator[Positions]:
        """Places of all rows in batches of one size; those of a part that has fewer batches go on beyond its last row."""
        counts = [len(at) for at in self.data.positions]
        for n in range(max(-(-count // size) for count, size in zip(counts, self.sizes, strict=True))):
            yield tuple(np.arange(n * size, (n + 1) * size) for size in self.sizes)

    def rows_at(self, places: Positions, me: str) -> list[torch.Tensor | None]:
        """The same of these rows of each part, counted in the data set; None for what is not of this party.

        Beyond the last row of a part, they begin again.
        """
        at = tuple(of[place % len(of)] for of, place in zip(self.data.positions, places, strict=True))
        return self._at(at, lambda name: name == me)

    def _at(self, places: Positions, mine: Callable[[str], bool]) -> list[torch.Tensor | None]:
        return [piece.rows(places[part]) if mine(piece.party) else None for _, part, piece in self.parts()]

    def flat(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A user's step as a function of the inputs of a program: of the parts of all columns."""
        if all(len(column) == 1 for column in self.data.columns.values()):
            return step

        def joined(*parts: torch.Tensor) -> Any:
            return step(*self.joined(parts).values())

        joined.__name__ = getattr(step, "__name__", "step")
        return joined

    def joined(self, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The arguments of a user's step from the inputs of a program: the parts of each column, one below the other."""
        columns: dict[str, list[torch.Tensor]] = {}
        for (name, _, _), tensor in zip(self.parts(), inputs, strict=True):
            columns.setdefault(name, []).append(tensor)
        return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in columns.items()}
