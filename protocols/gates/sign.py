"""Sign of a masked value, by digits of four bits.

Let x = m - l modulo 2^w, seen from bit `shift` up, with |x| < 2^(w-1). Then
    MSB(x) = m_{w-1} xor l_{w-1} xor [m_low < l_low]            (low: the w - 1 bits below)
The comparison of the low bits runs on digits. For each digit of l the dealer shares, by exclusive or,
the 16-bit word whose bit a is [digit >= a]. With the public digit a of m a party reads two bits of it:
    ge = [digit >= a],  lt = [digit >= a + 1] = [a < digit],  eq = ge xor lt.
(A thermometer code instead of a unit vector: the same 16 bits, and both leaves are single reads.)
Layers of fan-in four then combine the digits:
    LT = lt3 ^ eq3 lt2 ^ eq3 eq2 lt1 ^ eq3 eq2 eq1 lt0,   EQ = eq3 eq2 eq1 eq0
The bits that are multiplied are opened under fresh masks, and their products are linear in the monomials of those masks,
which the dealer shares [ABY2.0, multi-input products]. lt3 is no factor: each party adds its share of it.

Planes of D digits are ordered [lt_0, lt_1, eq_1, ..., lt_{D-1}, eq_{D-1}]: the lowest digit needs no eq.

The carry [m mod 2^k < l mod 2^k] that a truncation by k bits needs (truncate.py) is such a comparison of few digits, and
a partial result of the sign's: their digits are grouped apart until one is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import cast

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


@cache
def groups(digits: int, apart: int = 0) -> tuple[tuple[int, int], ...]:
    """Splits digits (lowest first) into ceil(digits / 4) groups of even size: (first digit, count).

    No group has both some of the lowest `apart` digits and others. A group of one digit goes on as it is.
    """
    if apart:
        return (*groups(apart), *((apart + start, count) for start, count in groups(digits - apart)))
    count = -(-digits // FAN_IN)
    bounds = [digits * i // count for i in range(count + 1)]
    return tuple((low, high - low) for low, high in pairwise(bounds))


@cache
def opened_planes(digits: int, apart: int = 0) -> tuple[int, ...]:
    """Which of the planes of D digits a layer opens: those of groups of several digits, but for each group's highest lt."""
    return tuple(
        plane
        for start, count in groups(digits, apart)
        for plane in range(*_group_planes(start, count).indices(leaf_planes(digits)))
        if count > 1 and plane != _top_plane(start, count)
    )


def opened_bits(attrs: dict, bits: torch.Tensor) -> torch.Tensor:
    """The planes that an opening is of: all or, with the attributes of a layer, `opened_planes`."""
    if "digits" not in attrs:
        return bits
    return bits.index_select(0, _opened_index(*layer_of(attrs), bits.device))


@cache
def _opened_index(digits: int, apart: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(opened_planes(digits, apart), device=device)


def layer_of(attrs: dict) -> tuple[int, int]:
    """(digits, how many of them are apart) of a layer, or of the opening that it reads."""
    return attrs["digits"], attrs.get("apart", 0)


def _side_by_side(planes: list[torch.Tensor], dim: int = 1) -> torch.Tensor:
    return torch.cat(planes, dim) if len(planes) > 1 else planes[0]


def _monomials(start: int, count: int) -> int:
    return len(kernels.monomial_sets(count, start > 0)) if count > 1 else 0


def _group_planes(start: int, count: int) -> slice:
    first = 0 if start == 0 else 2 * start - 1
    return slice(first, 2 * (start + count) - 1)


def _top_plane(start: int, count: int) -> int:
    """The lt of a group's highest digit."""
    return max(0, 2 * (start + count) - 3)


def _distinct(attrs: dict, count: int) -> tuple[int, ...]:
    """The first operand of each mask."""
    return tuple(sorted(set(attrs["of"]))) if "of" in attrs else tuple(range(count))


class Digits:
    """The leaves of all digits of one or several x + offset, as exclusive-or shares; local.

    attrs: {"low_bits", and a list with one number for each operand: "shift", "offset"}. A negative shift leaves the lowest
    digit, or more, without bits. The planes of the operands stand side by side, each from a word of its own on. Where
    operands have one mask, as x and x less a public number, "of" has the place of the first of them for each: its word is
    dealt once. A party reads other bits of the same share, and adds nothing to what others see.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        count = sum(numel(shapes[i]) for i in _distinct(attrs, len(shapes)))
        return (Part("thermometer", "xor", (digit_count(attrs["low_bits"]), count), torch.int16),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        dealt = [
            kernels.thermometer(masks[i], attrs["low_bits"], attrs["shift"][i]) for i in _distinct(attrs, len(masks))
        ]
        return {"thermometer": _side_by_side(dealt)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        values, distinct = [x.m for x in operands], _distinct(attrs, len(operands))
        parts = dict(
            zip(distinct, dealt["thermometer"].split([values[i].numel() for i in distinct], dim=1), strict=True)
        )
        thermometers = [parts[i] for i in attrs.get("of", distinct)]
        return _side_by_side(
            [
                kernels.leaves(m, thermometer, attrs["low_bits"], shift, offset)
                for m, thermometer, shift, offset in zip(
                    values, thermometers, attrs["shift"], attrs["offset"], strict=True
                )
            ]
        )


class TopBit:
    """Shares of the top bit of one or several m + offset xor l's top bit; local.

    attrs, with one number for each operand: {"bit": positions, "offset"}. The bits of the operands stand side by side.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (Part("top", "xor", (1, sum(words(numel(x)) for x in shapes))),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        planes = [kernels.msb_plane(mask, bit) for mask, bit in zip(masks, attrs["bit"], strict=True)]
        return {"top": _side_by_side(planes, 0).unsqueeze(0)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        if not role.public:
            return dealt["top"]
        seen = zip(operands, attrs["bit"], attrs["offset"], strict=True)
        return dealt["top"] ^ _side_by_side([kernels.msb_plane(x.m, bit, offset) for x, bit, offset in seen], 0)


class Combine:
    """One layer of fan-in four over digits. attrs: {"digits": D, "apart": 0}, see `groups`.

    Operands: those of the planes that are opened (`opened_planes`), masked, and shares of all planes.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        total = sum(_monomials(start, count) for start, count in groups(*layer_of(attrs)))
        return (Part("monomials", "xor", (total, shapes[0][-1])),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        return {"monomials": kernels.monomials_layer(masks[0], groups(*layer_of(attrs)))}

    def evaluate(
        self, role: Role, attrs: dict, operands: Sequence[MaskedBits | torch.Tensor], dealt: Dealt
    ) -> torch.Tensor:
        opened, bits = cast(MaskedBits, operands[0]), cast(torch.Tensor, operands[1])
        layout = groups(*layer_of(attrs))
        return kernels.combine_layer(opened.hat, opened.beta, dealt["monomials"], bits, layout, role.public)
