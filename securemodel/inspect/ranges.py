"""The ranges that values of a program must stay in, for the parties to get what fixed point in the clear gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from securemodel.compiler.ir import AMONG, COMPARED, MEASURED, TABLED, Graph, Mark, Node
from securemodel.compiler.ops import CUTS, cut_operand
from securemodel.inspect.fixed import Both

RING_BITS = 63


@dataclass(frozen=True, repr=False)
class Range:
    """Values in real numbers, and the interval [low, high) that they must stay in.

    `at` is the node whose layer is to blame; `mark`: the function of the model whose domain it is.
    """

    at: int
    what: str
    low: float
    high: float
    values: torch.Tensor
    mark: Mark | None = None


def ranges(graph: Graph, node: Node, value: Both, operands: Sequence[Both]) -> Iterator[Range]:
    """Of a node, its value and those of its operands: ring, truncation, comparison, and domains of functions."""
    if any(x.wraps for x in (value, *operands)):
        return
    if node.op == "top_bit":
        for bit, arg, operand in zip(node.attrs["bit"], node.args, operands, strict=True):
            yield _within(graph, node.id, "comparison", bit, arg, operand)
    elif node.op in CUTS:
        at = cut_operand(node)
        yield _within(graph, node.args[at], "truncation", node.attrs.get("modulo", 64) - 2, node.args[at], operands[at])
    if node.form in ("additive", "masked") and value.wide is not None:
        yield _within(graph, node.id, "ring", RING_BITS, node.id, value)
    for mark in node.marks:
        if mark.low is not None and mark.name not in (AMONG, COMPARED, MEASURED, TABLED):
            seen = value.number * 2.0**-mark.frac
            seen = seen[seen != 0] if mark.or_zero else seen
            yield Range(node.id, mark.name, mark.low, cast(float, mark.high), seen, mark)


def _within(graph: Graph, at: int, what: str, bits: int, node_id: int, value: Both) -> Range:
    """A magnitude below 2^bits in units of the ring."""
    unit = 2.0 ** -(graph[node_id].frac or 0)
    return Range(at, what, -(2.0**bits) * unit, 2.0**bits * unit, value.number * unit)
