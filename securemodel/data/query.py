"""What is asked of a joint table: sums over rows, and what is revealed of them; compiled into programs.

A statistic of many rows is a function of a few sums, and sums of blocks of rows add up. So a query has two functions: one
makes totals of rows, one makes results of totals. Where all rows fit, both are one program. Else a program adds up one
block of rows after the other, its totals stay shares that nobody sees, and another program makes the results of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from protocols.errors import explain
from protocols.names import EVERYBODY, PUBLIC
from securemodel.compiler.ir import Rounding
from securemodel.compiler.lower.orders import permute
from securemodel.compiler.report import Suspect
from securemodel.errors import CompileError, InputError, RangeWarning
from securemodel.inspect.magnitudes import magnitudes
from securemodel.planning.costs import Network
from securemodel.planning.plan import make_plan
from securemodel.planning.units import bytes_text, seconds_text
from securemodel.shown import Shown
from securemodel.training.capture import capture_step
from securemodel.training.compiling import Terms, TrainingProgram
from securemodel.training.datasets import Batches, Dataset, Owned
from securemodel.training.steps import CapturedStep

Tensors = Mapping[str, torch.Tensor]
_BLOCK_ELEMENTS = 1 << 21  # of all inputs of a block: 16 MB of masked numbers at each party
_MOST_ROWS = 1 << 17
_TOTALS = "totals"
_ANY = 2.0**200  # of what no rule knows anything


@dataclass(frozen=True, repr=False)
class Query:
    """A question to a joint table, by `name`, as the plan, the ledger and errors call it.

    `rows`: by argument name, tensors [rows, ...] in parts by owner, all with as many rows in each part. `once`: tensors of
    one owner that are about no row. Owners compute both in the clear. `sums(**rows)` gives totals by name, which add up
    over blocks of rows; `finish(**totals, **once)` what is revealed, by name. Both are plain torch functions. `beside`:
    tensors of one owner, or public ones, that are about no row and that `sums` takes, such as the weights of a model.
    `reveal`: who learns each result, a party or "all". `whole`: `sums` needs all rows at once, for instance to sort them.
    `row_elements`: how many numbers of a row are shared, where owners make more of it than it has. Without rows, `sums` is
    not called. The other fields are those of `securemodel.compile`.
    """

    name: str
    finish: Callable[..., Tensors]
    reveal: str | Mapping[str, str] = EVERYBODY
    rows: Mapping[str, tuple[Owned, ...]] = field(default_factory=dict)
    once: Mapping[str, Owned] = field(default_factory=dict)
    sums: Callable[..., Tensors] = dict
    whole: bool = False
    row_elements: int = 0
    frac_bits: int = 16
    width: int = 64
    rounding: Rounding = "exact"
    beside: Mapping[str, Owned] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Piece:
    """A program of a query, the rows that its runs read (None: it reads none), and whose its other inputs are."""

    program: TrainingProgram
    batches: Batches | None
    once: tuple[Owned, ...] = ()

    @property
    def runs(self) -> int:
        """How often it runs."""
        return self.batches.steps_per_epoch if self.batches else 1

    def inputs(self, run: int, mine: Callable[[str], bool]) -> list[torch.Tensor | None]:
        """What the parties here give to a run."""
        rows = self.batches.inputs(run, mine) if self.batches else []
        known = (owned.party == PUBLIC or mine(owned.party) for owned in self.once)
        return [*rows, *(owned.tensor if here else None for owned, here in zip(self.once, known, strict=True))]


@dataclass(frozen=True, repr=False)
class CompiledQuery:
    """The programs of a query, in the order in which they run. What the last one returns is the answer."""

    query: Query
    pieces: tuple[Piece, ...]

    @property
    def reveals(self) -> dict[str, str]:
        """Who learns which result."""
        program = self.pieces[-1].program
        return dict(zip(program.result_names, program.header.outputs, strict=True))

    def plan(self, network: str | Network = "lan") -> QueryPlan:
        """What the query costs, and what it reveals."""
        return QueryPlan(self.query.name, [(make_plan(p.program, network), p.runs) for p in self.pieces], self.reveals)


@dataclass(frozen=True, repr=False)
class QueryPlan(Shown):
    """Rounds, bytes and predicted seconds of a query, and what it reveals to whom. `parts`: plans, and how often each runs."""

    name: str
    parts: list[tuple[Any, int]]
    reveals: Mapping[str, str]

    @property
    def rounds(self) -> int:
        return sum(runs * plan.rounds + plan.load.rounds for plan, runs in self.parts)

    @property
    def sent_bytes(self) -> dict[str, int]:
        """By each party; exact."""
        parties = self.parts[0][0].sent_bytes
        return {
            me: sum(runs * plan.sent_bytes[me] + plan.load.sent_bytes.get(me, 0) for plan, runs in self.parts)
            for me in parties
        }

    @property
    def dealt_bytes(self) -> int:
        """By the dealer; exact."""
        return sum(runs * plan.preprocessing_bytes for plan, runs in self.parts)

    @property
    def seconds(self) -> float:
        """Predicted, without compilation."""
        return sum(runs * max(plan.seconds, plan.preparing_seconds) for plan, runs in self.parts)

    def __str__(self) -> str:
        sent = ", ".join(f"{name} {bytes_text(count)}" for name, count in self.sent_bytes.items())
        to: dict[str, list[str]] = {}
        for name, receiver in self.reveals.items():
            to.setdefault(receiver, []).append(name)
        told = "; ".join(f"{', '.join(names)} to {receiver}" for receiver, names in to.items())
        return (
            f"{self.name}: {self.rounds} rounds, about {seconds_text(self.seconds)}, sends {sent}, "
            f"dealt {bytes_text(self.dealt_bytes)}; reveals {told or 'nothing'}"
        )


def compile_query(query: Query, parties: tuple[str, ...]) -> CompiledQuery:
    """The programs of a query. Raises UnsupportedOperator, CompileError, InputError.

    Gives a RangeWarning where values of columns whose bounds are known are not shown to fit numbers of `frac_bits`.
    """
    compiled = _compiled(query, parties)
    for piece in compiled.pieces:
        if suspects := _too_large(piece):
            warnings.warn(RangeWarning(_said_of_ranges(query, suspects)), stacklevel=4)
            break
    return compiled


def _compiled(query: Query, parties: tuple[str, ...]) -> CompiledQuery:
    query = _in_one_order(_of_rows(query))
    terms = Terms(parties, frac_bits=query.frac_bits, width=query.width, rounding=query.rounding)
    once = tuple(query.once.values())
    if not query.rows:
        finish = _named(query, lambda *given: query.finish(**dict(zip(query.once, given, strict=True))))
        return CompiledQuery(query, (_piece(terms, finish, query, None, once),))
    data, most = _dataset(query), _rows_of_a_block(query)
    if query.whole or len(data) <= most:
        summed = [*query.rows, *query.beside]

        def all_at_once(*given: torch.Tensor) -> Tensors:
            columns, owned = given[: len(summed)], given[len(summed) :]
            totals = query.sums(**dict(zip(summed, columns, strict=True)))
            return query.finish(**totals, **dict(zip(query.once, owned, strict=True)))

        batches = Batches(data, tuple(map(len, data.positions)), 0, False, resident=False)
        given = (*query.beside.values(), *once)
        return CompiledQuery(query, (_piece(terms, _named(query, all_at_once), query, batches, given),))
    return CompiledQuery(query, tuple(_in_blocks(query, terms, data, most, once)))


def _too_large(piece: Piece) -> list[Suspect]:
    """What may leave the ring where columns are within their bounds; inputs whose bounds are not known are within ±1."""
    batches, header = piece.batches, piece.program.header
    parts = [*(part for _, _, part in batches.parts()), *piece.once] if batches else [*piece.once]
    examples = [*(batches.examples() if batches else []), *(torch.zeros(o.shape, dtype=o.dtype) for o in piece.once)]
    most = 2.0 ** (62 - 2 * header.frac_bits)
    largest = max((max(map(abs, part.bounds)) for part in parts if part.bounds), default=0.0)
    if largest**2 * max((example.shape[0] for example in examples if example.ndim), default=0) <= most:
        return []  # the usual: sums of products of two columns fit
    step = cast(CapturedStep, piece.program.step)
    bounds = [part.bounds for part in parts]
    starts = {name: state.start for name, state in step.states.items()}
    found = magnitudes(step.captured, piece.program.graph, starts, examples, bounds, header.frac_bits, header.width)
    suspects = found.suspects if found else ()
    return [each for each in suspects if each.limit >= 1 and max(-each.low, each.high) < _ANY]


def _said_of_ranges(query: Query, suspects: Sequence[Suspect]) -> str:
    where = "\n".join(f"{each.source or each.operator}: {each}" for each in suspects[:3])
    fix = (
        "let owners scale their columns, as in part.made(lambda: part.tensor / 1000, (), torch.float64, bounds=(0, 500)), "
        "and multiply what is revealed; or take fewer frac_bits"
    )
    why = "results that do not fit are wrong, and nobody sees it"
    return explain(f"{query.name!r} has values that are not shown to fit", where=where, why=why, fix=fix)


def _of_rows(query: Query) -> Query:
    """The same query without the parts that have no rows, as no program has inputs without elements. Raises InputError."""
    if not query.rows:
        return query
    (first, *rest) = query.rows.values()
    counts = [part.shape[0] for part in first]
    if any([part.shape[0] for part in column] != counts for column in rest) and not _ways(query):
        raise InputError(explain(f"the columns of {query.name!r} have different rows"))
    if not any(counts):
        raise InputError(explain(f"{query.name!r} is asked about no rows", fix="choose rows that are there"))
    if all(counts):
        return query
    some = [part for part, count in enumerate(counts) if count]
    return replace(query, rows={name: tuple(column[part] for part in some) for name, column in query.rows.items()})


def _ways(query: Query) -> bool:
    return any(part.way for column in query.rows.values() for part in column)


def _in_one_order(query: Query) -> Query:
    """The same query, where rows that are in an order of their own are brought into that of the others: all at once."""
    parts = {name: column[0] for name, column in query.rows.items()}
    ways = {id(part.way): part.way for part in parts.values() if part.way}
    if not ways:
        return query
    row, way = "row of {}".format, "order {}".format
    positions = {way(at): each.positions for at, each in enumerate(ways.values())}

    def finish(**given: torch.Tensor) -> Tensors:
        columns = {name: given[row(name)] for name in parts}
        for at, (key, each) in enumerate(ways.items()):
            for dtype in {part.dtype for part in parts.values()}:
                apart = {n: columns[n] for n, part in parts.items() if id(part.way) == key and part.dtype == dtype}
                columns |= _brought(apart, given[way(at)], each.missing) if apart else {}
        beside = {name: given[name] for name in query.beside}
        return query.finish(**query.sums(**columns, **beside), **{name: given[name] for name in query.once})

    once = {**query.once, **query.beside, **{row(name): part for name, part in parts.items()}, **positions}
    return replace(query, rows={}, beside={}, once=once, finish=finish)


def _brought(columns: Tensors, positions: torch.Tensor, missing: bool) -> dict[str, torch.Tensor]:
    """Rows of several tensors at these positions, all in one go."""
    flat = {name: column.reshape(len(column), -1) for name, column in columns.items()}
    rows = permute(torch.cat([*flat.values()], 1), positions, missing=missing)
    parts = rows.split([part.shape[1] for part in flat.values()], 1)
    return {name: part.reshape(-1, *columns[name].shape[1:]) for name, part in zip(columns, parts, strict=True)}


def _in_blocks(query: Query, terms: Terms, data: Dataset, most: int, once: tuple[Owned, ...]) -> Iterator[Piece]:
    blocks = list(data.blocks(most, resident=False))
    beside = tuple(query.beside.values())
    zeros = {name: torch.zeros(owned.shape, dtype=owned.dtype) for name, owned in query.beside.items()}
    totals = _Totals(query.sums(**_zeros(query, blocks[0]), **zeros))
    kept: set[str] = set()
    for batches in blocks:

        def add(*columns: torch.Tensor) -> dict[str, torch.Tensor]:
            totals.add(query.sums(**dict(zip([*query.rows, *query.beside], columns, strict=True))))
            return {}

        joined = _joining(batches, _named(query, add))
        captured = capture_step(joined, {_TOTALS: totals}, None, [*batches.examples(), *zeros.values()])
        owners = [*batches.owners(), *(owned.party for owned in beside)]
        program = terms.compile(captured, query.name, owners, [])
        kept |= set(program.graph.keeps())
        yield Piece(program, batches, beside)

    def finish(*owned: torch.Tensor) -> Tensors:
        return query.finish(**dict(totals.named_buffers()), **dict(zip(query.once, owned, strict=True)))

    yield _piece(terms, _named(query, finish), query, None, once, {_TOTALS: totals}, kept)


class _Totals(nn.Module):
    """Sums over the rows up to now."""

    def __init__(self, like: Tensors) -> None:
        super().__init__()
        for name, total in like.items():
            self.register_buffer(name, torch.zeros(total.shape, dtype=_kept(total.dtype)))

    def add(self, more: Tensors) -> None:
        for name, total in self.named_buffers():
            total.add_(more[name].to(total.dtype))


def _kept(dtype: torch.dtype) -> torch.dtype:
    """Whole numbers stay whole, with all the room that the ring has."""
    return torch.float32 if dtype.is_floating_point else torch.int64


def _piece(
    terms: Terms,
    function: Callable[..., Tensors],
    query: Query,
    batches: Batches | None,
    once: tuple[Owned, ...],
    models: Mapping[str, nn.Module] | None = None,
    reads: set[str] | None = None,
) -> Piece:
    """A program that reveals what its function returns."""
    examples = [torch.zeros(owned.shape, dtype=owned.dtype) for owned in once]
    if batches:
        joined = _joining(batches, function)
        examples = [*batches.examples(), *examples]
    else:
        joined = function
    captured = capture_step(joined, models or {_TOTALS: _Totals({})}, None, examples)
    owners = [*(batches.owners() if batches else []), *(owned.party for owned in once)]
    receivers = _receivers(query, captured.returned.names, terms.parties)
    return Piece(terms.compile(captured, query.name, owners, receivers, reads=reads or set()), batches, once)


def _joining(batches: Batches, function: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """The function of columns, and of what comes after them, as one of the columns' parts."""
    count = len(batches.owners())

    def of_parts(*given: torch.Tensor) -> Tensors:
        return function(*batches.joined(given[:count]).values(), *given[count:])

    of_parts.__name__ = function.__name__
    return of_parts


