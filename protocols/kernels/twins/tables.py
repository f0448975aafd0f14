"""Lookups in public tables, and splines, in plain torch."""

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


_BINOMIAL = ((1,), (1, 1), (1, 2, 1))


def spline(coefficients: Tensor, t: Tensor, products: Tensor, signed: bool, first: bool) -> Tensor:
    """Share of the sum of c_r t^r: t^r = sum over i of binomial(r, i) m^(r-i) (-l)^i."""
    terms, dealt = coefficients.shape[0], list(products)
    if not signed:
        dealt.insert(0, torch.full_like(t, int(first)))
    powers, mixed = dealt[:terms], iter(dealt[terms:])
    out = torch.zeros_like(t)
    for r in range(terms):
        for i in range(r + 1):
            factor = _BINOMIAL[r][i] * (-1) ** i * t ** (r - i)
            out += factor * (coefficients[r] * powers[i] - next(mixed))
    return out


def deal_spline(masks: Tensor, lam: Tensor, sign: Tensor | None) -> Tensor:
    """Powers of lam times the sign, and their products with the coefficients' masks."""
    powers = [torch.ones_like(lam) if sign is None else sign]
    for _ in range(masks.shape[0] - 1):
        powers.append(powers[-1] * lam)
    mixed = [masks[r] * powers[i] for r in range(masks.shape[0]) for i in range(r + 1)]
    return torch.stack([*powers[sign is None :], *mixed])
