"""The largest value along an axis, and its place, by a tournament.

In a match all pairs are compared at once, and one conjunction says who loses to none. Comparisons must be exact then.
Larger matches need fewer rounds and more comparisons: small tensors have matches of up to eight, or of up to seventeen
where that saves a level, and large ones matches of two. Who meets stands side by side, so that of equal values the
first wins.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from securemodel.compiler.builder import Builder, Value

_MATCH, _FEW = 8, 2**18
"""Players of a match, for tensors of up to so many elements; one conjunction of up to seven says whether one has won."""
_WIDE_MATCH, _FEWER = 17, 2**12


def largest(g: Builder, x: Value, dim: int) -> Value:
    """The maximum along an axis, which stays with size one."""
    return tournament(g, x, dim, False)[0]


def tournament(g: Builder, x: Value, dim: int, with_place: bool) -> tuple[Value, Value | None]:
    """(maximum along an axis, the place of the first of equals); the axis stays with size one."""
    size, place = x.shape[dim], None
    if size == 1 and with_place:
        place = g.integers(torch.zeros(x.shape))
    while size > 1:
        match = _players(size, math.prod(x.shape))
        if match > 2 and not g.exact:
            x = g.rescale(x)  # signs of finer differences are no order, and then nobody, or who is small, could win
        whole = size - size % match
        ranges = [(0, whole, match)] + ([(whole, size, size - whole)] if whole < size else [])
        played = [_played(g, x, place, dim, *bounds) if with_place else (_won(g, x, dim, *bounds)[0], None)
                  for bounds in ranges]  # fmt: skip
        values, places = zip(*played, strict=True)
        x = g.linear("cat", *values, dim=dim) if len(values) > 1 else values[0]
        if with_place:
            place = g.linear("cat", *places, dim=dim) if len(places) > 1 else places[0]
        size = x.shape[dim]
    return x, replace(place, integer=True) if place else None


def _players(size: int, elements: int) -> int:
    """How many meet in the first matches of so many players, in a tensor of so many elements."""
    if elements > _FEW:
        return 2
    levels = {most: math.ceil(math.log(size, most) - 1e-9) for most in (_MATCH, _WIDE_MATCH)}
    most = _WIDE_MATCH if elements <= _FEWER and levels[_WIDE_MATCH] < levels[_MATCH] else _MATCH
    return math.ceil(size / most ** (levels[most] - 1))


def _together(g: Builder, x: Value, dim: int, start: int, stop: int, match: int) -> Value:
    """The players of all matches within [start, stop): first players, second players and so on, in a new first axis."""
    players = [g.slice(x, dim, start + i, stop, match) for i in range(match)]
    return g.linear("cat", *[g.reshape(p, (1, *p.shape)) for p in players], dim=0)


def _all_of(g: Builder, bits: Value, terms: list[list[tuple[int, bool]]]) -> Value:
    """Conjunctions of bits along the first axis, each given by (place, whether its opposite is meant): many in two steps."""
    length = len(terms[0])
    if length < _MATCH:
        return g.all_of(bits, terms)
    size = math.ceil(math.sqrt(length))
    starts = [min(start, length - size) for start in range(0, length, size)]  # what is there twice changes nothing
    pieces = g.all_of(bits, [term[start : start + size] for term in terms for start in starts])
    return g.all_of(pieces, [[(i * len(starts) + j, False) for j in range(len(starts))] for i in range(len(terms))])


def _won(g: Builder, x: Value, dim: int, start: int, stop: int, match: int) -> tuple[Value, Value | None, bool]:
    """(winners, bits of all players but the last that say who won, whether the opposite is meant)."""
    if match == 1:
        return g.slice(x, dim, start, stop), None, False
    together, last = _together(g, x, dim, start, stop, match), match - 1
    above_last = g.linear("index_sub", together, dim=0, plus=list(range(last)), minus=[last] * last)
    if match == 2:
        bits, invert = g.is_negative(above_last), True
    else:
        pairs = [(i, j) for i in range(last) for j in range(i + 1, match)]
        plus, minus = [i for i, _ in pairs], [j for _, j in pairs]
        loses = g.is_negative(g.linear("index_sub", together, dim=0, plus=plus, minus=minus))
        terms = [[(pairs.index((min(i, j), max(i, j))), i < j) for j in range(match) if j != i] for i in range(last)]
        bits, invert = _all_of(g, loses, terms), False
    gained = g.linear("sum", g.select(bits, above_last, invert=invert), dims=[0], keepdim=False)
    return g.among(g.add(g.slice(x, dim, start + last, stop, match), gained)), bits, invert


def _played(
    g: Builder, x: Value, place: Value | None, dim: int, start: int, stop: int, match: int
) -> tuple[Value, Value]:
    """(winners, their places); `place` is None where every player still stands at its own."""
    winners, bits, invert = _won(g, x, dim, start, stop, match)
    last = match - 1
    if place is not None:
        last_place = g.slice(place, dim, start + last, stop, match)
        if bits is None:
            return winners, last_place
        together = _together(g, place, dim, start, stop, match)
        above_last = g.linear("index_sub", together, dim=0, plus=list(range(last)), minus=[last] * last)
        gained = g.linear("sum", g.select(bits, above_last, invert=invert), dims=[0], keepdim=False)
        return winners, g.add(last_place, gained)
    along = [1] * x.ndim
    along[dim] = winners.shape[dim]
    at = g.integers(torch.arange(start + last, stop, match).reshape(along).expand(winners.shape))
    if bits is not None:
        won = g.bit_to_ring(bits, invert=invert)
        for i in range(last):
            moved = g.scale(g.reshape(g.slice(won, 0, i, i + 1), winners.shape), i - last)
            at = g.add(moved, at)
    return winners, at
