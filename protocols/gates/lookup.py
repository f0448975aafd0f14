"""Public tables at a secret index, and the polynomial whose coefficients they give.

An index j in Z_K, K = 2^k, is opened as m = j + l mod K. The dealer shares, by exclusive or, the unit vector of
l. Each of the two parties sums the table entries T[m - v] over the set bits v of its share: the sums differ by
+T[j] or -T[j], because they agree everywhere but at v = l [Pika, Wagh 2022; SIGMA, section 5]. So
[u T[j]] is additive, with a sign u that the dealer knows. `Spline` opens u T[j] and removes u where it
multiplies by the argument, with no further opening.

With more than two parties the dealer shares the unit vector additively; then u = 1.

The coefficients of a polynomial in t = m - l are read around the public m: what is left of t is l, which the dealer knows.
- Of a masked t, a second operand of the lookup, they follow from those in t, modulo 2^64.
- Of a window, whose low `rest` bits are m and l of t and the others those of the index, each entry has PARTS centers, at
  the middles of equal parts of the 2^rest numbers m; those of the center next to m are moved by r, the rest of it, and
  rounded: with [x]_d for x / 2^d rounded to the nearest, and (d0, d1, d2) = attrs["cuts"],
      h = c1 + [c2 r]_d1,   y0 = c0 + [h r]_d0,   y1 = [c1 + [2 c2 r]_d1]_d2,   y2 = c2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape, numel, ring_part
from protocols.shares import Masked, Role


def _table(attrs: dict, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(attrs["table"], dtype=torch.int64, device=device)


def _around(coefficients: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """The coefficients of a polynomial of degree 2 in t as those in t - m."""
    c0, c1, c2 = coefficients
    return torch.stack([c0 + (c1 + c2 * m) * m, c1 + 2 * c2 * m, c2])


def _size(attrs: dict) -> int:
    """How many entries the index has."""
    return len(attrs["table"][0]) // (kernels.PARTS if "rest" in attrs else 1)


def _index(masks: Sequence[torch.Tensor], attrs: dict) -> torch.Tensor:
    """The mask of the index."""
    return (masks[0].reshape(-1) >> attrs.get("rest", 0)) & (_size(attrs) - 1)


class Lookup:
    """[u T_c[j]] for each column c: two parties. attrs: {"table": C rows of K ring integers}; shape [C, ...].

    Operands: a masked index, or a masked index and t; or a window, with attrs also {"rest", "cuts"}.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (Part("unit", "xor", (numel(shapes[0]), max(1, _size(attrs) // 64))),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        return {"unit": kernels.unit_vectors(_index(masks, attrs), _size(attrs))}

    def sign(self, attrs: dict, masks: Sequence[torch.Tensor], first_share: Dealt) -> torch.Tensor:
        """u, for whoever deals: +1 where the first party's share has the set bit."""
        unit, at = first_share["unit"], _index(masks, attrs)
        bit = (unit.gather(1, (at // 64).unsqueeze(1)).squeeze(1) >> (at % 64)) & 1
        return (2 * bit - 1).reshape(masks[0].shape)

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        index, *t = operands
        table = _table(attrs, index.m.device)
        if "rest" in attrs:
            sums = kernels.lookup_around(index.m, dealt["unit"], table, attrs["rest"], attrs["cuts"])
        else:
            sums = kernels.unit_lookup(index.m, dealt["unit"], table)
        sums = (sums if role.first else -sums).reshape(-1, *index.m.shape)
        return _around(sums, t[0].m) if t else sums


class LookupShared:
    """T_c[j] for each column c: any number of parties. attrs, operands and shape as for Lookup."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (ring_part("unit", (numel(shapes[0]), _size(attrs)), attrs),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        at = _index(masks, attrs)
        return {"unit": (at.unsqueeze(1) == torch.arange(_size(attrs), device=at.device)).to(torch.int64)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        index, *t = operands
        table, unit = _table(attrs, index.m.device), dealt["unit"]
        if "rest" in attrs:
            made = kernels.weighted_around(index.m, unit, table, attrs["rest"], attrs["cuts"])
            return made.reshape(-1, *index.m.shape)
        size = table.shape[1]
        at = (index.m.reshape(-1, 1) - torch.arange(size, device=index.m.device)) & (size - 1)
        unit = unit.gather(1, at)  # of the index itself
        made = kernels.matmul(unit, table.T.contiguous()).T.reshape(-1, *index.m.shape)
        return _around(made, t[0].m) if t else made


class Spline:
    """The polynomial of a masked t whose coefficients y_i, i = 0, 1, 2, a lookup gave around the public m of t.

    attrs: {"signed": whether u is there, "shifts": a_i, "drop": d}, of a window also {"rest": k}. Operands: u y_0, u y_1 and
    u y_2 masked, t masked or a window, and with a sign the lookup. With what is left of t,
        g = -l, or 2^(k-1) - (l mod 2^k),      g_0 = 1,  g_1 = g,  g_2 = g^2 / 2^d rounded to the nearest,
    the value is sum over i of 2^a_i y_i g_i. As u^2 = 1 and u y_i = m_i - l_i, that is
        sum over i of 2^a_i m_i u g_i  -  D,      D = sum over i of 2^a_i l_i u g_i,
    and the dealer shares the u g_i and D. Where b low bits of the value are read, b - a_i of m_i and of u g_i are enough.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        kept = range(0 if attrs["signed"] else 1, 3)
        powers = (ring_part(f"power{i}", shape, attrs, more=attrs["shifts"][i]) for i in kept)
        return (*powers, ring_part("masks", shape, attrs))

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        made = kernels.deal_spline(
            masks[:3],
            masks[3],
            masks[4] if attrs["signed"] else None,
            attrs["shifts"],
            attrs.get("rest", 0),
            attrs["drop"],
        )
        return dict(zip(("power0", "power1", "power2", "masks"), made, strict=True))

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        powers = [dealt.get(f"power{i}") for i in range(3)]
        return kernels.spline([y.m for y in operands[:3]], powers, dealt["masks"], attrs["shifts"], role.public)
