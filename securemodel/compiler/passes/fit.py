"""Truncations and results that look at no more bits than an owner measured their values to have.

A truncation of what is known to be small needs its low bits alone (docs/protocol.md, section 3), and so do a result and
whoever receives it. What comes before is opened and dealt in as few bytes as are read of it, down to the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from protocols.shares import RING_BITS
from securemodel.compiler.ir import MEASURED, TUNED, Graph, Mark, Node


def result_number(index: int) -> int:
    """The number of a result among values: below those of the values of a lowered graph."""
    return -1 - index


def measured_numbers(marks: Iterable[Mark]) -> list[int]:
    """The numbers that a value has for whoever measures it."""
    return [int(mark.source) for mark in marks if mark.name == MEASURED]


def fit_values(graph: Graph, measured: Mapping[int, int]) -> set[int]:
    """Gives truncations and results the bits that they need look at; the numbers of all values that may be measured.

    measured: {value, by its number: n}, where its magnitude, with what rounding adds, is below 2^n; such a value is marked
    with the range that it must stay in.
    """
    numbers: set[int] = set()
    for node in graph.nodes:
        if node.op not in ("truncate", "reveal"):
            continue
        read = graph[node.args[0]] if node.op == "truncate" else node
        known = measured_numbers(read.marks)
        numbers.update(known)
        if limits := [measured[number] for number in known if number in measured]:
            (_truncation if node.op == "truncate" else _result)(node, read, min(limits))
    return numbers


def _truncation(node: Node, x: Node, limit: int) -> None:
    bits = limit + (x.frac or 0)
    modulo = _bytes(max(bits, node.attrs["bits"]) + 2)
    if modulo < node.attrs.get("modulo", RING_BITS):
        node.attrs["modulo"] = modulo
        _must_stay(x, modulo - 2, node.attrs.get("offset", 0))


def _result(node: Node, x: Node, limit: int) -> None:
    width = _bytes(limit + (x.frac or 0) + 1)
    if width < RING_BITS:
        node.attrs["width"] = width
        _must_stay(x, width - 1, 0)


def forget_truncation(x: Node, modulo: int) -> None:
    """Takes the mark of a truncation's range from a value that nobody truncates any more."""
    marks = list(x.marks)
    if (made := _range(x, modulo - 2, 0)) in marks:
        marks.remove(made)
    x.marks = tuple(marks)


def _bytes(bits: int) -> int:
    return max(1, -(-bits // 8)) * 8


def _must_stay(x: Node, bits: int, offset: int) -> None:
    """Marks a value of a range of `bits`, with what is added to it before it is truncated."""
    x.marks += (_range(x, bits, offset),)


def _range(x: Node, bits: int, offset: int) -> Mark:
    frac = x.frac or 0
    high = math.ldexp((1 << bits) - offset, -frac)
    return Mark(TUNED, x.source, -math.ldexp(1, bits - frac), high, frac=frac)
