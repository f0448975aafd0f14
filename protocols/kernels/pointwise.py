"""Truncation, selection and fixed point, element by element.

Values keep the shape of their first ring argument; bits come as one packed plane over its elements in row-major
order. `first` is true at exactly one party, which adds the public terms. Source: docs of the masked engine,
sections 3 and 5; m is the opened masked value, x = m - lam.
"""

import torch
from torch import Tensor, get_num_threads

from protocols.kernels import twins
from protocols.kernels.checks import CONTIGUOUS, fraction, plane, ring, same_size, wrap
from protocols.kernels.twins import wrap_dtype
from protocols.kernels.variant import native


def _like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=CONTIGUOUS)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def deal_truncation(lam: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """What a truncation by f bits needs of a mask: (lam >> f, top bit of lam in the type `wrap_dtype(f)`)."""
    lam = ring(lam, "deal_truncation: lam")
    fraction(f, "deal_truncation")
    kernels = native(lam)
    if kernels is None:
        return twins.deal_truncation(lam, f)
    a, k = _like(lam), torch.empty(lam.shape, dtype=wrap_dtype(f))
    kernels.deal_truncation(
        a.data_ptr(), k.data_ptr(), k.element_size(), lam.data_ptr(), lam.numel(), f, get_num_threads()
    )
    return a, k


def truncate(
    m: Tensor, a: Tensor, k: Tensor, f: int, first: bool, offset: int = 0, chat: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of (x + offset) >> f for |x + offset| < 2^62; exact with the carry, else it may be one too high.

    a, k: additive shares of what `deal_truncation` returns. With m' = m + offset + 2^62 and s = 1 - msb(m'):
    first * ((m' >> f) - 2^(62-f)) - a + s * k * 2^(64-f) - carry. The carry [m' mod 2^f < lam mod 2^f] is the masked
    bit chat ^ gamma, a packed plane and additive shares of its mask as a ring value.
    """
    m = ring(m, "truncate: m")
    n = m.numel()
    fraction(f, "truncate")
    a, k = same_size(a, n, "truncate: a"), wrap(k, n, f, "truncate: k")
    if chat is not None:
        chat, gamma = plane(chat, n, "truncate: chat"), same_size(gamma, n, "truncate: gamma").view(m.shape)
    kernels = native(m)
    if kernels is None:
        return twins.truncate(m, a.view(m.shape), k.view(m.shape), f, first, offset, chat, gamma)
    out = _like(m)
    kernels.truncate(
        out.data_ptr(), m.data_ptr(), a.data_ptr(), k.data_ptr(), k.element_size(), _address(chat), _address(gamma), n, f,
        offset, first, get_num_threads(),
    )  # fmt: skip
    return out


def bit_times(words: Tensor, v: Tensor | None, n: int) -> Tensor:
    """bit * v for each of n packed bits; the bit itself as 0 or 1 when v is None."""
    words = plane(words, n, "bit_times: words")
    if v is not None:
        v = same_size(v, n, "bit_times: v")
    kernels = native(words)
    if kernels is None:
        return twins.bit_times(words, v, n)
    out = words.new_empty(n) if v is None else _like(v)
    kernels.bit_times(out.data_ptr(), words.data_ptr(), _address(v), n, get_num_threads())
    return out


def select(bhat: Tensor, m: Tensor, lam: Tensor | None, beta: Tensor, beta_lam: Tensor, first: bool) -> Tensor:
    """Share of b * x for x = m - lam and the masked bit b = bhat ^ beta.

    lam (None: zero), beta, beta_lam: additive shares of the mask, of beta and of beta * lam.
    bhat * (first * m - lam) + (1 - 2 bhat) * (m * beta - beta_lam).
    """
    m = ring(m, "select: m")
    n = m.numel()
    bhat = plane(bhat, n, "select: bhat")
    beta, beta_lam = same_size(beta, n, "select: beta"), same_size(beta_lam, n, "select: beta_lam")
    if lam is not None:
        lam = same_size(lam, n, "select: lam").view(m.shape)
    kernels = native(m)
    if kernels is None:
        return twins.select(bhat, m, lam, beta.view(m.shape), beta_lam.view(m.shape), first)
    out = _like(m)
    kernels.select(
        out.data_ptr(), bhat.data_ptr(), m.data_ptr(), _address(lam), beta.data_ptr(),
        beta_lam.data_ptr(), n, first, get_num_threads(),
    )  # fmt: skip
    return out


def select_truncated(
    bhat: Tensor, m: Tensor, a: Tensor, k: Tensor, b: Tensor, ba: Tensor, bk: Tensor, f: int, first: bool,
    offset: int = 0, chat: Tensor | None = None, gamma: Tensor | None = None, bgamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of b * ((x + offset) >> f) for the masked bit b = bhat ^ beta; offset, chat and gamma as for `truncate`.

    a, k: additive shares of what `deal_truncation` returns; b, ba, bk, bgamma: additive shares of beta, beta * a,
    beta * k, beta * gamma. With s as in `truncate`, p its public part less the bit chat, and K = k * 2^(64-f):
    bhat * (first * p - a + s K - (1 - 2 chat) gamma) + (1 - 2 bhat) * (p b - ba + s beta K - (1 - 2 chat) bgamma).
    """
    m = ring(m, "select_truncated: m")
    n = m.numel()
    bhat = plane(bhat, n, "select_truncated: bhat")
    fraction(f, "select_truncated")
    a, k = same_size(a, n, "select_truncated: a"), wrap(k, n, f, "select_truncated: k")
    b, ba = same_size(b, n, "select_truncated: b"), same_size(ba, n, "select_truncated: ba")
    bk = wrap(bk, n, f, "select_truncated: bk")
    if chat is not None:
        chat = plane(chat, n, "select_truncated: chat")
        gamma, bgamma = (same_size(t, n, "select_truncated: carry").view(m.shape) for t in (gamma, bgamma))
    kernels = native(m)
    if kernels is None:
        shares = (t.view(m.shape) for t in (a, k, b, ba, bk))
        return twins.select_truncated(bhat, m, *shares, f, first, offset, chat, gamma, bgamma)
    out = _like(m)
    kernels.select_truncated(
        out.data_ptr(), bhat.data_ptr(), m.data_ptr(), a.data_ptr(), k.data_ptr(), b.data_ptr(), ba.data_ptr(),
        bk.data_ptr(), k.element_size(), _address(chat), _address(gamma), _address(bgamma), n, f, offset, first,
        get_num_threads(),
    )  # fmt: skip
    return out


def bit_to_ring(bhat: Tensor, beta: Tensor, first: bool) -> Tensor:
    """Share of the masked bit b = bhat ^ beta as a ring value: first * bhat + (1 - 2 bhat) * beta."""
    beta = ring(beta, "bit_to_ring: beta")
    bhat = plane(bhat, beta.numel(), "bit_to_ring: bhat")
    kernels = native(beta)
    if kernels is None:
        return twins.bit_to_ring(bhat, beta, first)
    out = _like(beta)
    kernels.bit_to_ring(out.data_ptr(), bhat.data_ptr(), beta.data_ptr(), beta.numel(), first, get_num_threads())
    return out


def encode(x: Tensor, frac_bits: int) -> Tensor:
    """Nearest integer to x * 2^frac_bits, ties to even; float32 or float64 -> int64. The range is not checked."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"encode: x must be float32 or float64, not {x.dtype}")
    kernels = native(x)
    if kernels is None:
        return twins.encode(x, frac_bits)
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=torch.int64)
    kernels.encode(out.data_ptr(), x.data_ptr(), x.numel(), x.dtype is torch.float64, 2.0**frac_bits, get_num_threads())
    return out


def decode(x: Tensor, frac_bits: int) -> Tensor:
    """x / 2^frac_bits as float32 (through float64)."""
    x = ring(x, "decode: x")
    kernels = native(x)
    if kernels is None:
        return twins.decode(x, frac_bits)
    out = torch.empty(x.shape, dtype=torch.float32)
    kernels.decode(out.data_ptr(), x.data_ptr(), x.numel(), 2.0**-frac_bits, get_num_threads())
    return out
