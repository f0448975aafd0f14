"""Quotients of whole numbers that nobody knows, to eight digits: what turns counts into rates, areas and means.

The divisor is first brought between 1/2 and 1 by a power of two that stays as secret as it is, so that small counts
among many rows keep their digits. A polynomial and one step of Newton's method then give its inverse to four digits, and
the rest of the first quotient, which is a whole number and so exact, is divided once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_BITS = 56
"""A divisor is below 2^56: the rest of a quotient then has room in the ring."""
_HALF = 16  # bits of each of the two parts of a quotient


def real(x: Tensor) -> Tensor:
    """Whole numbers as real ones, without losing digits in the clear."""
    return x.double()


def shifted(x: Tensor, bits: int) -> Tensor:
    """x 2^-bits of whole numbers, as real ones: exact, and free of cost up to 32 bits."""
    x = real(x)
    while bits > 0:
        x, bits = x * 2.0 ** -min(bits, 28), bits - 28
    return x


def at_least(x: Tensor, number: int) -> Tensor:
    """[x >= number] of whole numbers, as 0 or 1, for a public number of up to 60 bits."""
    return (x >= number).long() if number < 2**28 else (shifted(x, 28) >= number / 2**28).long()


def _power(den: Tensor, bits: int) -> Tensor:
    """The power of two that brings den between 2^(bits - 1) and 2^bits; 0 for 0."""
    power = at_least(den, 1) * 2 ** min(bits - 1, 28) * 2 ** max(0, bits - 29)
    for i in range(1, bits):
        step = 2 ** (bits - 1 - i)
        power = power - at_least(den, 2**i) * min(step, 2**28) * max(1, step // 2**28)
    return power


def ratio(num: Tensor, den: Tensor, most: int) -> Tensor:
    """num / den of whole numbers, with 0 <= den <= `most`; 0 where den is 0.

    Off by at most 2^-24 where the quotient is below 1, and by 2^-24 of it otherwise. |num / den| stays below 2^12, and
    2^(4 + bits of `most`) times it below 2^62. Some 40 rounds, however many quotients are made at once. Raises ValueError
    for a `most` of more than 56 bits.
    """
    bits = max(1, int(most).bit_length())
    if bits > MOST_BITS:
        raise ValueError(f"divisors of up to {bits} bits: at most {MOST_BITS} have room")
    num, den = num + den * 0, den + num.sum() * 0  # secret if one of them is: an owner's own have no room as they are
    power = _power(den, bits)
    d = shifted(den * power, bits)  # in [1/2, 1), or 0
    guess = d * d * (256 / 99) - d * (576 / 99) + 420 / 99  # 1 - d guess = -T_3(4 d - 3) / 99, of Chebyshev's T_3
    inverse = guess * (2 - d * guess)
    high = torch.floor(shifted(num * power, bits) * inverse * 2.0**_HALF).long()
    rest = num * 2**_HALF - high * den  # small: what is too large for 64 bits in both parts is the same
    low = torch.floor(shifted(rest * power, bits) * inverse * 2.0**_HALF).long()
    return shifted(high, _HALF) + shifted(low, 2 * _HALF)


def on_grid(x: Tensor, bits: int) -> Tensor:
    """A real number in whole multiples of 2^-bits, to the nearest, for up to 28 bits: in two parts that both have room."""
    whole = torch.floor(x).long()
    return whole * 2**bits + torch.floor((x - whole) * 2.0**bits + 0.5).long()


def mean(total: Tensor, den: Tensor, most: int) -> Tensor:
    """total / den for a real total and a whole den up to `most`: as `ratio`, where the total has 28 bits, or 46 less those
    of `most`, but not less than 16.
    """
    bits = max(_HALF, min(28, 46 - int(most).bit_length()))
    den = den + torch.floor(total.sum() * 0).long()  # as secret as the total
    return ratio(on_grid(total, bits), den * 2**bits, most * 2**bits)
