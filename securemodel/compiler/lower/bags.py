"""Sums, means and largest values of rows of a table, for bags of positions."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value, common_owner
from securemodel.compiler.lower.choosing import rows_at, unit_vectors
from securemodel.compiler.lower.layers import shaped
from securemodel.compiler.lower.positions import inside, spread
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.tournament import largest

aten = torch.ops.aten
_SUM, _MEAN, _MAX = range(3)


def _members(index: torch.Tensor, offsets: torch.Tensor, bags: int, padding: int) -> torch.Tensor:
    """[bags, positions]: 1 where a position belongs to a bag, and is no padding."""
    bag = torch.searchsorted(offsets[:bags].contiguous(), torch.arange(len(index)), right=True) - 1
    return torch.nn.functional.one_hot(bag, bags).T * (index != padding)


def _mean(members: torch.Tensor) -> torch.Tensor:
    return members / members.sum(1, keepdim=True).clamp(min=1)


def _some(members: torch.Tensor) -> torch.Tensor:
    return (members.sum(1, keepdim=True) > 0).long()


def _forbidden(members: torch.Tensor, least: float) -> torch.Tensor:
    return (1.0 - members) * least


def _of_padding(g: Builder, index: Value, rows: int, padding: int) -> Value:
    """[positions, 1]: 1 where a secret position is the padding."""
    return g.slice(unit_vectors(g, index, rows), index.ndim, padding, padding + 1)


def _without_padding(g: Builder, rows: Value, kept: Value, members: Value, mode: int) -> Value:
    """Sums or means of those rows of each bag that are kept."""
    if mode == _MAX:
        raise CannotLower("the largest of rows of which nobody knows whether they are padding", "use sums or means")
    total = g.bilinear("matmul", members, g.mul(g.rescale(rows), kept))
    if mode == _SUM:
        return total
    count, counts = members.shape[1], g.bilinear("matmul", members, kept)
    bits = count.bit_length()  # so many more significant bits of the inverse
    inverse = g.constant(2.0**bits / torch.arange(count + 1, dtype=torch.float64).clamp(min=1).unsqueeze(-1))
    factor = g.bilinear("matmul", unit_vectors(g, g.reshape(counts, (counts.shape[0],)), count + 1), inverse)
    return g.ldexp(g.mul(g.rescale(total), g.rescale(factor)), -bits)


@lowers(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(
    g: Builder, weight, index, offsets, scale=False, mode=_SUM, sparse=False, factors=None, with_last=False, padding=-1
):
    """Sums, means or largest values of rows of a table; which positions are together is known to who knows these.

    Of secret positions, nobody knows which are padding: they count as rows of zeros, and for means their number is secret.
    """
    who = index if not index.secret else g.integers(torch.zeros(index.shape))
    if offsets.secret or common_owner([who, offsets]) is None:
        raise CannotLower("bags that who knows the positions does not know", "give both by one party")
    count, bags, kept = index.shape[0], offsets.shape[0] - with_last, None
    if index.secret and padding >= 0:
        kept = g.offset(g.linear("neg", _of_padding(g, index, weight.shape[0], padding)), 1)
        padding = -1
    members = g.float(_members, who, offsets, bags, padding, shape=(bags, count), integer=True)
    rows = rows_at(g, weight, inside(g, index, weight.shape[0]))
    if factors is not None:
        rows = g.mul(g.rescale(rows), shaped(g, factors, (count, 1)))
    if kept is not None:
        return (_without_padding(g, rows, kept, members, mode),)
    if mode != _MAX:
        together = g.float(_mean, members, shape=members.shape) if mode == _MEAN else members
        return (g.bilinear("matmul", together, rows),)
    shape = (bags, count, weight.shape[1])
    chosen = shaped(g, members, (bags, count, 1))
    players = g.mul(g.expand(g.reshape(g.rescale(rows), (1, *rows.shape)), shape), spread(g, chosen, shape))
    forbidden = g.float(_forbidden, chosen, g.least / 4, shape=chosen.shape)
    best = g.reshape(largest(g, g.add(players, forbidden), 1), (bags, weight.shape[1]))
    return (g.mul(best, g.float(_some, members, shape=(bags, 1), integer=True)),)
