"""Conjunctions of masked bits, each from one opening of its bits.

b_i = hat_i ^ beta_i, so the product of k bits, multiplied out, is the exclusive or over all subsets S of
    (product of hat_i outside of S) (product of beta_i in S)
and the dealer shares the products of two and more masks [ABY2.0, Patra et al. 2021, section 3: multi-input gates].
The result is shared by exclusive or.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape
from protocols.shares import MaskedBits, Role, words

MAX_FAN_IN = 7


class Conjunction:
    """For each term, whether all its bits are set.

    attrs: {"size": n, "terms": lists of one length k of (row, whether the opposite is meant)}. The operand is packed
    bits of rows of n; the result is packed bits of one row of n for each term.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        terms, fan_in = len(attrs["terms"]), len(attrs["terms"][0])
        return (Part("products", "xor", (2**fan_in - 1 - fan_in, terms, words(attrs["size"]))),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        rows, fan_in = _rows(masks[0], attrs["size"]), len(attrs["terms"][0])
        products = _chosen(rows, attrs, 0).unsqueeze(0)
        for i in range(1, fan_in):
            one = _chosen(rows, attrs, i).unsqueeze(0)
            products = torch.cat([products, one, products & one])
        return {"products": products.index_select(0, _products(fan_in, rows.device) - 1)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[MaskedBits], dealt: Dealt) -> torch.Tensor:
        size, fan_in = attrs["size"], len(attrs["terms"][0])
        hats, betas = _rows(operands[0].hat, size), _rows(operands[0].beta, size)
        products = hats.new_zeros((2**fan_in, *dealt["products"].shape[1:]))
        products.index_copy_(0, _products(fan_in, hats.device), dealt["products"])
        products[0] = -role.public
        for i in range(fan_in):
            products[2**i] = _chosen(betas, attrs, i)
        for i in reversed(range(fan_in)):  # subset s without bit i, and with it
            opposite = torch.tensor([-int(term[i][1]) for term in attrs["terms"]], device=hats.device).unsqueeze(1)
            half = 2**i
            products = (products[:half] & (_chosen(hats, attrs, i) ^ opposite)) ^ products[half:]
        return _packed(products[0], size)


def _products(fan_in: int, device: torch.device) -> torch.Tensor:
    """Which subsets of bits, numbered in binary, have two members or more."""
    return torch.tensor([s for s in range(2**fan_in) if s.bit_count() > 1], device=device)


def _chosen(rows: torch.Tensor, attrs: dict, i: int) -> torch.Tensor:
    """Factor i of each term."""
    return rows.index_select(0, torch.tensor([term[i][0] for term in attrs["terms"]], device=rows.device))


def _rows(plane: torch.Tensor, size: int) -> torch.Tensor:
    """Packed bits of rows of `size` as one packed plane a row."""
    count = plane.numel() * 64 // size
    bits = kernels.unpack_bits(plane.reshape(-1), count * size).view(count, size)
    return kernels.pack_bits(torch.nn.functional.pad(bits, (0, -size % 64)).reshape(-1)).view(count, -1)


def _packed(rows: torch.Tensor, size: int) -> torch.Tensor:
    bits = kernels.unpack_bits(rows.reshape(-1), rows.numel() * 64).view(rows.shape[0], -1)[:, :size]
    return kernels.pack_bits(bits.reshape(-1)).unsqueeze(0)
