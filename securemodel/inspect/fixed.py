"""A program in fixed point in the clear: one party that has everything, with masks of zero.

With masks of zero a gate computes what it computes on secrets, so its own code is the definition here too. With exact
rounding this is the specification: the parties get the same numbers, bit for bit. Beside
each ring element goes the same number as float64, which does not wrap: where the two part, a value left the ring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch

from protocols import kernels
from protocols.bilinear import bilinear, real_bilinear
from protocols.fixedpoint import encode
from protocols.gates import GATES, REMASKED, SIGNED
from protocols.gates.beyond import BITS as BEYOND_BITS
from protocols.gates.beyond import factors
from protocols.gates.sign import opened_bits
from protocols.linear import LINEAR
from protocols.names import PUBLIC
from protocols.shares import Masked, MaskedBits, Order, Role, part_of_bits, window
from securemodel.compiler.ir import PHASES, WRAPS, Node, Phase
from securemodel.compiler.ops import OUTPUTS
from securemodel.compiler.positions import take_rows
from securemodel.engines.clear import ClearSide, revealed
from securemodel.engines.masked.dealing import last_uses
from securemodel.program import Program

_ALONE = Role(0, 1)
_LEAVE_OUT = ("select", "select_truncated", "window")


def fixed_point(program: Program, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of one run on inputs of the compiled shapes, in the clear; with exact rounding, what the parties get.

    Raises InputError when a weight or an input cannot be encoded.
    """
    clear = {name: ClearSide(program, name) for name in (*program.parties, *program.contributors)}
    for side in clear.values():
        side.set_model(program.model)
        side.set_inputs(inputs)
    walker, outputs = FixedPoint(program, clear), {}
    for phase in PHASES:
        for node, value, _ in walker.walk(phase):
            if node.op in OUTPUTS:
                outputs[node.attrs["index"]] = revealed(node, value.ring)
    return [outputs[index] for index in range(len(program.header.results))]


@dataclass(frozen=True, repr=False)
class Both:
    """A value in the ring, and without wrapping: `wide` counts in units of the ring; for bits, it is one per element.

    `wide` is None for bits whose meaning only a later operator gives them. `wraps`: it may leave the ring, and is left
    out by a later operator where it does.
    """

    ring: torch.Tensor
    wide: torch.Tensor | None
    wraps: bool = False

    @property
    def number(self) -> torch.Tensor:
        """`wide`, of a value that has one."""
        return cast(torch.Tensor, self.wide)


