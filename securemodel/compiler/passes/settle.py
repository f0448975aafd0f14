"""Leaves out comparisons whose outcome an owner measured to be always the same.

What such a bit selects is there or is zero, what is added to zero is itself, and what is computed of public numbers alone
is computed in the clear: a smooth function of an argument that stays inside of its domain is its table alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from protocols.linear import LAYOUT, LINEAR
from protocols.names import PUBLIC
from securemodel.compiler.builder import Builder, FloatCall, Value, describe
from securemodel.compiler.ir import COMPARED, TUNED, Mark, Node, phase_of

_KEEPS_ZERO = ("rescale", "factor", "ldexp", "bilinear", "square")
_OF_NUMBERS = ("linear", "factor", "bilinear")
"""What may read a bit as a number, where the bit is public."""


def number_comparisons(g: Builder) -> None:
    """Marks the comparisons with their numbers, for whoever measures what they read."""
    for node in g.graph.nodes:
        if node.op == "is_negative":
            node.marks += (Mark(COMPARED, str(node.id), float("-inf"), float("inf")),)


def settle(g: Builder, outputs: Sequence[Value], signs: Mapping[int, int]) -> tuple[tuple[Value, ...], frozenset[int]]:
    """Rewrites the graph in place for comparisons of known outcome, -1 or 1 for what is always below zero or never.

    The outputs, and the comparisons that are left out: those whose bits go to selections and numbers alone.
    """
    settling = _Settling(g, g.graph.users())
    settling.bits = {at: (None, sign < 0) for at, sign in signs.items() if settling.can_be_known(at)}
    settled = frozenset(settling.bits)
    for at in settled:
        settling.expect(g.graph[at])
    for node in list(g.graph.nodes):
        if node.form != "float":
            settling.visit(node)
    new = tuple(replace(v, id=settling.replaced.get(v.id, v.id)) for v in outputs)
    g.returned = frozenset(v.id for v in new)
    return new, settled


def times(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The product with a number, in float64."""
    return x.double() * factor


def linear_of_public(kind: str, attrs: dict, *xs: torch.Tensor) -> torch.Tensor:
    """A linear operation on public numbers, in float64."""
    return LINEAR[kind](*(x.double() for x in xs), **attrs)


