"""How large values can be, and comparisons that see no more bits than that: what is proven or, by choice, measured.

Known are: what owners may encode, constants of the program, tables, bits, and results of truncations, whose operand is
below 2^62 by 2^-16 of it, or meaningless. Sums, products and what moves elements follow. Nothing is guessed: a value of which nothing
is known counts as any element of the ring, and stays that way until a truncation or a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

from protocols.gates import numel
from protocols.gates.sign import DIGIT_BITS
from protocols.linear import LAYOUT
from protocols.names import PUBLIC
from protocols.shares import RING_BITS
from securemodel.compiler.approximations import most_of_spline
from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.ir import AMONG, COMPARED, TUNED, WRAPS, Graph, Header, Mark, Node
from securemodel.compiler.ops import encoding_limit

_TRUNCATED = (1 << 62) - (1 << 46)  # so that the difference of two results, and of a constant, has no bit more than x
_BOUNDED = ("select", "window")  # whose result does not wrap where the operand does
Reach = int | None
"""The largest magnitude in units of the ring; None: any element of it."""


def _ring(most: int) -> Reach:
    """None where a number so large can leave the ring."""
    return most if most < 1 << (RING_BITS - 1) else None


@dataclass
class Reaches:
    """Walks a graph whose truncations are placed. `constants` knows the public floats; `valid`: values that are too large
    to be truncated are the user's mistake, and need not be compared as what the ring makes of them."""

    graph: Graph
    header: Header
    constants: Builder
    valid: bool = True
    found: list[Reach] = field(default_factory=list)
    wraps: list[bool] = field(default_factory=list)

    def walk(self) -> list[Reach]:
        """The reach of each node's value."""
        for node in self.graph.nodes:
            xs = [self.found[a] for a in node.args]
            marked = any(mark.name == WRAPS for mark in node.marks)
            self.wraps.append(marked or (node.op not in _BOUNDED and any(self.wraps[a] for a in node.args)))
            self.found.append(None if marked else RULES[node.op](self, node, xs) if node.op in RULES else None)
        return self.found

    def share(self, node: Node, xs: list[Reach]) -> Reach:
        frac = node.frac or 0
        if node.owner == PUBLIC:
            at = self.constants.graph[node.attrs["float"]]
            known = self.constants.public(Value(at.id, at.shape, PUBLIC))
            if known is not None and known.numel() and bool(known.isfinite().all()):
                return _ring(int(float(known.double().abs().max()) * 2.0**frac) + 1)
        return _ring(int(encoding_limit(self.header, frac) * 2.0**frac))

    def linear(self, node: Node, xs: list[Reach]) -> Reach:
        known = [x for x in xs if x is not None]
        if len(known) < len(xs):
            return None
        kind, attrs = node.attrs["kind"], node.attrs["attrs"]
        if kind in LAYOUT or kind in ("neg", "cat"):
            return max(known)
        if self.valid and any(mark.name == AMONG for mark in node.marks):
            return known[0]
        if kind in ("add", "sub"):
            return _ring(sum(known))
        times = {
            "scale": lambda: abs(attrs["factor"]),
            "index_sub": lambda: 2,
            "sum": lambda: numel(self.graph[node.args[0]].shape) // max(1, numel(node.shape)),
            "window_sum": lambda: max((b - a for a, b in zip(attrs["starts"], attrs["ends"], strict=True)), default=0),
        }[kind]()
        return _ring(times * known[0])

    def product(self, node: Node, xs: list[Reach]) -> Reach:
        x, y = xs
        if x is None or y is None:
            return None
        shapes = [self.graph[a].shape for a in node.args]
        kind = node.attrs["kind"]
        terms = {
            "mul": lambda: 1,
            "matmul": lambda: shapes[0][-1],
            "conv_transpose1d": lambda: numel(shapes[1]),
            "conv_transpose2d": lambda: numel(shapes[1]),
        }.get(kind, lambda: numel(shapes[1][1:]))()
        return _ring(terms * x * y)

    def square(self, node: Node, xs: list[Reach]) -> Reach:
        return None if xs[0] is None else _ring(xs[0] ** 2)

    def truncate(self, node: Node, xs: list[Reach]) -> Reach:
        bits = node.attrs["bits"]
        if not self.valid or self.wraps[node.args[0]]:
            return _ring(1 << (RING_BITS + 1 - bits))
        most = min(_TRUNCATED, xs[0] if xs[0] is not None else _TRUNCATED)
        return ((most + node.attrs.get("offset", 0)) >> bits) + 1

    def window(self, node: Node, xs: list[Reach]) -> Reach:
        return 1 << node.attrs["bits"]

    def spline(self, node: Node, xs: list[Reach]) -> Reach:
        """The largest value that a piece has on [-h, h], with room for arguments that are rounded."""
        if self.wraps[node.args[3]] or not self.valid:
            return None
        return _ring(most_of_spline(self.graph, node))


