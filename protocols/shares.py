"""The forms a secret takes at one online party (docs/architecture.md, "Forms of a secret").

additive      x = sum of the parties' shares; a share of `None` stands for zero and costs nothing
masked        every party knows m = x + lam; lam is the sum of the parties' `lam` shares
bits          packed planes of bits, the exclusive or of the parties' planes
masked bits   every party knows hat = b ^ beta; beta is the exclusive or of the parties' `beta`
window        of a masked value, every party knows some bits of m; whoever deals, the same bits of lam
order         positions s of one party: every party knows at = p^-1(s); their owner alone, and whoever deals, the order p

Ring tensors are int64 and wrap modulo 2^64. Bit tensors are int64 planes [P, W] with
W = ceil(N / 64): bit e of plane p is bit e % 64 of word [p, e // 64].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

RING_BITS = 64


@dataclass(repr=False, slots=True)
class Masked:
    """A masked ring tensor: the public `m` and this party's share `lam` of the mask (None = zero)."""

    m: torch.Tensor
    lam: torch.Tensor | None

    def __repr__(self) -> str:
        return f"Masked(shape={list(self.m.shape)})"


@dataclass(repr=False, slots=True)
class MaskedBits:
    """Masked bit planes: the public `hat` and this party's share `beta` of the mask."""

    hat: torch.Tensor
    beta: torch.Tensor

    def __repr__(self) -> str:
        return f"MaskedBits(planes={list(self.hat.shape)})"


def window(m: torch.Tensor, attrs: Mapping[str, int]) -> torch.Tensor:
    """Bits of ring elements as numbers: `bits` of them, from bit `shift` up."""
    return (m >> attrs["shift"]) & ((1 << attrs["bits"]) - 1)


@dataclass(frozen=True, repr=False)
class Order:
    """Positions that one party gives: the public `at`, and at that party the order p, in which they are p[at] (else None)."""

    at: torch.Tensor
    order: torch.Tensor | None

    def __repr__(self) -> str:
        return f"Order(positions={list(self.at.shape)})"


@dataclass(frozen=True)
class Role:
    """Which of the online parties this one is."""

    rank: int
    parties: int

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def public(self) -> int:
        """What this party multiplies a public term by to have its share of it: the parties' numbers add up to one.

        With shares by exclusive or, whether this party has the term at all.
        """
        return 1 if self.rank == 0 else 0

    @property
    def last(self) -> bool:
        return self.rank == self.parties - 1


def words(numel: int) -> int:
    """Number of 64-bit words of a packed plane of `numel` bits."""
    return (numel + 63) // 64


def part_of_bits(planes: torch.Tensor, attrs: dict, shape: Sequence[int]) -> torch.Tensor:
    """Some words of one row of bit planes; the same for what is public and for masks. attrs: {"row", "start"}."""
    row, start = attrs["row"], attrs["start"]
    return planes[row : row + 1, start : start + shape[1]]


def public_share(x: torch.Tensor, role: Role) -> torch.Tensor | None:
    """This party's additive share of a public value; None for zero."""
    return x if role.public == 1 else x * role.public if role.public else None


def to_additive(x: Masked, role: Role) -> torch.Tensor | None:
    """This party's additive share of a masked value: its share of m, less lam."""
    own = public_share(x.m, role)
    if x.lam is None:
        return own
    return -x.lam if own is None else own - x.lam


def add_shares(a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor | None:
    """Sum of two shares, where None is zero."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
