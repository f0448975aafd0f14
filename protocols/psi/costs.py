"""What an alignment costs, from the numbers of rows alone: declared here, and compared with what is counted by tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from protocols.channel import HEADER_BYTES
from protocols.psi import ring as rings
from protocols.psi.curve import POINT_BYTES
from protocols.psi.direct import COUNT_BYTES
from protocols.psi.flows import LAG, Shape
from protocols.psi.ring import Ring
from protocols.psi.tags import TAG_BYTES
from protocols.psi.terms import ALL, COUNT, NOBODY, TEXT_BYTES, Terms
from protocols.psi.union import DIGEST_BYTES


@dataclass(frozen=True)
class Cost:
    """What one party does: rounds, bytes that it sends with their headers, and points that it multiplies."""

    rounds: int
    sent_bytes: int
    multiplications: int


@dataclass(frozen=True)
class _Move:
    """A list, or one short message, from one party to another."""

    source: str
    target: str
    shape: Shape


def cost(rows: Mapping[str, int], terms: Terms, me: str, joint: int | None = None) -> Cost:
    """What party `me` does where each party has so many rows. `joint`: rows in the end, at most as many by default."""
    names = tuple(sorted(rows))
    if joint is None:
        joint = sum(rows.values()) if terms.learns == NOBODY else min(rows.values())
    rounds = sent = 0
    for step in _steps({name: rows[name] for name in names}, terms, joint):
        for turn in range(max((move.shape.turns for move in step), default=0)):
            busy = [move for move in step if me in (move.source, move.target) and move.shape.nbytes(turn)]
            rounds += bool(busy)
            sent += sum(move.shape.nbytes(turn) for move in busy if move.source == me)
            sent += HEADER_BYTES * len({move.target for move in busy if move.source == me})
    return Cost(rounds, sent, multiplications(rows, terms, me, joint))


def multiplications(rows: Mapping[str, int], terms: Terms, me: str, joint: int | None = None) -> int:
    """How many points a party multiplies by a key."""
    total = sum(rows.values())
    if terms.learns == NOBODY:
        return 2 * total + (total if joint is None else joint)
    if terms.learns in (ALL, COUNT, me):
        return total
    return rows[me] + rows[terms.learns]


def _steps(rows: Mapping[str, int], terms: Terms, joint: int) -> Iterator[Sequence[_Move]]:
    """All that is sent, as the protocols send it, step by step."""
    names = tuple(rows)
    yield _to_all(names, names, TEXT_BYTES)
    if terms.learns == NOBODY:
        yield from _union(rows, joint)
    elif terms.learns == COUNT or (terms.learns == ALL and len(rows) > 2):
        yield from _around(rows, False)
        yield _to_all(names[:1], names[1:], COUNT_BYTES)
        if terms.learns == ALL:
            yield from _back(names, joint)
            yield from _same(names)
    elif terms.learns == ALL:
        yield [move for name in names for move in _crossing(rows, name, set(names))]
        yield from _same(names)
    else:
        yield [move for name in names for move in _crossing(rows, name, {terms.learns})]
        yield _to_all((terms.learns,), names, COUNT_BYTES)


def _crossing(rows: Mapping[str, int], source: str, learners: set[str]) -> Iterator[_Move]:
    for target in rows:
        if target != source and (source in learners or target in learners):
            yield _Move(source, target, Shape(rows[source], POINT_BYTES))
            if target in learners:
                yield _Move(source, target, Shape(rows[target], TAG_BYTES, LAG))


def _around(rows: Mapping[str, int], named: bool) -> Iterator[Sequence[_Move]]:
    """The ring and the collection; with second copies where there are names."""
    names = tuple(rows)
    for hop in range(1, len(names)):
        step = []
        for name in names:
            ring = Ring(names, name)
            copies = 2 if named and hop > 1 else 1
            step += [_Move(name, ring.at(1), Shape(rows[ring.at(1 - hop)], POINT_BYTES))] * copies
        yield step
    if named:
        yield [
            _Move(name, Ring(names, name).at(1), Shape(rows[Ring(names, name).at(1)], POINT_BYTES)) for name in names
        ]
    width = POINT_BYTES if named else TAG_BYTES
    yield [_Move(name, names[0], Shape(rows[Ring(names, name).at(1)], width)) for name in names[1:]]


def _back(names: tuple[str, ...], joint: int) -> Iterator[Sequence[_Move]]:
    places = Shape(joint, rings.PLACE_BYTES)
    yield [_Move(names[0], name, places) for name in names[1:]]
    for _ in names[1:]:
        yield [_Move(name, Ring(names, name).at(-1), places) for name in names]


def _union(rows: Mapping[str, int], joint: int) -> Iterator[Sequence[_Move]]:
    names = tuple(rows)
    yield from _around(rows, True)
    yield _to_all(names[:1], names[1:], COUNT_BYTES)
    for source, target in itertools.pairwise(names):
        yield [_Move(source, target, Shape(joint, POINT_BYTES))]
    yield [_Move(names[-1], name, Shape(joint, TAG_BYTES)) for name in names[:-1]]
    yield _to_all(names, names, DIGEST_BYTES)


def _same(names: tuple[str, ...]) -> Iterator[Sequence[_Move]]:
    for _ in range(2):
        yield _to_all(names, names, POINT_BYTES)


def _to_all(sources: tuple[str, ...], targets: tuple[str, ...], nbytes: int) -> list[_Move]:
    return [_Move(a, b, Shape(1, nbytes)) for a in sources for b in targets if a != b]