def _receivers(query: Query, names: tuple[str, ...], parties: tuple[str, ...]) -> list[str | None]:
    if not isinstance(query.reveal, (str, Mapping)):
        fix = 'reveal is a party or "all", or says it of each result by its name'
        raise InputError(explain(f"reveal={query.reveal!r} of {query.name!r}", fix=fix))
    wanted = dict.fromkeys(names, query.reveal) if isinstance(query.reveal, str) else dict(query.reveal)
    if set(wanted) != set(names):
        fix = f"name a receiver for each of {', '.join(names)}"
        raise CompileError(explain(f"reveal of {query.name!r} is about other results than it has", fix=fix))
    for to in wanted.values():
        if to not in (*parties, EVERYBODY):
            fix = f'name one of {", ".join(parties)}, or "all"'
            raise InputError(explain(f"{to!r} is to learn {query.name!r} and is no party", fix=fix))
    return [wanted[name] for name in names]


def _dataset(query: Query) -> Dataset:
    counts = [part.shape[0] for part in next(iter(query.rows.values()))]
    return Dataset(query.rows, tuple(np.arange(count) for count in counts))


def _rows_of_a_block(query: Query) -> int:
    elements = sum(int(np.prod(parts[0].shape[1:])) for parts in query.rows.values())
    return min(_MOST_ROWS, max(256, _BLOCK_ELEMENTS // max(1, elements, query.row_elements)))


def _zeros(query: Query, batches: Batches) -> dict[str, torch.Tensor]:
    return batches.joined(batches.examples())


def _named(query: Query, function: Callable[..., Any]) -> Callable[..., Any]:
    function.__name__ = query.name
    return function
