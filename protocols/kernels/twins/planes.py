"""Comparison and other work on packed bits in plain torch."""

from functools import cache, reduce
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_bits(bits: Tensor) -> Tensor:
    """Plane of the lowest bit of each entry: [..., N] -> int64[..., W]."""
    n = bits.shape[-1]
    padded = F.pad(bits.to(torch.int64) & 1, (0, -n % 64)).reshape(*bits.shape[:-1], -1, 64)
    return (padded << torch.arange(64, device=bits.device)).sum(-1)


def unpack_bits(words: Tensor, n: int) -> Tensor:
    """The first n bits of a plane, uint8[n]."""
    bits = (words.unsqueeze(-1) >> torch.arange(64, device=words.device)) & 1
    return bits.reshape(-1)[:n].to(torch.uint8)


def msb_plane(x: Tensor, bit: int, offset: int = 0) -> Tensor:
    """Plane of bit number `bit` of each element plus `offset`."""
    return pack_bits(((x.reshape(-1) + offset) >> bit) & 1)


def _digits(x: Tensor, low_bits: int, shift: int) -> Tensor:
    rows = []
    for start in range(0, low_bits, 4):
        by = shift + start
        rows.append((x >> by if by >= 0 else x << -by) & ((1 << min(4, low_bits - start)) - 1))
    return torch.stack(rows)


def thermometer(lam: Tensor, low_bits: int, shift: int = 0) -> Tensor:
    """For each 4-bit digit the word whose bit a says digit >= a, int16[D,N]."""
    digits = _digits(lam.view(-1), low_bits, shift)
    return ((torch.full_like(digits, 2) << digits) - 1).to(torch.int16)


def leaves(m: Tensor, therm: Tensor, low_bits: int, shift: int = 0, offset: int = 0) -> Tensor:
    """Shares of "digit of m + offset < digit of lam" and "digits equal", planes lt0, lt1, eq1, lt2, eq2, ..."""
    digits = _digits(m.view(-1) + offset, low_bits, shift)
    words = therm.view(digits.shape).to(torch.int64) & 0xFFFF
    at_least = (words >> digits) & 1
    less = (words >> (digits + 1)) & 1
    planes = torch.stack((less, at_least ^ less), dim=1).flatten(0, 1)
    return pack_bits(torch.cat((planes[:1], planes[2:])))


@cache
def product_sets(k: int, with_eq: bool) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Which input planes each product multiplies: the products of LT but its first, then (if asked for) the one of EQ."""
    lt = [2 * j if with_eq else max(2 * j - 1, 0) for j in range(k - 1)]
    eq = [2 * j + with_eq for j in range(k - 1)] + [2 * k - 3 + with_eq]
    less = tuple(tuple(sorted([lt[j], *eq[j + 1 :]])) for j in range(k - 1))
    return (less, (tuple(eq),)) if with_eq else (less,)


@cache
def monomial_sets(k: int, with_eq: bool) -> tuple[tuple[int, ...], ...]:
    """The sets of two or more input planes whose mask products `combine` needs.

    Order: ascending as binary numbers in which plane p has weight 2^p.
    """
    products = [s for group in product_sets(k, with_eq) for s in group]
    subsets = {t for s in products for size in range(2, len(s) + 1) for t in combinations(s, size)}
    return tuple(sorted(subsets, key=lambda t: sum(1 << p for p in t)))


def monomials(masks: Tensor, k: int, with_eq: bool) -> Tensor:
    """Products of mask planes, int64[Q,W], in the order of `monomial_sets`."""
    sets = monomial_sets(k, with_eq)
    return torch.stack([reduce(torch.bitwise_and, (masks[p] for p in s)) for s in sets])


def combine(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, top: Tensor, k: int, with_eq: bool, first: bool
) -> Tensor:
    """XOR share of LT (and EQ): every product of (opened ^ mask) multiplied out over the subsets of its planes."""
    place = {s: q for q, s in enumerate(monomial_sets(k, with_eq))}
    everywhere = torch.full_like(opened[0], -1)
    results = [top, torch.zeros_like(top)]
    for at, group in enumerate(product_sets(k, with_eq)):
        for planes in group:
            for size in range(0 if first else 1, len(planes) + 1):
                for masked in combinations(planes, size):
                    public = reduce(torch.bitwise_and, (opened[p] for p in planes if p not in masked), everywhere)
                    if size == 0:
                        term = public
                    else:
                        term = public & (mask_share[masked[0]] if size == 1 else monomial_share[place[masked]])
                    results[at] = results[at] ^ term
    return torch.stack(results[: 1 + with_eq])


def monomials_layer(masks: Tensor, groups: tuple[tuple[int, int], ...]) -> Tensor:
    """`monomials` of each group of several digits."""
    made, at = [], 0
    for start, count in groups:
        if count > 1:
            size = 2 * count - 1 - (start == 0)
            made.append(monomials(masks[at : at + size], count, start > 0))
            at += size
    return torch.cat(made)


def combine_layer(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, bits: Tensor, groups: tuple[tuple[int, int], ...],
    first: bool,
) -> Tensor:  # fmt: skip
    """`combine` of each group of several digits; a digit alone goes on as it is."""
    made, at, used = [], 0, 0
    for start, count in groups:
        planes = bits[max(2 * start - 1, 0) : 2 * (start + count) - 1]
        if count == 1:
            made.append(planes)
            continue
        with_eq = start > 0
        inputs, products = 2 * count - 2 + with_eq, len(monomial_sets(count, with_eq))
        now, shares = slice(at, at + inputs), monomial_share[used : used + products]
        made.append(combine(opened[now], mask_share[now], shares, planes[-2], count, with_eq, first))
        at, used = at + inputs, used + products
    return torch.cat(made)
