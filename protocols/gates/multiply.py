"""Product of a masked value and a truncated one, from the opening of what is truncated.

For t = (x + offset) >> f, truncate.py writes t = p - a + s w 2^(64-f) - c, with p and s public, a = l_x >> f,
w = msb(l_x) and c the carry of the low bits. With y = m_y - l_y,
    y t = m_y t - (p l_y - l_y a + s l_y w 2^(64-f) - l_y c)
and the dealer shares l_y times each of the three terms that nobody knows: t itself is never opened
[truncation as in Dalskov et al. 2019, section 5; products of a mask and what follows from another as in Patra et al. 2021].
The result is additive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape
from protocols.gates.truncate import Truncate, carry_offset, cut_bits, dealt_wrap, multiple
from protocols.shares import Role, words

_TRUNCATE = Truncate()
_TIMES = "mask_"


class MultiplyTruncated:
    """y ((x + offset) >> f), operands (y, x) or (y, x, carry); y may be broadcast. attrs: as those of truncate.py."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        terms = _TRUNCATE.parts(attrs, shapes[1:], shape)
        return (*terms, *(replace(part, name=_TIMES + part.name) for part in terms))

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        terms = _TRUNCATE.deal(attrs, masks[1:])
        return {**terms, **{_TIMES + name: masks[0].to(term.dtype) * term for name, term in terms.items()}}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Any], dealt: Dealt) -> torch.Tensor:
        y, x, *carry = operands
        made = y.m * _TRUNCATE.evaluate(role, attrs, operands[1:], dealt).view(x.m.shape)
        lam = torch.zeros_like(y.m) if y.lam is None else y.lam
        exact: tuple[Any, ...] = ()
        if carry:
            exact = (carry_offset(attrs), carry[0].hat, dealt["carry"], dealt[_TIMES + "carry"])
        none = torch.zeros(words(x.m.numel()), dtype=torch.int64, device=x.m.device)  # of a selection, its second term
        wrap, times_wrap = (dealt_wrap(dealt, name, attrs, x.m) for name in ("wrap", _TIMES + "wrap"))
        times_mask = kernels.select_truncated(
            none, multiple(x.m, attrs), dealt["high"], wrap, lam.expand(x.m.shape), dealt[_TIMES + "high"],
            times_wrap, cut_bits(attrs), role.public, *exact,
        )  # fmt: skip
        return made - times_mask.view(x.m.shape)
