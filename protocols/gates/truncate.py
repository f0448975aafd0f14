"""Division by 2^f, for |x| < 2^62: the nearest multiple with the carry of the low bits, else the floor or one more.

z = x + offset + 2^62 is opened as m = z + l (x is opened, and all add the public numbers). With w = msb(l) (1 - msb(m)),
the carry out of z + l, and c = [m mod 2^f < l mod 2^f], the carry out of its low bits,
    (x + offset) >> f = (m >> f) - (l >> f) + w 2^(64-f) - 2^(62-f) - c.
The dealer shares `high` = l >> f and `wrap` = msb(l), the latter modulo 2^f only, because it is multiplied by
2^(64-f): two bytes for f <= 16. 1 - msb(m) is public. Result additive.
[Dalskov et al. 2019, section 5 (carry correction); Escudero et al. 2020.]

"modulo": n < 64 says that -2^(n-2) <= x + offset < 2^(n-2). Then all of this holds with n in the place of 64, and no more than
the low n bits of m and l are looked at. It is computed as above of 2^(64-n) as much, by 64 - n bits more. Where no more
than n - f low bits of the result are read, as "read" says, w counts for nothing and is not dealt.

Two operands: c is a masked bit c = hat ^ gamma (sign.py makes it), and the dealer shares gamma as a ring element. The
result is exact, and with offset = 2^(f-1) the nearest whole number, halves upward. One operand: c is left out, and the
result is floor or floor + 1, unbiased; which one depends on l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape, numel, ring_part
from protocols.shares import RING_BITS, Role


def carry_mask(bits: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The mask of the carry as ring elements."""
    return kernels.bit_times(bits, None, numel(shape)).reshape(shape)


def cut_bits(attrs: dict) -> int:
    """By how many bits the kernels truncate: of what is known to be small, of a multiple."""
    return attrs["bits"] + _spare(attrs)


def multiple(x: torch.Tensor, attrs: dict) -> torch.Tensor:
    """What the kernels truncate, of m or of a mask."""
    return x << _spare(attrs) if _spare(attrs) else x


def carry_offset(attrs: dict) -> int:
    """What is added before, as the kernels take it."""
    return attrs["offset"] << _spare(attrs)


def _spare(attrs: dict) -> int:
    return RING_BITS - attrs.get("modulo", RING_BITS)


def wrap_parts(names: Sequence[str], shape: Shape, attrs: dict) -> tuple[Part, ...]:
    """What is multiplied by 2^(64 - k), for a truncation by k bits: its lowest k bits count, or none where fewer are read."""
    k = cut_bits(attrs)
    if attrs.get("read", RING_BITS) <= RING_BITS - k:
        return ()
    whole = tuple(Part(name, "add", tuple(shape), kernels.wrap_dtype(k)) for name in names)
    least = tuple(ring_part(name, shape, attrs, k) for name in names)
    return least if least[0].nbytes < whole[0].nbytes else whole


def shared_wrap(wrap: torch.Tensor, attrs: dict) -> torch.Tensor:
    """What is dealt of a wrap bit, in the type of its part."""
    parts = wrap_parts(("wrap",), wrap.shape, attrs)
    return wrap.to(parts[0].dtype) if parts else wrap


def dealt_wrap(dealt: Dealt, name: str, attrs: dict, like: torch.Tensor) -> torch.Tensor:
    """A share of it in the type that the kernels take; zeros where it counts for nothing."""
    dtype = kernels.wrap_dtype(cut_bits(attrs))
    return dealt[name].to(dtype) if name in dealt else torch.zeros(like.shape, dtype=dtype, device=like.device)


class Truncate:
    """attrs: {"bits": f}, 1 <= f <= 61; with a carry also {"offset"}; of what is known to be small {"modulo": n}, n >= f + 2."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        names = ("high", "carry") if len(shapes) > 1 else ("high",)
        return (*(ring_part(name, shape, attrs) for name in names), *wrap_parts(("wrap",), shape, attrs))

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        high, wrap = kernels.deal_truncation(multiple(masks[0], attrs), cut_bits(attrs))
        dealt = {"high": high, "wrap": shared_wrap(wrap, attrs)}
        return {**dealt, "carry": carry_mask(masks[1], high.shape)} if len(masks) > 1 else dealt

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Any], dealt: Dealt) -> torch.Tensor:
        x, *carry = operands
        exact: tuple[Any, ...] = (carry_offset(attrs), carry[0].hat, dealt["carry"]) if carry else ()
        wrap = dealt_wrap(dealt, "wrap", attrs, x.m)
        return kernels.truncate(multiple(x.m, attrs), dealt["high"], wrap, cut_bits(attrs), role.public, *exact)
