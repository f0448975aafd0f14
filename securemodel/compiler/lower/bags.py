"""Sums, means and largest values of rows of a table, for bags of positions."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder, CannotLower, common_owner
from securemodel.compiler.lower.choosing import rows_at
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


@lowers(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(
    g: Builder, weight, index, offsets, scale=False, mode=_SUM, sparse=False, factors=None, with_last=False, padding=-1
):
    """Sums, means or largest values of rows of a table; which positions are together is known to who knows these."""
    who = index if not index.secret else g.integers(torch.zeros(index.shape))  # of secret ones, none is padding
    if offsets.secret or common_owner([who, offsets]) is None or (index.secret and padding >= 0):
        raise CannotLower("bags or padding that who knows the positions does not know", "give both by one party")
    count, bags = index.shape[0], offsets.shape[0] - with_last
    members = g.float(_members, who, offsets, bags, padding, shape=(bags, count), integer=True)
    rows = rows_at(g, weight, inside(g, index, weight.shape[0]))
    if factors is not None:
        rows = g.mul(g.rescale(rows), shaped(g, factors, (count, 1)))
    if mode != _MAX:
        together = g.float(_mean, members, shape=members.shape) if mode == _MEAN else members
        return (g.bilinear("matmul", together, rows),)
    shape = (bags, count, weight.shape[1])
    chosen = shaped(g, members, (bags, count, 1))
    players = g.mul(g.expand(g.reshape(g.rescale(rows), (1, *rows.shape)), shape), spread(g, chosen, shape))
    forbidden = g.float(_forbidden, chosen, g.least / 4, shape=chosen.shape)
    best = g.reshape(largest(g, g.add(players, forbidden), 1), (bags, weight.shape[1]))
    return (g.mul(best, g.float(_some, members, shape=(bags, 1), integer=True)),)