Rule = Callable[[Reaches, Node, list[Reach]], Reach]
_FIRST: Rule = lambda self, node, xs: xs[0]
_SECOND: Rule = lambda self, node, xs: xs[1]
_ONE: Rule = lambda self, node, xs: 1
RULES: dict[str, Rule] = {
    "share": Reaches.share,
    "linear": Reaches.linear,
    "bilinear": Reaches.product,
    "square": Reaches.square,
    "truncate": Reaches.truncate,
    "window": Reaches.window,
    "spline": Reaches.spline,
    "permute": _SECOND,
    "select": _SECOND,
    "unit": _ONE,
    "bit_to_ring": _ONE,
}
"""What is known of the results of operators; of all others, nothing."""


def fit_comparisons(
    graph: Graph,
    header: Header,
    constants: Builder,
    measured: Mapping[int, int] = MappingProxyType({}),
    most_bits: int = RING_BITS,
) -> None:
    """Gives each comparison the bits that its operand can have.

    measured: {comparison, by its number: bits} that an owner vouches for, where that is less; what it reads is then marked
    with the range that it must stay in, of up to `most_bits`. What comparisons with numbers read is marked, too, for
    whoever measures it.
    """
    valid = not any(node.attrs.get("bounded") for node in constants.graph.nodes if node.op == "rescale")
    reaches = Reaches(graph, header, constants, valid).walk()
    rounded: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "truncate":
            rounded.setdefault(node.args[0], []).append(node)
    assumed: dict[int, int] = {}
    for node in graph.nodes:
        if node.op != "is_negative":
            continue
        (x,) = node.args
        with_them = rounded.get(x, [])  # whose digits and offset the comparison may share
        least = max([1, node.attrs["rounded"] + 1, *(n.attrs["bits"] + 1 for n in with_them)])
        offsets = [abs(node.attrs["offset"]), *(n.attrs.get("offset", 0) for n in with_them)]
        shift, most = node.attrs["shift"], reaches[x]
        if most is not None:
            bits = (most + max(offsets) + (1 << shift)).bit_length()
            node.attrs["low_bits"] = min(node.attrs["low_bits"], max(least, bits - shift))
        numbers = [int(mark.source) for mark in node.marks if mark.name == COMPARED]
        graph[x].marks += tuple(Mark(COMPARED, str(number), -math.inf, math.inf) for number in numbers)
        known = [measured[number] for number in numbers if number in measured]
        if known and len(known) == len(numbers):
            cut = max([node.attrs["rounded"], *(n.attrs["bits"] for n in with_them if "offset" in n.attrs)])
            low_bits = max(least, whole_digits(max(known) - shift, shift, cut))
            if low_bits < node.attrs["low_bits"] and shift + low_bits <= most_bits:
                node.attrs["low_bits"] = low_bits
                assumed[x] = min(assumed.get(x, RING_BITS), shift + low_bits)
    for x, bits in assumed.items():
        frac = graph[x].frac or 0
        graph[x].marks += (Mark(TUNED, graph[x].source, -(2.0 ** (bits - frac)), 2.0 ** (bits - frac), frac=frac),)


def whole_digits(low_bits: int, shift: int, rounded: int) -> int:
    """As many bits as cost no more than these: up to a whole digit, but for one where the value's opening takes a byte less."""
    short = -rounded % DIGIT_BITS if shift == 0 else 0
    most = -(-(low_bits + short) // DIGIT_BITS) * DIGIT_BITS - short
    return most - 1 if (shift + most) % 8 == 0 and most > low_bits else most


def tuned_limits(graph: Graph) -> tuple[tuple[int, int], ...]:
    """(node, bits) of the values that are marked with a measured range, once masks are placed."""
    widths = ((node.id, [_bits(mark) for mark in node.marks if is_width(mark)]) for node in graph.nodes)
    return tuple((node, min(bits)) for node, bits in widths if bits)


def _bits(mark: Mark) -> int:
    return round(math.log2(-cast(float, mark.low))) + mark.frac


def is_width(mark: Mark) -> bool:
    """Whether a mark is the measured range of what is compared, truncated or revealed, and not the sign it must have."""
    ends = (mark.low, mark.high)
    return mark.name == TUNED and all(end is not None and end and math.isfinite(end) for end in ends)