@dataclass
class _Settling:
    """`bits`: (the bit that one now is, or None, and whether it is the opposite of that, or set); `replaced`: values that
    others took the place of; `zeros` and `public`: values that are zero, and those that everybody knows now."""

    g: Builder
    users: list[list[int]]
    bits: dict[int, tuple[int | None, bool]] = field(default_factory=dict)
    replaced: dict[int, int] = field(default_factory=dict)
    zeros: set[int] = field(default_factory=set)
    public: set[int] = field(default_factory=set)

    def can_be_known(self, at: int) -> bool:
        """Whether everything that reads a bit can do with a public one."""
        for user in (self.g.graph[u] for u in self.users[at]):
            if user.op == "either":
                if not self.can_be_known(user.id):
                    return False
            elif user.op == "bit_to_ring":
                if user.id in self.g.returned or any(
                    self.g.graph[u].op not in _OF_NUMBERS for u in self.users[user.id]
                ):
                    return False
            elif user.op != "select":
                return False
        return True

    def expect(self, node: Node) -> None:
        """Marks what a comparison reads with the sign that it must have.

        Of rounded values, and with fast rounding, those are let pass that may come out either way.
        """
        x, ulp = self.g.graph[node.args[0]], 2.0**-self.g.frac_bits
        sharp = not node.attrs.get("rounded")
        low = 0.0 if sharp and self.g.exact else -ulp / 2
        low, high = (-math.inf, 0.0 if sharp else ulp) if self.bits[node.id][1] else (low, math.inf)
        while x.op == "linear" and x.attrs["kind"] == "add":  # a sum with a constant may be gone
            y, added = (self.g.graph[a] for a in x.args)
            known = self.g.public(Value(added.id, added.shape, added.owner)) if added.form == "float" else None
            if known is None or y.form == "float":
                break
            x, low, high = y, low - known.min().item(), high - known.max().item()
        if x.form != "float":
            x.marks += (Mark(TUNED, node.source, low, high),)

    def visit(self, node: Node) -> None:
        """Rewrites a node whose operands were."""
        node.args = tuple(self.replaced.get(a, a) for a in node.args)
        self._rewrite(node)
        if (new := self.replaced.get(node.id)) is not None and all(m.low is not None for m in self.g.graph[new].marks):
            self.g.graph[new].marks += tuple(mark for mark in node.marks if mark.low is None)

    def _rewrite(self, node: Node) -> None:
        if node.op in ("either", "select", "bit_to_ring"):
            {"either": self._either, "select": self._select, "bit_to_ring": self._bit_to_ring}[node.op](node)
        elif node.op == "linear" and node.attrs["kind"] in ("add", "sub"):
            self._sum(node)
        elif node.op == "rescale" and node.args[0] in self.public:
            self.replaced[node.id] = node.args[0]
        elif self._is_zero(node):
            self.zeros.add(node.id)
        if node.form != "float" and node.op in ("linear", "factor", "ldexp"):
            self._in_the_clear(node)

    def _bit(self, at: int) -> tuple[int | None, bool]:
        return self.bits.get(at, (at, False))

    def _either(self, node: Node) -> None:
        (a, first), (b, second) = (self._bit(x) for x in node.args)
        if a is None or b is None:
            self.bits[node.id] = (b if a is None else a, first ^ second)
        else:
            node.args = (a, b)
            if first ^ second:
                self.bits[node.id] = (node.id, True)

    def _select(self, node: Node) -> None:
        (bit, flipped), x = self._bit(node.args[0]), node.args[1]
        there = flipped ^ node.attrs["invert"]
        if x in self.zeros or (bit is None and not there):
            self._zero(node, x)
        elif bit is not None:
            node.args, node.attrs = (bit, x), {**node.attrs, "invert": there}
        elif self.g.graph[x].form != "float":
            self.replaced[node.id] = x
        else:
            node.op, node.args, node.attrs = "linear", (x,), {"kind": "reshape", "attrs": {"shape": list(node.shape)}}

    def _zero(self, node: Node, x: int) -> None:
        """Zero times what was to be selected, before it was truncated."""
        source = self.g.graph[x]
        x = source.args[0] if source.op == "rescale" else x
        node.op, node.args, node.attrs = "linear", (x,), {"kind": "scale", "attrs": {"factor": 0}}
        self.zeros.add(node.id)

    def _bit_to_ring(self, node: Node) -> None:
        bit, flipped = self._bit(node.args[0])
        one = flipped ^ node.attrs["invert"]
        if bit is None:
            self._to_float(node, torch.full, (list(node.shape), int(one)), {"dtype": torch.int64}, integer=True)
        else:
            node.args, node.attrs = (bit,), {**node.attrs, "invert": one}

    def _sum(self, node: Node) -> None:
        x, y = node.args
        same = [a for a in node.args if self.g.graph[a].form != "float" and self.g.graph[a].shape == node.shape]
        if x in self.zeros and y in self.zeros:
            self.zeros.add(node.id)
        elif y in self.zeros and x in same:
            self.replaced[node.id] = x
        elif x in self.zeros and y in same and node.attrs["kind"] == "add":
            self.replaced[node.id] = y

    def _is_zero(self, node: Node) -> bool:
        moves = node.op == "linear" and node.attrs["kind"] in (*LAYOUT, "neg", "scale", "sum")
        if moves or node.op in _KEEPS_ZERO:
            return any(a in self.zeros for a in node.args)
        return False

    def _in_the_clear(self, node: Node) -> None:
        """Computes a node whose operands became public in the clear, too."""
        xs = [self.g.graph[a] for a in node.args]
        if not any(x.id in self.public for x in xs) or any(x.owner != PUBLIC for x in xs):
            return
        values = tuple(Value(x.id, x.shape, PUBLIC) for x in xs)
        if node.op == "linear":
            whole = all(x.attrs.get("integer") for x in xs)
            self._to_float(node, linear_of_public, (node.attrs["kind"], node.attrs["attrs"], *values), {}, whole)
        else:
            factor = node.attrs["factor"] if node.op == "factor" else 2.0 ** node.attrs["bits"]
            self._to_float(node, times, (*values, factor), {}, integer=False)

    def _to_float(self, node: Node, target, args: tuple, kwargs: dict, integer: bool) -> None:
        operands = [arg.id for arg in args if isinstance(arg, Value)]
        attrs = {"target": target.__name__, "args": describe(args), "kwargs": describe(kwargs)}
        node.op, node.args, node.form, node.owner = "float", tuple(operands), "float", PUBLIC
        node.attrs, node.marks = attrs | ({"integer": True} if integer else {}), ()
        node.phase = phase_of([self.g.graph[a] for a in operands])
        self.g.calls[node.id] = FloatCall(target, args, kwargs)
        self.public.add(node.id)
