"""Lookups in public tables, and splines, in plain torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from protocols.kernels.twins.ring import shift_right


def unit_vectors(lam: Tensor, size: int) -> Tensor:
    """For each entry the packed unit vector of `size` bits with bit lam mod size set."""
    at = (lam.reshape(-1) & (size - 1)).unsqueeze(1)
    count = max(1, size // 64)
    word = torch.arange(count, device=lam.device).unsqueeze(0)
    return torch.where(word == at // 64, torch.ones_like(at) << (at % 64), torch.zeros_like(at))


def unit_lookup(m: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """Per column and entry: the sum of table[c][(m - v) mod size] over the set bits v."""
    size, flat = table.shape[1], m.reshape(-1)
    out = m.new_zeros(table.shape[0], flat.numel())
    for v in range(size):
        bit = shift_right(bits[:, v // 64], v % 64) & 1
        out += table[:, (flat - v) & (size - 1)] * bit
    return out


PARTS = 16
"""Centers of an entry of a table of coefficients."""


def _cut(x: Tensor, bits: int) -> Tensor:
    """x / 2^bits, rounded to the nearest."""
    return (x + ((1 << bits) >> 1)) >> bits


def lookup_around(m: Tensor, bits: Tensor, table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    """Per coefficient and entry: the sum, over the set bits v, of those of the entry (m >> rest) - v around m."""
    return _around(m, lambda v: shift_right(bits[:, v // 64], v % 64) & 1, table, rest, cuts)


def weighted_around(m: Tensor, weights: Tensor, table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    """The same with a weight for each v."""
    return _around(m, lambda v: weights[:, v], table, rest, cuts)


def _around(m: Tensor, weight: Callable[[int], Tensor], table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    flat, size, inner = m.reshape(-1), table.shape[1] // PARTS, rest - (PARTS.bit_length() - 1)
    index, part = flat >> rest, (flat >> inner) & (PARTS - 1)
    r = (flat & ((1 << inner) - 1)) - (1 << inner >> 1)
    out = m.new_zeros(3, flat.numel())
    for v in range(size):
        c0, c1, c2 = table[:, ((index - v) & (size - 1)) * PARTS + part]
        h, twice = c1 + _cut(c2 * r, cuts[1]), c1 + _cut(2 * c2 * r, cuts[1])
        out += torch.stack([c0 + _cut(h * r, cuts[0]), _cut(twice, cuts[2]), c2]) * weight(v)
    return out


def spline(
    values: Sequence[Tensor], powers: Sequence[Tensor | None], masks: Tensor, shifts: Sequence[int], first: int
) -> Tensor:
    """Share of the sum of values[i] powers[i] 2^shifts[i], less masks."""
    out = -masks
    for value, power, shift in zip(values, powers, shifts, strict=True):
        out += (value.view(masks.shape) << shift) * (first if power is None else power)
    return out


def deal_spline(
    masks: Sequence[Tensor], lam: Tensor, sign: Tensor | None, shifts: Sequence[int], rest: int, drop: int
) -> list[Tensor]:
    """The powers of what is left of t, times the sign, and the sum of their products with the masks of coefficients."""
    left = (1 << rest >> 1) - (lam & ((1 << rest) - 1)) if rest else -lam
    unit = torch.ones_like(lam) if sign is None else sign
    powers = [unit, unit * left, unit * _cut(left * left, drop)]
    products = [
        (mask.view(lam.shape) << shift) * power for mask, power, shift in zip(masks, powers, shifts, strict=True)
    ]
    return [*powers, products[0] + products[1] + products[2]]