class FixedPoint:
    """Walks a program in the clear; the owners' floats come from their clear sides."""

    def __init__(self, program: Program, clear: Mapping[str, ClearSide]) -> None:
        self._program, self._graph, self._clear = program, program.graph, clear
        self._loaded: dict[int, Both] = {}
        self._step = -1
        self.kept: dict[str, Both] = {}
        """What the next run reads."""
        self._signs: dict[int, torch.Tensor] = {}
        self._done = {phase: last_uses(self._graph, phase) for phase in PHASES}

    def walk(self, phase: Phase) -> Iterator[tuple[Node, Both, list[Both]]]:
        """(node, its value, its operands' values) for each node of a phase that is not computed by its owner alone.

        Raises InputError when a weight or an input cannot be encoded.
        """
        env, kept = {} if phase == "load" else dict(self._loaded), {}
        self._step = -1 if phase == "load" else self._step + 1
        for node in self._graph.nodes:
            if node.phase != phase or (node.form == "float" and node.op != "reveal"):
                continue
            operands = [env[a] for a in node.args if a in env]
            value = VALUES[node.op](self, node, operands)
            wraps = any(mark.name == WRAPS for mark in node.marks) or any(x.wraps for x in operands)
            env[node.id] = replace(value, wraps=wraps and node.op not in _LEAVE_OUT)
            if node.op == "keep":
                kept[node.attrs["name"]] = env[node.id]
            yield node, env[node.id], operands
            for done in () if phase == "load" else self._done[phase].get(node.id, ()):
                env.pop(done, None)
        self.kept.update(kept)
        if phase == "load":
            self._loaded = env

    def _encoded(self, node: Node, operands: list[Both]) -> Both:
        owner = self._graph[node.args[0]].owner
        ring = self._clear[self._program.parties[0] if owner == PUBLIC else cast(str, owner)].encoded(node)
        return Both(ring, ring.double())

    def _client_input(self, node: Node, operands: list[Both]) -> Both:
        ring = self._clear[self._program.parties[0]].encoded_input(node)
        return Both(ring, ring.double())

    def _rows(self, node: Node, operands: list[Both]) -> Both:
        take = lambda table: take_rows(self._graph, node, table, self._step)
        return Both(take(operands[0].ring), take(operands[0].number))

    def _part(self, node: Node, operands: list[Both]) -> Both:
        wide, start = operands[0].wide, 64 * node.attrs["start"]
        known = None if wide is None else wide[start : start + 64 * node.shape[1]]
        return Both(part_of_bits(operands[0].ring, node.attrs, node.shape), known)

    def _window(self, node: Node, operands: list[Both]) -> Both:
        ring = window(operands[0].ring, node.attrs)
        return Both(ring, ring.double())

    def _linear(self, node: Node, operands: list[Both]) -> Both:
        function, attrs = LINEAR[node.attrs["kind"]], node.attrs["attrs"]
        return Both(function(*[x.ring for x in operands], **attrs), function(*[x.wide for x in operands], **attrs))

    def _owned_layer(self, node: Node, operands: list[Both]) -> Both:
        side = self._clear[cast(str, node.owner)]
        limit, what = node.attrs["weight_limit"], side.describe(node.args[1])
        weights = encode(side.value(node.args[1]), node.attrs["weight_frac"], limit, what)
        return _product(node, operands[0], Both(weights, weights.double()))

    def _of_gate(self, node: Node, operands: list[Both]) -> Both:
        ring, wide = self._gate(node, operands), WIDE[node.op]
        return Both(ring, wide(node, operands) if wide else None)

    def _gate(self, node: Node, operands: list[Both]) -> torch.Tensor:
        gate = GATES[node.op]
        masks = [self._mask(a, x.ring) for a, x in zip(node.args, operands, strict=True)]
        dealt = gate.deal(node.attrs, masks)
        if signed := SIGNED.get(node.op):
            self._signs[node.id] = signed.sign(node.attrs, masks, dealt)
        given = [self._form(a, x.ring) for a, x in zip(node.args, operands, strict=True)]
        made = gate.evaluate(_ALONE, node.attrs, given, dealt)
        return (made.m if node.op in REMASKED else made).view(node.shape)

    def _mask(self, node_id: int, ring: torch.Tensor) -> torch.Tensor:
        """The mask that hides nothing, or the sign that a lookup gave its value."""
        if self._graph[node_id].form == "order":
            return torch.arange(self._graph[node_id].attrs["size"])
        return self._signs.get(node_id, torch.zeros_like(ring))

    def _form(self, node_id: int, ring: torch.Tensor) -> Masked | MaskedBits | Order | torch.Tensor:
        form = self._graph[node_id].form
        if form == "order":
            return Order(ring, self._mask(node_id, ring))
        if form in ("masked", "window"):
            return Masked(ring, torch.zeros_like(ring))
        return MaskedBits(ring, torch.zeros_like(ring)) if form == "masked_bits" else ring


Compute = Callable[[FixedPoint, Node, list[Both]], Both]
VALUES: dict[str, Compute] = {
    **dict.fromkeys(("input", "own", "encode", "positions"), FixedPoint._encoded),
    **dict.fromkeys(("public_masked", "public_additive", "to_additive", "mask"), lambda at, n, xs: xs[0]),
    "mask_bits": lambda at, n, xs: replace(xs[0], ring=opened_bits(n.attrs, xs[0].ring)),
    **dict.fromkeys(("keep", *OUTPUTS), lambda at, n, xs: xs[0]),
    "client_input": FixedPoint._client_input,
    "state": lambda at, n, xs: at.kept[n.attrs["name"]],
    "linear": FixedPoint._linear,
    "rows": FixedPoint._rows,
    "part": FixedPoint._part,
    "window": FixedPoint._window,
    "xor": lambda at, n, xs: Both(xs[0].ring ^ xs[1].ring, _xor_wide([x.wide for x in xs])),
    "bilinear_public": lambda at, n, xs: _product(n, *(xs[::-1] if n.attrs["swapped"] else xs)),
    "owned_layer": FixedPoint._owned_layer,
    **dict.fromkeys(GATES, FixedPoint._of_gate),
}
"""The value of each operator that is not computed by its owner alone."""


# ---- the same operators on numbers that do not wrap
def _top_bit(node: Node, operands: list[Both]) -> torch.Tensor:
    signs = [x.number.reshape(-1) + offset < 0 for x, offset in zip(operands, node.attrs["offset"], strict=True)]
    return torch.cat([torch.nn.functional.pad(sign, (0, -sign.numel() % 64)) for sign in signs])


def _xor_wide(wides: list[torch.Tensor | None]) -> torch.Tensor | None:
    """A sign is the exclusive or of a top bit and a carry, which has no meaning alone: the top bit knows the sign."""
    known = [wide for wide in wides if wide is not None]
    return known[0] if len(known) == 1 else None if not known else known[0] ^ known[1]


