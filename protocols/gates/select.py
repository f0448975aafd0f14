"""Masked bit times a masked value, and a masked bit as a ring element.

b = hat + (1 - 2 hat) beta with hat public, so for x = m - l
    b x = hat x + (1 - 2 hat) (m beta - beta l)
and the dealer shares beta and beta l as ring elements [Patra et al. 2021, bit injection].
Results are additive. With attrs["invert"] the bit is 1 - b (a public flip of hat).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape, numel, ring_part
from protocols.gates.truncate import (
    carry_mask,
    carry_offset,
    cut_bits,
    dealt_wrap,
    multiple,
    shared_wrap,
    wrap_parts,
)
from protocols.shares import MaskedBits, Role


def _bits(b: MaskedBits, attrs: dict) -> torch.Tensor:
    return ~b.hat if attrs["invert"] else b.hat


class Select:
    """b x, operands (bits, x). attrs: {"invert"}."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (ring_part("bit", shape, attrs), ring_part("bit_mask", shape, attrs))

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        beta, lam = masks[0].reshape(-1), masks[1].reshape(-1)
        dealt = {
            "bit": kernels.bit_times(beta, None, lam.numel()),
            "bit_mask": kernels.bit_times(beta, lam, lam.numel()),
        }
        return {name: value.reshape(masks[1].shape) for name, value in dealt.items()}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence, dealt: Dealt) -> torch.Tensor:
        bits, x = operands
        return kernels.select(_bits(bits, attrs), x.m, x.lam, dealt["bit"], dealt["bit_mask"], role.public)


class SelectTruncated:
    """b ((x + offset) >> f) from the opening of x itself, operands (bits, x) or (bits, x, carry); see truncate.py.

    attrs: {"invert", "bits": f}, with a carry also {"offset"}, of what is known to be small {"modulo"}; {"added": a} gives
    b (((x + offset) >> f) + a), of which b a takes the shares of beta that are dealt anyway. The truncated value's mask is
    (l >> f) - w 2^(64-f) with w known only once m is, so the dealer shares beta times both of its terms. With the carry
    c = hat ^ gamma it shares gamma and beta gamma too, for b c multiplied out.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        names = ("high", "bit", "bit_high", *(("carry", "bit_carry") if len(shapes) > 2 else ()))
        ring = tuple(ring_part(name, shape, attrs) for name in names)
        return (*ring, *wrap_parts(("wrap", "bit_wrap"), shape, attrs))

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        beta, lam = masks[0].reshape(-1), masks[1].reshape(-1)
        high, wrap = kernels.deal_truncation(multiple(lam, attrs), cut_bits(attrs))
        wrap = shared_wrap(wrap, attrs)
        bit = kernels.bit_times(beta, None, lam.numel())
        dealt = {
            "high": high,
            "bit": bit,
            "bit_high": kernels.bit_times(beta, high, lam.numel()),
            "wrap": wrap,
            "bit_wrap": bit.to(wrap.dtype) * wrap,
        }
        if len(masks) > 2:
            dealt["carry"] = carry_mask(masks[2], lam.shape)
            dealt["bit_carry"] = kernels.bit_times(beta, dealt["carry"], lam.numel())
        return {name: value.reshape(masks[1].shape) for name, value in dealt.items()}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence, dealt: Dealt) -> torch.Tensor:
        bits, x, *carry = operands
        exact: tuple[Any, ...] = ()
        if carry:
            exact = (carry_offset(attrs), carry[0].hat, dealt["carry"], dealt["bit_carry"])
        wrap, bit_wrap = (dealt_wrap(dealt, name, attrs, x.m) for name in ("wrap", "bit_wrap"))
        made = kernels.select_truncated(
            _bits(bits, attrs), multiple(x.m, attrs), dealt["high"], wrap, dealt["bit"], dealt["bit_high"], bit_wrap,
            cut_bits(attrs), role.public, *exact,
        )  # fmt: skip
        if added := attrs.get("added", 0):
            made = made + added * kernels.bit_to_ring(_bits(bits, attrs), dealt["bit"], role.public).view(made.shape)
        return made


class BitToRing:
    """b as a ring element 0 or 1. attrs: {"invert", "shape": the result's shape}."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (ring_part("bit", shape, attrs),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        shape = attrs["shape"]
        return {"bit": kernels.bit_times(masks[0].reshape(-1), None, numel(shape)).reshape(shape)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[MaskedBits], dealt: Dealt) -> torch.Tensor:
        return kernels.bit_to_ring(_bits(operands[0], attrs), dealt["bit"], role.public)
