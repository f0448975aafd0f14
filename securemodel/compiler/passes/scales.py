"""Gives every secret its number of fractional bits and places truncations where products need them.

A product of two values of f fractional bits has 2f. It stays so through sums, maxima and reveals; it is
truncated to f where the next product, square or activation reads it. A small public factor adds up to 2f
fractional bits instead of losing its last digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from protocols.shares import RING_BITS
from securemodel.compiler.approximations import PARTS, most_of_spline
from securemodel.compiler.ir import MEASURED, Graph, Header, Mark, Node, only_moves
from securemodel.compiler.ops import frac_of
from securemodel.compiler.passes.fit import result_number

_BESIDE_FLOATS = 40  # fractional bits that leave an owner's number, whose size nobody knows yet, 22 bits of range


@dataclass
class _Scaled:
    """A value with its fractional bits."""

    id: int
    frac: int


def dyadic(factor: float, frac_bits: int) -> tuple[int, int]:
    """(n, b) with factor about n 2^-b: n has up to frac_bits significant bits where |factor| < 1, so that a product
    by n takes no more range than one by a number of order one; b <= 2 frac_bits.

    The relative error is at most 2^-frac_bits for 2^-frac_bits <= |factor| < 1, and 2^-(frac_bits + 1) / |factor|
    above. Integers and powers of two are exact, the latter down to 2^(-2 frac_bits).
    """
    bits = frac_bits + min(frac_bits, max(0, -math.frexp(factor)[1]))
    numerator = round(factor * 2.0**bits)
    while bits and numerator % 2 == 0:
        numerator, bits = numerator // 2, bits - 1
    return numerator, bits


@dataclass
class _Pass:
    old: Graph
    frac_bits: int
    width: int
    exact: bool
    new: Graph = field(default_factory=Graph)
    env: dict[int, _Scaled] = field(default_factory=dict)
    shares: dict[tuple[int, int], int] = field(default_factory=dict)
    hidden: dict[tuple[int, int], int] = field(default_factory=dict)
    truncated: dict[tuple[int, int, int], int] = field(default_factory=dict)
    read: dict[tuple[int, int], int] = field(default_factory=dict)

    def _add(self, like: Node, op: str, args, shape, form="secret", frac=None, **attrs) -> int:
        return self.new.add(op, args, shape, form, frac=frac, attrs=attrs, source=like.source).id

    def natural(self, node_id: int) -> int:
        """The fractional bits an operand has, or would be given as a float."""
        node = self.old[node_id]
        if node.form == "float":
            return 0 if node.attrs.get("integer") else self.frac_bits
        return self.env[node_id].frac

    def at(self, node_id: int, frac: int) -> int:
        """The value with exactly `frac` fractional bits, at least frac_bits; truncated if it has more."""
        node = self.old[node_id]
        if node.form == "float":
            return self.share(node, frac)
        have = self.env[node_id]
        have = self._cut(node, frac) if have.frac > frac else have
        if have.frac == frac:
            return self.read_as(have)
        return self.scaled(node, have.id, 2 ** (frac - have.frac), frac)

    def read_as(self, value: _Scaled) -> int:
        """The value's ring elements with its fractional bits, where they were made with others."""
        new = self.new[value.id]
        if new.frac == value.frac:
            return value.id
        key = (value.id, value.frac)
        if key not in self.read:
            attrs = {"kind": "ldexp", "attrs": {"bits": value.frac - frac_of(new)}}
            self.read[key] = self._add(new, "linear", [value.id], new.shape, frac=value.frac, **attrs)
        return self.read[key]

    def scaled(self, like: Node, value: int, factor: int, frac: int) -> int:
        """A whole multiple of a value's ring elements, read with `frac` fractional bits."""
        bits = frac - frac_of(self.new[value])
        attrs = {"kind": "scale", "attrs": {"factor": factor, **({"bits": bits} if bits else {})}}
        return self._add(like, "linear", [value], like.shape, frac=frac, **attrs)

    def share(self, node: Node, frac: int) -> int:
        """A float brought into the ring."""
        if (node.id, frac) not in self.shares:
            new_id = self._add(node, "share", (), node.shape, frac=frac, float=node.id)
            self.new[new_id].owner = node.owner
            self.new[new_id].phase = node.phase
            self.shares[node.id, frac] = new_id
        return self.shares[node.id, frac]

    def reduced(self, node_id: int) -> _Scaled:
        """The value with at most frac_bits fractional bits."""
        node = self.old[node_id]
        if node.form == "float":
            frac = self.natural(node_id)
            return _Scaled(self.share(node, frac), frac)
        return self._cut(node, self.frac_bits)

    def _cut(self, node: Node, frac: int) -> _Scaled:
        """The value with at most so many fractional bits."""
        have = self.env[node.id]
        if have.frac <= frac:
            return _Scaled(self.read_as(have), have.frac)
        key = (have.id, have.frac, frac)
        if key not in self.truncated:
            bits = have.frac - frac
            self.truncated[key] = self._truncate(node, self.read_as(have), bits, frac, bits, self._known(node, bits))
        return _Scaled(self.truncated[key], frac)

    def _known(self, node: Node, bits: int) -> int:
        """How many low bits of a value show all of it to a truncation by `bits`, in whole bytes: of a spline's, or of one
        that is proven to be small."""
        have = self.env[node.id]
        if self.new[have.id].op == "spline":
            most = most_of_spline(self.new, self.new[have.id])
        elif (known := self._most(node)) is not None:
            most = math.ceil(math.ldexp(known, have.frac))
        else:
            return RING_BITS
        most += (1 << bits) // 2 if self.exact else 0
        return min(RING_BITS, -(-(most.bit_length() + 2) // 8) * 8)

    def _most(self, node: Node) -> float | None:
        """What a lowering function says that the magnitude of a value is at most, before elements are moved; None: nothing."""
        while only_moves(node):
            node = self.old[node.args[0]]
        return node.attrs.get("most") if node.op == "ldexp" else None

    def _truncate(self, like: Node, x: int, bits: int, frac: int, rounded: int, modulo: int = RING_BITS) -> int:
        """x / 2^bits: the floor of x rounded to the nearest multiple of 2^rounded; not exact: floor, or one more.

        `modulo`: how many low bits of x are looked at, where it is that small.
        """
        attrs = {"bits": bits, "offset": (1 << rounded) // 2} if self.exact else {"bits": bits}
        attrs |= {"modulo": modulo} if modulo < RING_BITS else {}
        self._measured(x, like.id)
        return self._add(like, "truncate", [x], like.shape, frac=frac, **attrs)

    def _measured(self, at: int, number: int) -> None:
        """Marks a value with its number, for whoever measures it."""
        known = Mark(MEASURED, str(number), -math.inf, math.inf, frac=frac_of(self.new[at]))
        self.new[at].marks += () if known in self.new[at].marks else (known,)

    def client_input(self, node: Node) -> _Scaled:
        frac = 0 if node.attrs.get("integer") else self.frac_bits
        return _Scaled(self._add(node, "client_input", (), node.shape, frac=frac, name=node.attrs["name"]), frac)

    def state(self, node: Node) -> _Scaled:
        frac = node.attrs["frac"]
        return _Scaled(self._add(node, "state", (), node.shape, frac=frac, name=node.attrs["name"]), frac)

    def keep(self, node: Node) -> _Scaled:
        """Exactly as many fractional bits as the next run reads."""
        (value,), frac = node.args, node.attrs["frac"]
        if self.old[value].form != "float" and self.env[value].frac > frac:
            at = self._cut(self.old[value], frac).id
        else:
            at = self.at(value, frac)
        new_id = self._add(
            node, "keep", [at], node.shape, frac=frac, name=node.attrs["name"], start=node.attrs["start"]
        )
        return _Scaled(new_id, frac)

    def linear(self, node: Node) -> _Scaled:
        frac = self._common_frac(node.args)
        args = [self.at(a, frac) for a in node.args]
        return _Scaled(self._add(node, "linear", args, node.shape, frac=frac, **node.attrs), frac)

    def _common_frac(self, args: tuple[int, ...]) -> int:
        """The fractional bits of a sum. What has many does not take range from what has fewer, or from a float."""
        secret = {self.env[a].frac for a in args if self.old[a].form != "float"}
        if len(secret) == 1 and all(self.old[a].form != "float" for a in args):
            return max(secret)
        most = max(2 * self.frac_bits, _BESIDE_FLOATS if len(secret) == 1 else 0)
        if any(self._wide(a) for a in args):
            most = 3 * self.frac_bits  # a bias, beside a product with weights
        return max(n if n <= most else self.frac_bits for n in map(self.natural, args))

    def _wide(self, node_id: int) -> bool:
        """Whether a value is a state with more fractional bits than others and not large, as it is or with its elements
        moved."""
        node = self.old[node_id]
        if only_moves(node):
            return self._wide(node.args[0])
        return node.op == "state" and node.attrs["frac"] > self.frac_bits and not node.attrs["large"]

    def _factors(self, node: Node) -> tuple[_Scaled, _Scaled]:
        """The operands of a product: cut to frac_bits, but for one that is wide, which takes the other's place."""
        x, y = node.args
        if self._wide(x) and not self._wide(y):
            return self._whole(x), self.reduced(y)
        if self._wide(y) and not self._wide(x):
            return self.reduced(x), self._whole(y)
        return self.reduced(x), self.reduced(y)

    def _whole(self, node_id: int) -> _Scaled:
        have = self.env[node_id]
        return _Scaled(self.read_as(have), have.frac)

    def _small_product(self, node: Node) -> _Scaled | None:
        """A product with a small public number, which has half as many fractional bits more, cut to 2 frac_bits; or None."""
        small = [a for a in node.args if self.old[a].attrs.get("small")]
        other = [a for a in node.args if a not in small]
        if len(small) != 1 or self.old[other[0]].form == "float" or self.env[other[0]].frac != 2 * self.frac_bits:
            return None
        frac = self.frac_bits + self.frac_bits // 2
        at = {small[0]: self.share(self.old[small[0]], frac), other[0]: self._whole(other[0]).id}
        product = self._add(
            node, "bilinear", [at[a] for a in node.args], node.shape, frac=2 * self.frac_bits + frac, **node.attrs
        )
        cut = self._truncate(node, product, frac, 2 * self.frac_bits, frac)
        return _Scaled(cut, 2 * self.frac_bits)

    def bilinear(self, node: Node) -> _Scaled:
        if product := self._small_product(node):
            return product
        x, y = self._factors(node)
        new_id = self._add(node, "bilinear", [x.id, y.id], node.shape, frac=x.frac + y.frac, **node.attrs)
        return _Scaled(new_id, x.frac + y.frac)

    def square(self, node: Node) -> _Scaled:
        x = self.reduced(node.args[0])
        return _Scaled(self._add(node, "square", [x.id], node.shape, frac=2 * x.frac), 2 * x.frac)

    def rescale(self, node: Node) -> _Scaled:
        (x,) = node.args
        if "double" in node.attrs:
            return self._cut(self.old[x], 2 * self.frac_bits)
        if "bounded" in node.attrs and self.natural(x) < 2 * self.frac_bits:
            bits = self.frac_bits
            wide = self.at(x, 2 * bits)
            return _Scaled(self._truncate(node, wide, bits, bits, bits), bits)
        return self.reduced(x)

    def factor(self, node: Node) -> _Scaled:
        numerator, bits = dyadic(node.attrs["factor"], self.frac_bits)
        have = self.natural(node.args[0])
        most = (3 if abs(numerator) == 1 else 2) * self.frac_bits
        x = _Scaled(self.at(node.args[0], have), have) if have + bits <= most else self.reduced(node.args[0])
        frac = x.frac + bits
        return _Scaled(x.id if numerator == 1 else self.scaled(node, x.id, numerator, frac), frac)

    def ldexp(self, node: Node) -> _Scaled:
        x = self.natural(node.args[0])
        frac = max(x, node.attrs["bits"])
        return _Scaled(
            self.at(node.args[0], frac) if frac > x else self.env[node.args[0]].id, frac - node.attrs["bits"]
        )

    def index(self, node: Node) -> _Scaled:
        frac = max(self.frac_bits, self.natural(node.args[0]))
        step_bits = node.attrs["step_bits"]
        bits = frac - step_bits
        rounded = frac - self.frac_bits if node.attrs.get("floor") else bits
        return _Scaled(self._truncate(node, self.at(node.args[0], frac), bits, step_bits, rounded), 0)

    def window(self, node: Node) -> _Scaled:
        """A number at frac_bits as a place in a table that repeats: the index of an entry, and what is left below it."""
        bits = self.frac_bits - node.attrs["step_bits"] + node.attrs["size"].bit_length()
        within = self.frac_bits + RING_BITS - bits
        frac = min(max(self.frac_bits, self.natural(node.args[0])), within)
        attrs = {"shift": frac - self.frac_bits, "bits": bits}
        new_id = self._add(node, "window", [self.at(node.args[0], frac)], node.shape, frac=self.frac_bits, **attrs)
        return _Scaled(new_id, self.frac_bits)

    def lookup(self, node: Node) -> _Scaled:
        index, *t = node.args
        args = [self.env[index].id, *(self.at(a, self.frac_bits) for a in t)]
        attrs = dict(node.attrs)
        if "cuts" in attrs:
            attrs["rest"] = self.new[args[0]].attrs["bits"] - (len(attrs["table"][0]) // PARTS).bit_length() + 1
        return _Scaled(self._add(node, "lookup", args, node.shape, frac=0, **attrs), 0)

    def unit(self, node: Node) -> _Scaled:
        return _Scaled(self._add(node, "unit", [self.at(node.args[0], 0)], node.shape, frac=0, **node.attrs), 0)

    def permute(self, node: Node) -> _Scaled:
        x, frac = node.args[1], self.natural(node.args[1])
        args = [self._positions(self.old[node.args[0]], self.old[x].shape[0]), self.at(x, frac)]
        return _Scaled(self._add(node, "permute", args, node.shape, frac=frac), frac)

    def _positions(self, node: Node, size: int) -> int:
        """An owner's positions among `size` rows, which are hidden once."""
        if (node.id, size) not in self.hidden:
            new_id = self._add(node, "positions", (), node.shape, float=node.id, size=size)
            self.new[new_id].owner, self.new[new_id].phase = node.owner, node.phase
            self.hidden[node.id, size] = new_id
        return self.hidden[node.id, size]

    def spline(self, node: Node) -> _Scaled:
        *coefficients, t, signed = node.args
        at = self.env[t].id if self.old[t].op == "window" else self.at(t, self.frac_bits)
        args = [*(self.env[a].id for a in coefficients), at, self.env[signed].id]
        rest = {name: value for name, value in node.attrs.items() if name != "frac"}
        frac, lookup = node.attrs["frac"], self.new[args[-1]]
        if "rest" in lookup.attrs:
            rest["rest"] = lookup.attrs["rest"]
        return _Scaled(self._add(node, "spline", args, node.shape, frac=frac, **rest), frac)

    def is_negative(self, node: Node) -> _Scaled:
        frac = self.natural(node.args[0])
        shift = max(0, frac - node.attrs.get("grid_bits", self.frac_bits))
        known = node.attrs["below"] + frac - shift if "below" in node.attrs else self.width - 1
        low_bits = max(1, min(63 - shift, known))
        rounded = 0
        if self.exact:
            rounded = shift if node.attrs.get("rounded") else 0
            shift, low_bits = 0, shift + low_bits
        one = 1 << (rounded + shift)
        offset = (1 << rounded) // 2 - (one if node.attrs.get("or_zero") else 0)
        attrs = {"shift": shift, "low_bits": low_bits, "rounded": rounded, "offset": offset}
        return _Scaled(self._add(node, "is_negative", [self.at(node.args[0], frac)], node.shape, "bit", **attrs), 0)

    def of_bits(self, node: Node) -> _Scaled:
        args = [self.env[a].id for a in node.args]
        return _Scaled(self._add(node, node.op, args, node.shape, "bit", **node.attrs), 0)

    def select(self, node: Node) -> _Scaled:
        bit, x = self.env[node.args[0]], node.args[1]
        frac = self.natural(x)
        chosen = self._add(node, "select", [bit.id, self.at(x, frac)], node.shape, frac=frac, **node.attrs)
        return _Scaled(chosen, frac)

    def bit_to_ring(self, node: Node) -> _Scaled:
        args = [self.env[node.args[0]].id]
        rest = {"frac": 0, "attrs": node.attrs, "source": node.source}
        return _Scaled(self.new.add("bit_to_ring", args, node.shape, "secret", **rest).id, 0)


RULES: dict[str, Callable[[_Pass, Node], _Scaled]] = {
    "client_input": _Pass.client_input,
    "state": _Pass.state,
    "keep": _Pass.keep,
    "linear": _Pass.linear,
    "bilinear": _Pass.bilinear,
    "square": _Pass.square,
    "rescale": _Pass.rescale,
    "factor": _Pass.factor,
    "ldexp": _Pass.ldexp,
    "index": _Pass.index,
    "window": _Pass.window,
    "lookup": _Pass.lookup,
    "unit": _Pass.unit,
    "permute": _Pass.permute,
    "spline": _Pass.spline,
    "is_negative": _Pass.is_negative,
    "either": _Pass.of_bits,
    "all_of": _Pass.of_bits,
    "select": _Pass.select,
    "bit_to_ring": _Pass.bit_to_ring,
}
"""The operators of a lowered graph's secrets: for each, how its operands are scaled and what the result has."""


def place_truncations(
    graph: Graph, outputs: Sequence[int], dtypes: Sequence[str], replaced: dict[int, int], header: Header
) -> Graph:
    """A graph of secrets with known fractional bits, `share` nodes for floats and `reveal` nodes for outputs, or `client_output`.

    `replaced` are nodes that others took the place of, and these.
    """
    scales = _Pass(graph, header.frac_bits, header.width, header.rounding == "exact")
    for node in graph.nodes:
        if node.id in replaced:
            scales.env[node.id] = scales.env[replaced[node.id]]
        elif node.form != "float":
            scales.env[node.id] = RULES[node.op](scales, node)
        if node.marks and node.form != "float":
            scaled = scales.env[node.id]
            scales.new[scaled.id].marks += tuple(replace(mark, frac=scaled.frac) for mark in node.marks)
    for index, (output, dtype, to) in enumerate(zip(outputs, dtypes, header.outputs, strict=True)):
        frac, attrs = scales.natural(output), {"index": index, "dtype": dtype}
        value = scales.at(output, frac)
        if header.is_stranger(to):
            scales._add(graph[output], "client_output", [value], graph[output].shape, frac=frac, **attrs)
            continue
        revealed = scales._add(graph[output], "reveal", [value], graph[output].shape, "float", frac, **attrs)
        scales.new[revealed].owner = to
        scales._measured(revealed, result_number(index))
    return scales.new
