"""Truncation, selection and fixed point, as they are called."""

from typing import cast

import torch
from torch import Tensor

from protocols.kernels.checks import fraction, plane, ring, same_size, whole_or_nothing, wrap
from protocols.kernels.variant import kernels_for


def deal_truncation(lam: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """What a truncation by f bits needs of a mask: (lam >> f, top bit of lam in the type `wrap_dtype(f)`)."""
    lam = ring(lam, "deal_truncation: lam")
    fraction(f, "deal_truncation")
    return kernels_for(lam).deal_truncation(lam, f)


def truncate(
    m: Tensor, a: Tensor, k: Tensor, f: int, first: int, offset: int = 0, chat: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of (x + offset) >> f for |x + offset| < 2^62; exact with the carry, else it may be one too high.

    a, k: additive shares of what `deal_truncation` returns. With m' = m + offset + 2^62 and s = 1 - msb(m'):
    first * ((m' >> f) - 2^(62-f)) - a + s * k * 2^(64-f) - carry. The carry [m' mod 2^f < lam mod 2^f] is the masked
    bit chat ^ gamma, a packed plane and additive shares of its mask as a ring value.
    """
    m = ring(m, "truncate: m")
    whole_or_nothing(first, "truncate")
    n = m.numel()
    fraction(f, "truncate")
    a, k = same_size(a, n, "truncate: a"), wrap(k, n, f, "truncate: k")
    if chat is not None:
        chat, gamma = plane(chat, n, "truncate: chat"), same_size(cast(Tensor, gamma), n, "truncate: gamma")
    return kernels_for(m, a, k, chat, gamma).truncate(m, a, k, f, first, offset, chat, gamma)


def bit_times(words: Tensor, v: Tensor | None, n: int) -> Tensor:
    """bit * v for each of n packed bits; the bit itself as 0 or 1 when v is None."""
    words = plane(words, n, "bit_times: words")
    if v is not None:
        v = same_size(v, n, "bit_times: v")
    return kernels_for(words, v).bit_times(words, v, n)


def select(bhat: Tensor, m: Tensor, lam: Tensor | None, beta: Tensor, beta_lam: Tensor, first: int) -> Tensor:
    """Share of b * x for x = m - lam and the masked bit b = bhat ^ beta.

    lam (None: zero), beta, beta_lam: additive shares of the mask, of beta and of beta * lam.
    bhat * (first * m - lam) + (1 - 2 bhat) * (m * beta - beta_lam).
    """
    m = ring(m, "select: m")
    whole_or_nothing(first, "select")
    n = m.numel()
    bhat = plane(bhat, n, "select: bhat")
    beta, beta_lam = same_size(beta, n, "select: beta"), same_size(beta_lam, n, "select: beta_lam")
    if lam is not None:
        lam = same_size(lam, n, "select: lam")
    return kernels_for(m, bhat, lam, beta, beta_lam).select(bhat, m, lam, beta, beta_lam, first)


def select_truncated(
    bhat: Tensor, m: Tensor, a: Tensor, k: Tensor, b: Tensor, ba: Tensor, bk: Tensor, f: int, first: int,
    offset: int = 0, chat: Tensor | None = None, gamma: Tensor | None = None, bgamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of b * ((x + offset) >> f) for the masked bit b = bhat ^ beta; offset, chat and gamma as for `truncate`.

    a, k: additive shares of what `deal_truncation` returns; b, ba, bk, bgamma: additive shares of beta, beta * a,
    beta * k, beta * gamma. With s as in `truncate`, p its public part less the bit chat, and K = k * 2^(64-f):
    bhat * (first * p - a + s K - (1 - 2 chat) gamma) + (1 - 2 bhat) * (p b - ba + s beta K - (1 - 2 chat) bgamma).
    """
    m = ring(m, "select_truncated: m")
    whole_or_nothing(first, "select_truncated")
    n = m.numel()
    bhat = plane(bhat, n, "select_truncated: bhat")
    fraction(f, "select_truncated")
    a, k = same_size(a, n, "select_truncated: a"), wrap(k, n, f, "select_truncated: k")
    b, ba = same_size(b, n, "select_truncated: b"), same_size(ba, n, "select_truncated: ba")
    bk = wrap(bk, n, f, "select_truncated: bk")
    if chat is not None:
        chat = plane(chat, n, "select_truncated: chat")
        gamma = same_size(cast(Tensor, gamma), n, "select_truncated: gamma")
        bgamma = same_size(cast(Tensor, bgamma), n, "select_truncated: bgamma")
    chosen = kernels_for(m, bhat, a, k, b, ba, bk, chat, gamma, bgamma)
    return chosen.select_truncated(bhat, m, a, k, b, ba, bk, f, first, offset, chat, gamma, bgamma)


def bit_to_ring(bhat: Tensor, beta: Tensor, first: int) -> Tensor:
    """Share of the masked bit b = bhat ^ beta as a ring value: first * bhat + (1 - 2 bhat) * beta."""
    beta = ring(beta, "bit_to_ring: beta")
    whole_or_nothing(first, "bit_to_ring")
    bhat = plane(bhat, beta.numel(), "bit_to_ring: bhat")
    return kernels_for(beta, bhat).bit_to_ring(bhat, beta, first)


def encode(x: Tensor, frac_bits: int) -> Tensor:
    """Nearest integer to x * 2^frac_bits, ties to even; float32 or float64 -> int64. The range is not checked."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"encode: x must be float32 or float64, not {x.dtype}")
    x = x.contiguous()
    return kernels_for(x).encode(x, frac_bits)


def decode(x: Tensor, frac_bits: int) -> Tensor:
    """x / 2^frac_bits as float32 (through float64)."""
    x = ring(x, "decode: x")
    return kernels_for(x).decode(x, frac_bits)
