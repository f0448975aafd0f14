"""Decision trees as torch modules: one comparison for each condition, a conjunction for each leaf.

A condition is code < threshold, of whole numbers that stand for reals in their order (`securemodel.models.sources`), so
that a value equal to a threshold goes where the library sends it; or that a category is one of some. A leaf is reached
where all conditions on its path hold, or their opposites. Which conditions are on which paths, and which column each
reads, is public; thresholds, sets of categories and leaves are buffers, which belong to the owner of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import lowers
from securemodel.models.sources import LOW_BITS, Coded, Equals, Missing, Sources, code_bits, halves, whole

_FAN_IN = 4
_MORE_BITS = 8
"""Leaves have so many fractional bits more than other numbers: sums over many trees keep the digits of each."""


@torch.library.custom_op("securemodel::reached", mutates_args=())
def reached(
    codes: torch.Tensor, thresholds: torch.Tensor, members: torch.Tensor, leaves: torch.Tensor, shape: str, bits: int
) -> torch.Tensor:
    """float[rows, outputs]: sums of the leaves that rows reach.

    First come conditions on codes, int[rows, 2 columns] as `halves`: code < threshold, int[2 conditions], whose
    differences stay below 2^bits. Then those of `members`, int[rows, conditions], which hold where it is 1. `leaves` is
    float[leaves, outputs]. `shape` is the text of (the column that each of the first conditions reads; for each leaf the
    conditions on its path, with -1 - condition for the opposite).
    """
    reads, paths = _shape(shape)
    holds = torch.cat([whole(codes)[:, reads] < whole(thresholds), members == 1], 1)
    holds = torch.cat([holds, ~holds.flip(1)], 1)  # so that negative places count from the end
    found = torch.ones(len(holds), len(leaves), dtype=torch.bool)
    for at in torch.tensor(paths).T:
        found &= holds[:, at]
    return found.to(leaves.dtype) @ leaves


@reached.register_fake
def _(codes, thresholds, members, leaves, shape, bits):
    return leaves.new_empty(codes.shape[0], leaves.shape[1])


def _shape(text: str) -> tuple[list[int], list[list[int]]]:
    """A list of numbers as an argument would be written out again at each step of torch.export."""
    reads, paths = json.loads(text)
    return reads, paths


@lowers(torch.ops.securemodel.reached.default)
def secure_reached(
    g: Builder, codes: Value, thresholds: Value, members: Value, leaves: Value, shape: str, bits: int
) -> Value:
    """Signs, conjunctions of up to four of them at a time, then products of bits with leaves."""
    (rows, _), (count, outputs) = codes.shape, leaves.shape
    if g.width < 64:
        raise CannotLower(f"comparisons of {bits} bits in a program of width {g.width}", "compile with width=64")
    reads, paths = _shape(shape)
    steps = [[(max(at, -1 - at), at < 0) for at in path] for path in paths]
    length = len(steps[0])
    numbers = []
    if reads:
        columns = g.linear("permute", _whole(g, codes), dims=[1, 0])
        read = g.linear("index", columns, dim=0, index=list(reads))
        numbers.append(g.sub(read, g.reshape(_whole(g, thresholds), (len(reads), 1))))
    if members.shape[1]:
        numbers.append(g.linear("neg", g.linear("permute", members, dims=[1, 0])))
    below = g.linear("cat", *numbers, dim=0) if len(numbers) > 1 else numbers[0]
    found = g.is_negative(below, bits)
    while length > 1:
        size = math.ceil(length / math.ceil(length / _FAN_IN))
        size, length = max(size, 2), math.ceil(length / max(size, 2))
        pieces = [[tuple(_filled(path[i : i + size], size)) for i in range(0, len(path), size)] for path in steps]
        terms = (
            list(dict.fromkeys(piece for path in pieces for piece in path)) if length > 1 else [p[0] for p in pieces]
        )
        found = g.all_of(found, terms)
        place = {term: at for at, term in enumerate(terms)}
        steps = [[(place[piece], False) for piece in path] for path in pieces]
    if outputs > 2:  # a product with each leaf's numbers, after one more opening, is less than as many selections
        bit = g.linear("permute", g.bit_to_ring(found), dims=[1, 0])
        return g.bilinear("matmul", bit, leaves)
    sums = [
        g.linear("sum", g.select(found, g.expand(g.slice(leaves, 1, k, k + 1), (count, rows))), dims=[0], keepdim=False)
        for k in range(outputs)
    ]
    return g.linear("cat", *[g.reshape(total, (rows, 1)) for total in sums], dim=1)


def _whole(g: Builder, codes: Value) -> Value:
    """Shares of codes. Their halves are shared, which fixed point has room for."""
    size, dim = codes.shape[-1] // 2, codes.ndim - 1
    high, low = (g.linear("slice", codes, dim=dim, start=at, stop=at + size, step=1) for at in (0, size))
    return g.add(g.scale(g.scale(high, 1 << LOW_BITS // 2), 1 << LOW_BITS // 2), low)


def _filled(piece: list, size: int) -> list:
    """A condition twice is the condition."""
    return piece + [piece[-1]] * (size - len(piece))


class Forest(nn.Module):
    """float[rows, outputs]: the sums of the leaves that rows reach, times a factor, plus `start`."""

    thresholds: torch.Tensor
    members: torch.Tensor
    leaves: torch.Tensor
    start: torch.Tensor

    def __init__(
        self,
        columns: Sequence[Sequence[int]],
        coded: Sequence[Coded],
        equal: Sequence[Equals],
        reads: Sequence[int],
        thresholds: torch.Tensor,
        members: torch.Tensor,
        paths: Sequence[Sequence[tuple[int, bool]]],
        leaves: torch.Tensor,
        start: torch.Tensor,
        factor: float,
    ) -> None:
        super().__init__()
        self.codes = Sources(coded, columns) if coded else None
        self.categories = Sources(equal, columns) if equal else None
        self.factor = factor
        self.bits = code_bits(coded[0].single) if coded else 2
        length = max(2, *map(len, paths)) if paths else 0
        numbered = [[-1 - at if opposite else at for at, opposite in _filled(list(path), length)] for path in paths]
        self.shape = json.dumps([list(reads), numbered], separators=(",", ":")) if paths else ""
        self.register_buffer("thresholds", halves(thresholds))
        self.register_buffer("members", members)
        self.register_buffer("leaves", leaves * 2.0**_MORE_BITS)
        self.register_buffer("start", start)

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        if not self.shape:
            return self.start.expand(len(columns[0]), len(self.start))
        none = torch.zeros(len(columns[0]), 0, dtype=torch.int64)
        made = reached(
            none if self.codes is None else self.codes(*columns), self.thresholds,
            none if self.categories is None else self.categories(*columns) @ self.members,
            self.leaves, self.shape, self.bits,
        )  # fmt: skip
        made = made * 2.0**-_MORE_BITS  # free, unlike a factor that is no power of two
        return (made if self.factor == 1 else made * self.factor) + self.start


class Trees:
    """Collects trees of a library, as conditions, paths and leaves, and makes a Forest of them.

    `float32`: what the library compares; `single`: whether codes are of float32, too.
    """

    def __init__(self, outputs: int, single: bool, flat: bool = False) -> None:
        self.outputs, self.single, self.float32, self.flat = outputs, single, single, flat
        self.start = np.zeros(outputs)
        self._coded: dict[Coded, int] = {}
        self._equal: dict[Equals, int] = {}
        self._conditions: dict[tuple, int] = {}
        self._paths: list[list[tuple[tuple, bool]]] = []
        self._leaves: list[np.ndarray] = []

    def number(self, column: int, threshold: int, missing: Missing = "refused", also: float | None = None) -> tuple:
        """The condition code < threshold of a column, which holds for missing values where they are "low"."""
        source = Coded(int(column), self.single, missing, also, self.flat)
        return "number", self._coded.setdefault(source, len(self._coded)), int(threshold)

    def category(self, column: int, values: Iterable[float], known: tuple[float, ...] | None = None) -> tuple:
        """The condition that a column is one of these values; NaN among them is what is missing.

        `known`: its values, where others are refused.
        """
        sources = [Equals(int(column), float(value), known) for value in values]
        found = [self._equal.setdefault(s, len(self._equal)) for s in _without_two_nans(sources)]
        return "category", tuple(sorted(set(found)))

    def add(
        self, split: Callable[[Any], tuple[tuple, Any, Any] | None], leaf: Callable[[Any], np.ndarray], root: Any = 0
    ) -> None:
        """A tree: `split` gives a node's condition, where to go if it holds and if not, or None for a leaf."""
        todo: list[tuple[Any, list]] = [(root, [])]
        while todo:
            node, path = todo.pop()
            made = split(node)
            if made is None and not path:
                self.start = self.start + leaf(node)
            elif made is None:
                self._paths.append(path)
                self._leaves.append(np.broadcast_to(leaf(node), (self.outputs,)))
            else:
                condition, yes, no = made
                todo += [(no, [*path, (condition, True)]), (yes, [*path, (condition, False)])]

    def module(self, columns: Sequence[Sequence[int]], factor: float = 1.0) -> Forest:
        """The forest; its sum is multiplied by the public `factor`. What stands in `start` is not."""
        used = dict.fromkeys(condition for path in self._paths for condition, _ in path)
        numbers = [c for c in used if c[0] == "number"]
        categories = [c for c in used if c[0] == "category"]
        place = {condition: at for at, condition in enumerate([*numbers, *categories])}
        members = torch.zeros(len(self._equal), len(categories), dtype=torch.int64)
        for at, (_, chosen) in enumerate(categories):
            members[list(chosen), at] = 1
        return Forest(
            columns, list(self._coded), list(self._equal), [c[1] for c in numbers],
            torch.tensor([c[2] for c in numbers], dtype=torch.int64), members,
            [[(place[condition], opposite) for condition, opposite in path] for path in self._paths],
            torch.tensor(np.array(self._leaves).reshape(-1, self.outputs)), torch.tensor(self.start), factor,
        )  # fmt: skip


def _without_two_nans(sources: list[Equals]) -> list[Equals]:
    """NaN is not equal to itself: one object stands for all of them in tables."""
    return [Equals(s.column, _NAN, s.known) if math.isnan(s.value) else s for s in sources]


_NAN = math.nan
