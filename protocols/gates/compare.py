"""Sign of a masked value, by digits of four bits.

Let x = m - l modulo 2^w, seen from bit `shift` up, with |x| < 2^(w-1). Then
    MSB(x) = m_{w-1} xor l_{w-1} xor [m_low < l_low]            (low: the w - 1 bits below)
The comparison of the low bits runs on digits. For each digit of l the dealer shares, by exclusive or,
the 16-bit word whose bit a is [digit >= a]. With the public digit a of m a party reads two bits of it:
    ge = [digit >= a],  lt = [digit >= a + 1] = [a < digit],  eq = ge xor lt.
(A thermometer code instead of a unit vector: the same 16 bits, and both leaves are single reads.)
Layers of fan-in four then combine the digits: the input bits are opened under fresh masks, and
    LT = lt3 ^ eq3 lt2 ^ eq3 eq2 lt1 ^ eq3 eq2 eq1 lt0,   EQ = eq3 eq2 eq1 eq0
are linear in the monomials of those masks, which the dealer shares [ABY2.0, multi-input products].

Planes of D digits are ordered [lt_0, lt_1, eq_1, ..., lt_{D-1}, eq_{D-1}]: the lowest digit needs no eq.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape, numel
from protocols.shares import Masked, MaskedBits, Role, words

DIGIT_BITS = 4
FAN_IN = 4


def digit_count(low_bits: int) -> int:
    """Digits that cover `low_bits` bits."""
    return -(-low_bits // DIGIT_BITS)


def leaf_planes(digits: int) -> int:
    """Bit planes that `digits` digits give."""
    return 2 * digits - 1


def groups(digits: int) -> list[tuple[int, int]]:
    """Splits digits (lowest first) into ceil(digits / 4) groups of even size: (first digit, count)."""
    count = -(-digits // FAN_IN)
    bounds = [digits * i // count for i in range(count + 1)]
    return [(low, high - low) for low, high in pairwise(bounds)]


def _group_planes(start: int, count: int) -> slice:
    first = 0 if start == 0 else 2 * start - 1
    return slice(first, 2 * (start + count) - 1)


class Digits:
    """The leaves of all digits, as exclusive-or shares. attrs: {"shift", "low_bits"}; local."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (Part("thermometer", "xor", (digit_count(attrs["low_bits"]), numel(shapes[0])), torch.int16),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        return {"thermometer": kernels.thermometer(masks[0].reshape(-1), attrs["low_bits"], attrs["shift"])}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        m = operands[0].m.reshape(-1)
        return kernels.leaves(m, dealt["thermometer"], attrs["low_bits"], attrs["shift"])


class TopBit:
    """Shares of m's top bit xor l's top bit. attrs: {"bit": position}; local."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (Part("top", "xor", (1, words(numel(shapes[0])))),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        return {"top": kernels.msb_plane(masks[0].reshape(-1), attrs["bit"]).unsqueeze(0)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        if not role.first:
            return dealt["top"]
        return dealt["top"] ^ kernels.msb_plane(operands[0].m.reshape(-1), attrs["bit"])


class Combine:
    """One layer of fan-in four over masked digit bits. attrs: {"digits": D}; ceil(D / 4) digits come out."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        total = sum(len(kernels.monomial_sets(count, start > 0)) for start, count in groups(attrs["digits"]))
        return (Part("monomials", "xor", (total, shapes[0][-1])),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        made = [
            kernels.monomials(masks[0][_group_planes(start, count)], count, start > 0)
            for start, count in groups(attrs["digits"])
        ]
        return {"monomials": torch.cat(made) if len(made) > 1 else made[0]}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[MaskedBits], dealt: Dealt) -> torch.Tensor:
        (bits,) = operands
        out, used = [], 0
        for start, count in groups(attrs["digits"]):
            planes, size = _group_planes(start, count), len(kernels.monomial_sets(count, start > 0))
            share = dealt["monomials"][used : used + size]
            out.append(kernels.combine(bits.hat[planes], bits.beta[planes], share, count, start > 0, role.first))
            used += size
        return torch.cat(out) if len(out) > 1 else out[0]