def _real_product(node: Node, x: Both, y: Both) -> torch.Tensor:
    return real_bilinear(node.attrs["kind"], x.number, y.number, node.attrs["attrs"])


def _product(node: Node, x: Both, y: Both) -> Both:
    return Both(bilinear(node.attrs["kind"], x.ring, y.ring, node.attrs["attrs"]), _real_product(node, x, y))


def _bit(node: Node, bits: Both) -> torch.Tensor:
    """A bit for each element, as 0.0 or 1.0, inverted where the node asks for it."""
    wide = _one_bit_each(bits, torch.Size(node.shape).numel())
    return (wide ^ node.attrs["invert"]).double().reshape(node.shape)


def _one_bit_each(bits: Both, count: int) -> torch.Tensor:
    wide = bits.wide
    if wide is None:
        wide = (bits.ring.reshape(-1, 1) >> torch.arange(64)).reshape(-1) & 1 == 1
    return wide[:count]


def _truncated(node: Node, x: Both) -> torch.Tensor:
    return ((x.number + node.attrs.get("offset", 0)) * 2.0 ** -node.attrs["bits"]).floor()


def _lookup(node: Node, operands: list[Both]) -> torch.Tensor:
    """Tables repeat, see docs/protocol.md, section 10."""
    table = torch.tensor(node.attrs["table"])
    index = operands[0].number.long()
    if "rest" in node.attrs:
        here = kernels.weighted_around(
            index.reshape(-1), _first(index.numel(), table.shape[1] // kernels.PARTS), table, node.attrs["rest"],
            node.attrs["cuts"],
        )  # fmt: skip
        return here.view(-1, *index.shape).double()
    entries = table.double()[:, index % table.shape[1]]
    if len(operands) == 1:
        return entries
    (c0, c1, c2), t = entries, operands[1].number
    return torch.stack([c0 + c1 * t + c2 * t * t, c1 + 2 * c2 * t, c2])


def _first(count: int, size: int) -> torch.Tensor:
    """Unit vectors of 0."""
    return torch.eye(1, size, dtype=torch.int64).expand(count, size)


def _unit(node: Node, operands: list[Both]) -> torch.Tensor:
    size = node.attrs["size"]
    return torch.nn.functional.one_hot(operands[0].number.long() % size, size).double()


def _spline(node: Node, operands: list[Both]) -> torch.Tensor:
    left = float(1 << node.attrs["rest"] >> 1) if "rest" in node.attrs else 0.0
    square = math.floor(left * left * 2.0 ** -node.attrs["drop"] + 0.5)
    values = [
        y.number.view(node.shape) * 2.0**shift for y, shift in zip(operands[:3], node.attrs["shifts"], strict=True)
    ]
    return values[0] + values[1] * left + values[2] * square


def _beyond(node: Node, operands: list[Both]) -> torch.Tensor:
    """The sums of what values are beyond their range, by factors, modulo 2^8."""
    x, (bits, checks) = operands[0].number.reshape(-1), (node.attrs["bit"], node.attrs["checks"])
    high = ((x + node.attrs["offset"]) * 2.0**-bits).floor()
    sign = _one_bit_each(operands[1], x.numel()).double()
    each = torch.remainder(high + sign, 1 << BEYOND_BITS).nan_to_num().long()
    return torch.remainder((factors(x.numel(), checks, node.attrs["key"], x.device) * each).sum(1), 256).double()


WIDE: dict[str, Callable[[Node, list[Both]], torch.Tensor] | None] = {
    "bilinear": lambda n, xs: _real_product(n, *xs),
    "square": lambda n, xs: xs[0].number.square(),
    "truncate": lambda n, xs: _truncated(n, xs[0]),
    "multiply_truncated": lambda n, xs: xs[0].number * _truncated(n, xs[1]),
    "shift": lambda n, xs: _truncated(n, xs[0]),
    "select": lambda n, xs: _bit(n, xs[0]) * xs[1].number,
    "select_truncated": lambda n, xs: _bit(n, xs[0]) * (_truncated(n, xs[1]) + n.attrs.get("added", 0)),
    "bit_to_ring": lambda n, xs: _bit(n, xs[0]),
    "lookup": _lookup,
    "lookup_shared": _lookup,
    "unit": _unit,
    "beyond": _beyond,
    "permute": lambda n, xs: xs[1].number.index_select(0, xs[0].ring),
    "spline": _spline,
    "top_bit": _top_bit,
    **dict.fromkeys(("digits", "combine", "conjunction"), None),
}
"""The value of each gate in float64; None for parts of bits."""
