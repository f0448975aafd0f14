"""Public tables at a secret index, and the polynomial whose coefficients they give.

An index j in Z_K, K = 2^k, is opened as m = j + l mod K. The dealer shares, by exclusive or, the unit vector of
l. Each of the two parties sums the table entries T[m - v] over the set bits v of its share: the sums differ by
+T[j] or -T[j], because they agree everywhere but at v = l [Pika, Wagh 2022; SIGMA, section 5]. So
[u T[j]] is additive, with a sign u that the dealer knows. `Spline` opens u T[j] and removes u where it
multiplies by the argument, with no further opening.

With more than two parties the dealer shares the unit vector additively; then u = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape, numel, ring_part
from protocols.shares import Masked, Role


def _table(attrs: dict, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(attrs["table"], dtype=torch.int64, device=device)


class Lookup:
    """[u T_c[j]] for each column c: two parties. attrs: {"table": C rows of K ring integers}; shape [C, ...]."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        size = len(attrs["table"][0])
        return (Part("unit", "xor", (numel(shapes[0]), max(1, size // 64))),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        return {"unit": kernels.unit_vectors(masks[0].reshape(-1), len(attrs["table"][0]))}

    def sign(self, attrs: dict, masks: Sequence[torch.Tensor], first_share: Dealt) -> torch.Tensor:
        """u, for whoever deals: +1 where the first party's share has the set bit."""
        lam, unit = masks[0].reshape(-1), first_share["unit"]
        at = lam & (len(attrs["table"][0]) - 1)
        bit = (unit.gather(1, (at // 64).unsqueeze(1)).squeeze(1) >> (at % 64)) & 1
        return (2 * bit - 1).reshape(masks[0].shape)

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        (index,) = operands
        sums = kernels.unit_lookup(index.m, dealt["unit"], _table(attrs, index.m.device))
        return (sums if role.first else -sums).reshape(-1, *index.m.shape)


class LookupShared:
    """T_c[j] for each column c: any number of parties. attrs and shape as for Lookup."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (ring_part("unit", (numel(shapes[0]), len(attrs["table"][0])), attrs),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        size = len(attrs["table"][0])
        at = masks[0].reshape(-1) & (size - 1)
        return {"unit": (at.unsqueeze(1) == torch.arange(size, device=at.device)).to(torch.int64)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        (index,) = operands
        table = _table(attrs, index.m.device)
        size = table.shape[1]
        at = (index.m.reshape(-1, 1) - torch.arange(size, device=index.m.device)) & (size - 1)
        unit = dealt["unit"].gather(1, at)  # of the index itself
        return kernels.matmul(unit, table.T.contiguous()).T.reshape(-1, *index.m.shape)


class Spline:
    """sum over r of T_r t^r for a masked t and masked u T_r, r = 0, 1, 2.

    attrs: {"signed": whether u is there}. Operands: (u T [C, ...] masked, t masked, and with a sign the lookup).
    With T_r = u (m_r - l_r) and t = m - l, multiplied out by powers of the public m,
        sum over r, i of binomial(r, i) m_r m^(r-i) (-1)^i u l^i  -  sum over p of m^p D_p,
        D_p = sum over r of binomial(r, p) (-1)^(r-p) u l_r l^(r-p),
    and the dealer shares the u l^i and the D_p. The kernel takes the terms of D_p one by one: D_p stands for its first.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        terms = shapes[0][0]
        return (ring_part("products", (2 * terms - (not attrs["signed"]), *shape), attrs),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        products = kernels.deal_spline(masks[0], masks[1], masks[2] if attrs["signed"] else None)
        terms = masks[0].shape[0]
        powers = terms - (not attrs["signed"])
        for r in range(terms):
            for i in range(1, r + 1):
                products[powers + _place(r - i, 0)] += _BINOMIAL[r][i] * (-1) ** i * products[powers + _place(r, i)]
        kept = [*range(powers), *(powers + _place(p, 0) for p in range(terms))]
        return {"products": products.index_select(0, torch.tensor(kept, device=products.device))}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        coefficients, t, products = operands[0], operands[1], dealt["products"]
        terms = coefficients.m.shape[0]
        powers = terms - (not attrs["signed"])
        each = products.new_zeros((powers + _place(terms, 0), *products.shape[1:]))
        each[:powers] = products[:powers]
        for p in range(terms):
            each[powers + _place(p, 0)] = products[powers + p]
        return kernels.spline(coefficients.m, t.m, each, attrs["signed"], role.public)


def _place(r: int, i: int) -> int:
    """Where the kernel has l_r u l^i, i <= r."""
    return r * (r + 1) // 2 + i


_BINOMIAL = ((1,), (1, 1), (1, 2, 1))
