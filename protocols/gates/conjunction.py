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
from protocols.gates.base import Dealt, Part, Shape, Terms
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
        rows = _rows(masks[0], attrs["size"])
        terms = Terms.of(attrs["terms"], rows.device)
        products = rows.index_select(0, terms.rows[0]).unsqueeze(0)
        for chosen in terms.rows[1:]:
            one = rows.index_select(0, chosen).unsqueeze(0)
            products = torch.cat([products, one, products & one])
        return {"products": products.index_select(0, terms.several - 1)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[MaskedBits], dealt: Dealt) -> torch.Tensor:
        size = attrs["size"]
        hats, betas = _rows(operands[0].hat, size), _rows(operands[0].beta, size)
        terms = Terms.of(attrs["terms"], hats.device)
        products = hats.new_zeros((2 ** len(terms.rows), *dealt["products"].shape[1:]))
        products.index_copy_(0, terms.several, dealt["products"])
        products[0] = -role.public
        for i, chosen in enumerate(terms.rows):
            products[2**i] = betas.index_select(0, chosen)
        for i in reversed(range(len(terms.rows))):  # subset s without bit i, and with it
            half, seen = 2**i, hats.index_select(0, terms.rows[i]) ^ terms.opposites[i]
            products = (products[:half] & seen) ^ products[half:]
        return _packed(products[0], size)


def _rows(plane: torch.Tensor, size: int) -> torch.Tensor:
    """Packed bits of rows of `size` as one packed plane a row."""
    count = plane.numel() * 64 // size
    bits = kernels.unpack_bits(plane.reshape(-1), count * size).view(count, size)
    return kernels.pack_bits(torch.nn.functional.pad(bits, (0, -size % 64)).reshape(-1)).view(count, -1)


def _packed(rows: torch.Tensor, size: int) -> torch.Tensor:
    bits = kernels.unpack_bits(rows.reshape(-1), rows.numel() * 64).view(rows.shape[0], -1)[:, :size]
    return kernels.pack_bits(bits.reshape(-1)).unsqueeze(0)
