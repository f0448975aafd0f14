"""Truncation and selection in Triton: a lane for each element, and everything that is read, read once."""

from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from protocols.kernels.gpu import launch
from protocols.kernels.gpu.launch import bit_of, blocks, elements, on_device, shifted_right
from protocols.kernels.twins.pointwise import wrap_dtype

_RUNTIME = ("offset", "f", "less")
"""Numbers that no kernel is compiled anew for."""


@triton.jit
def _carried(carry, gamma, FIRST: tl.constexpr):
    made = gamma - 2 * carry * gamma
    if FIRST:
        made += carry
    return made


@triton.jit
def _parts(m, e, inside, offset, f, less):
    """The public part of a truncated value, and whether the top bit is clear."""
    raised = tl.load(m + e, mask=inside, other=0) + offset
    return shifted_right(raised, f) - less, 1 - shifted_right(raised, 63)


@triton.jit
def _wrapped(k, e, inside, clear, f):
    return (clear * tl.load(k + e, mask=inside, other=0).to(tl.int64)) << (64 - f)


@triton.jit(do_not_specialize=_RUNTIME)
def truncate_kernel(out, m, a, k, chat, gamma, n, offset, f, less,
                    FIRST: tl.constexpr, CARRY: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`truncate`; offset: with 2^62 added; less: 2^(62 - f)."""
    e = elements(BLOCK)
    inside = e < n
    public, clear = _parts(m, e, inside, offset, f, less)
    share = _wrapped(k, e, inside, clear, f) - tl.load(a + e, mask=inside, other=0)
    if FIRST:
        share += public
    if CARRY:
        share -= _carried(bit_of(chat, e, inside), tl.load(gamma + e, mask=inside, other=0), FIRST)
    tl.store(out + e, share, mask=inside)


@triton.jit(do_not_specialize=_RUNTIME)
def select_truncated_kernel(out, bhat, m, a, k, b, ba, bk, chat, gamma, bgamma, n, offset, f, less,
                            FIRST: tl.constexpr, CARRY: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`select_truncated`; offset and less as of `truncate_kernel`."""
    e = elements(BLOCK)
    inside = e < n
    bit = bit_of(bhat, e, inside)
    public, clear = _parts(m, e, inside, offset, f, less)
    own = _wrapped(k, e, inside, clear, f) - tl.load(a + e, mask=inside, other=0)
    if FIRST:
        own += public
    beta = tl.load(b + e, mask=inside, other=0)
    other = public * beta - tl.load(ba + e, mask=inside, other=0) + _wrapped(bk, e, inside, clear, f)
    if CARRY:
        carry = bit_of(chat, e, inside)
        own -= _carried(carry, tl.load(gamma + e, mask=inside, other=0), FIRST)
        other -= carry * beta + (1 - 2 * carry) * tl.load(bgamma + e, mask=inside, other=0)
    tl.store(out + e, bit * own + (1 - 2 * bit) * other, mask=inside)


@triton.jit
def select_kernel(out, bhat, m, lam, beta, beta_lam, n, FIRST: tl.constexpr, MASKED: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """`select`; MASKED: whether there is a lam."""
    e = elements(BLOCK)
    inside = e < n
    bit, value = bit_of(bhat, e, inside), tl.load(m + e, mask=inside, other=0)
    own = value * 0
    if FIRST:
        own += value
    if MASKED:
        own -= tl.load(lam + e, mask=inside, other=0)
    other = value * tl.load(beta + e, mask=inside, other=0) - tl.load(beta_lam + e, mask=inside, other=0)
    tl.store(out + e, bit * own + (1 - 2 * bit) * other, mask=inside)


@triton.jit
def bit_to_ring_kernel(out, bhat, beta, n, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """`bit_to_ring`."""
    e = elements(BLOCK)
    inside = e < n
    made = _carried(bit_of(bhat, e, inside), tl.load(beta + e, mask=inside, other=0), FIRST)
    tl.store(out + e, made, mask=inside)


@triton.jit
def bit_times_kernel(out, words, v, n, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    """`bit_times`; TIMES: whether there is a v."""
    e = elements(BLOCK)
    inside = e < n
    bit = bit_of(words, e, inside)
    if TIMES:
        bit *= tl.load(v + e, mask=inside, other=0)
    tl.store(out + e, bit, mask=inside)


@triton.jit(do_not_specialize=("f",))
def deal_truncation_kernel(a, k, lam, n, f, BLOCK: tl.constexpr):
    """`deal_truncation`."""
    e = elements(BLOCK)
    inside = e < n
    mask = tl.load(lam + e, mask=inside, other=0)
    tl.store(a + e, shifted_right(mask, f), mask=inside)
    tl.store(k + e, shifted_right(mask, 63).to(k.dtype.element_ty), mask=inside)


def _public(f: int, offset: int) -> tuple[int, int, int]:
    return offset + (1 << 62), f, 1 << (62 - f)


def deal_truncation(lam: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """lam >> f (logical), and the top bit of lam."""
    a, k, n = torch.empty_like(lam), torch.empty_like(lam, dtype=wrap_dtype(f)), lam.numel()
    with on_device(lam.device):
        deal_truncation_kernel[blocks(n, launch.BLOCK)](a, k, lam, n, f, BLOCK=launch.BLOCK, num_warps=launch.WARPS)
    return a, k


def truncate(
    m: Tensor, a: Tensor, k: Tensor, f: int, first: bool, offset: int = 0, chat: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of (x + offset) >> f."""
    out, n, carry = torch.empty_like(m), m.numel(), chat is not None
    given = (chat, cast(Tensor, gamma)) if carry else (m, m)
    with on_device(m.device):
        truncate_kernel[blocks(n, launch.BLOCK)](
            out, m, a, k, *given, n, *_public(f, offset), FIRST=bool(first), CARRY=carry, BLOCK=launch.BLOCK,
            num_warps=launch.WARPS,
        )  # fmt: skip
    return out


def bit_times(words: Tensor, v: Tensor | None, n: int) -> Tensor:
    """bit * v; the bit itself as 0 or 1 when v is None."""
    out = words.new_empty(n) if v is None else torch.empty_like(v)
    with on_device(words.device):
        bit_times_kernel[blocks(n, launch.BLOCK)](
            out, words, words if v is None else v, n, TIMES=v is not None, BLOCK=launch.BLOCK, num_warps=launch.WARPS
        )
    return out


def select(bhat: Tensor, m: Tensor, lam: Tensor | None, beta: Tensor, beta_lam: Tensor, first: bool) -> Tensor:
    """Share of b * x."""
    out, n = torch.empty_like(m), m.numel()
    with on_device(m.device):
        select_kernel[blocks(n, launch.BLOCK)](
            out, bhat, m, m if lam is None else lam, beta, beta_lam, n, FIRST=bool(first), MASKED=lam is not None,
            BLOCK=launch.BLOCK, num_warps=launch.WARPS,
        )  # fmt: skip
    return out


def select_truncated(
    bhat: Tensor, m: Tensor, a: Tensor, k: Tensor, b: Tensor, ba: Tensor, bk: Tensor, f: int, first: bool,
    offset: int = 0, chat: Tensor | None = None, gamma: Tensor | None = None, bgamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of b * ((x + offset) >> f)."""
    out, n, carry = torch.empty_like(m), m.numel(), chat is not None
    given = (chat, cast(Tensor, gamma), cast(Tensor, bgamma)) if carry else (m, m, m)
    with on_device(m.device):
        select_truncated_kernel[blocks(n, launch.BLOCK)](
            out, bhat, m, a, k, b, ba, bk, *given, n, *_public(f, offset), FIRST=bool(first), CARRY=carry,
            BLOCK=launch.BLOCK, num_warps=launch.WARPS,
        )  # fmt: skip
    return out


def bit_to_ring(bhat: Tensor, beta: Tensor, first: bool) -> Tensor:
    """Share of the bit b as a ring value."""
    out, n = torch.empty_like(beta), beta.numel()
    with on_device(beta.device):
        bit_to_ring_kernel[blocks(n, launch.BLOCK)](
            out, bhat, beta, n, FIRST=bool(first), BLOCK=launch.BLOCK, num_warps=launch.WARPS
        )
    return out
