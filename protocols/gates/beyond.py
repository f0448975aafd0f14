"""Whether values lie within a range, for many at once: a few sums that are zero where all do.

Let X = x + offset be compared in the bits below p, which is right where -2^p <= X < 2^p, and s the bit that this gives.
X = m + offset - l, so with u, l' the numbers of the bits from p up of m + offset and of l, and c the carry of those below,
    h = floor(X / 2^p) = u - l' - c,   and X is within its range just where h + s = 0.
The comparison gives s = u_0 ^ l'_0 ^ c (their lowest bits), and opens it as b = s ^ t. So c = s ^ u_0 ^ l'_0, and
    h + s = u - l' + (2b - 1) (u_0 ? q - w : w)   with   q = 1 - 2t,   w = l'_0 q,
which is linear in what the dealer knows. It shares q and w of each value, and of l' only the sums that are wanted: of
all values with public odd factors r, modulo 2^8. A sum is zero where all values are in range. A single value beyond it,
by less than 255 times its range, is seen for certain; of several that are out by up to three times, each sum misses what
the factors happen to cancel, one in 64; multiples of larger powers of two cancel more often, and those of 256 always.

The results are right modulo 2^8. For accidents, not for who chooses values to be missed: factors are public.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape, numel
from protocols.shares import Masked, MaskedBits, Role

BITS = 8
"""Of the sums, and of a value that are read from p up."""
MAX_CHECKS = 7
_MIX = (-7046029254386353131, -4417276706812531889)  # odd constants of splitmix64 (Steele, Lea, Flood 2014)


def factors(count: int, checks: int, key: int, device: torch.device) -> torch.Tensor:
    """Odd numbers below 2^8, [checks, count], which follow from `key`; nothing here hides anything."""
    mixed = (torch.arange(count, device=device) + (key << 32)) * _MIX[0]
    mixed = (mixed ^ (mixed >> 30)) * _MIX[1]
    mixed = (mixed ^ (mixed >> 27)) * _MIX[0]
    return torch.stack([(mixed >> (8 * at)) & 255 | 1 for at in range(checks)])


def excess(x: torch.Tensor, sign: torch.Tensor, bit: int, offset: int) -> torch.Tensor:
    """floor((x + offset) / 2^bit) + sign, in the clear: zero for each value within its range."""
    return ((x.reshape(-1) + offset) >> bit) + sign.long()


class Beyond:
    """attrs: {"bit": p, "offset", "checks": how many sums, "key": of their factors}. Operands: x, and the sign opened.

    The result has one number for each check.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        count = (numel(shapes[0]),)
        return (
            Part("toward", "add", count, torch.uint8),
            Part("away", "add", count, torch.uint8),
            Part("high", "add", tuple(shape)),
        )

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        lam = masks[0].reshape(-1)
        high = (lam >> attrs["bit"]) & ((1 << BITS) - 1)
        toward = 1 - 2 * kernels.unpack_bits(masks[1].reshape(-1), lam.numel()).long()
        r = factors(lam.numel(), attrs["checks"], attrs["key"], lam.device)
        away = (high & 1) * toward
        return {"toward": _byte(toward), "away": _byte(away), "high": (r * high).sum(1)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence, dealt: Dealt) -> torch.Tensor:
        x: Masked = operands[0]
        sign: MaskedBits = operands[1]
        high = ((x.m.reshape(-1) + attrs["offset"]) >> attrs["bit"]) & ((1 << BITS) - 1)
        lowest, toward, away = high & 1, dealt["toward"].long(), dealt["away"].long()
        opened = 2 * kernels.unpack_bits(sign.hat.reshape(-1), high.numel()).long() - 1
        each = role.public * high + opened * (lowest * toward + (1 - 2 * lowest) * away)
        r = factors(high.numel(), attrs["checks"], attrs["key"], high.device)
        return (r * each).sum(1) - dealt["high"]


def _byte(x: torch.Tensor) -> torch.Tensor:
    return (x & ((1 << BITS) - 1)).to(torch.uint8)
