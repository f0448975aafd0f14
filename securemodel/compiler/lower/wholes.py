"""Whole numbers that are known to be small: what makes them is opened in as few bytes as they need."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import lowers

MOST_BITS = 44
"""With more, nothing is saved."""
_ROOM = 62  # ring elements that a truncation takes are below 2^62


def small_whole(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x itself: says that its whole numbers are from -2^(bits - 1) to 2^(bits - 1), without the upper one.

    Sums of products of whole numbers are then right where they are right modulo 2^(bits + 2), and the factors are opened
    in so many bits, in whole bytes. Where the promise is broken, the result is another number, and nobody sees that it is.
    It costs a truncation of x: worth it where x is a sum over many rows.
    """
    return torch.ops.securemodel.small_whole(x, bits)


@torch.library.custom_op("securemodel::small_whole", mutates_args=())
def _small_whole(x: torch.Tensor, bits: int) -> torch.Tensor:
    return x.clone()


@_small_whole.register_fake
def _(x: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.empty_like(x)


@lowers(torch.ops.securemodel.small_whole.default)
def lower_small_whole(g: Builder, x: Value, bits: int) -> Value:
    """floor(x 2^s / 2^s), where x 2^s has room: the bits of x that 2^s takes out of the ring are never read."""
    if not x.integer:
        raise CannotLower("small_whole of numbers that are not whole", "give whole numbers")
    if not 1 <= bits <= MOST_BITS:
        raise CannotLower(f"small_whole with {bits} bits", f"give 1 to {MOST_BITS}")
    more = _ROOM - bits - g.frac_bits
    return g.floor(g.ldexp(x, more), -more) if more > 0 else x
