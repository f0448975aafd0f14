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


def truncate(m: Tensor, a: Tensor, k: Tensor, f: int, first: bool) -> Tensor:
    """Share of x >> f, possibly one too high in the last place, for |x| < 2^62.

    a, k: additive shares of what `deal_truncation` returns. With m' = m + 2^62 and s = 1 - msb(m'):
    first * ((m' >> f) - 2^(62-f)) - a + s * k * 2^(64-f).
    """
    m = ring(m, "truncate: m")
    n = m.numel()
    fraction(f, "truncate")
    a, k = same_size(a, n, "truncate: a"), wrap(k, n, f, "truncate: k")
    kernels = native(m)
    if kernels is None:
        return twins.truncate(m, a.view(m.shape), k.view(m.shape), f, first)
    out = _like(m)
    kernels.truncate(
        out.data_ptr(), m.data_ptr(), a.data_ptr(), k.data_ptr(), k.element_size(), n, f, first, get_num_threads()
    )
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
    kernels.bit_times(out.data_ptr(), words.data_ptr(), 0 if v is None else v.data_ptr(), n, get_num_threads())
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
        out.data_ptr(), bhat.data_ptr(), m.data_ptr(), 0 if lam is None else lam.data_ptr(), beta.data_ptr(),
        beta_lam.data_ptr(), n, first, get_num_threads(),
    )  # fmt: skip
    return out


def select_truncated(
    bhat: Tensor, m: Tensor, a: Tensor, k: Tensor, b: Tensor, ba: Tensor, bk: Tensor, f: int, first: bool
) -> Tensor:
    """Share of b * (x >> f) for the masked bit b = bhat ^ beta.

    a, k: additive shares of what `deal_truncation` returns; b, ba, bk: additive shares of beta, beta * a, beta * k.
    With s as in `truncate`, p its public part and K = k * 2^(64-f):
    bhat * (first * p - a + s * K) + (1 - 2 bhat) * (p * b - ba + s * beta K).
    """
    m = ring(m, "select_truncated: m")
    n = m.numel()
    bhat = plane(bhat, n, "select_truncated: bhat")
    fraction(f, "select_truncated")
    a, k = same_size(a, n, "select_truncated: a"), wrap(k, n, f, "select_truncated: k")
    b, ba = same_size(b, n, "select_truncated: b"), same_size(ba, n, "select_truncated: ba")
    bk = wrap(bk, n, f, "select_truncated: bk")
    kernels = native(m)
    if kernels is None:
        return twins.select_truncated(bhat, m, *(t.view(m.shape) for t in (a, k, b, ba, bk)), f, first)
    out = _like(m)
    kernels.select_truncated(
        out.data_ptr(), bhat.data_ptr(), m.data_ptr(), a.data_ptr(), k.data_ptr(), b.data_ptr(), ba.data_ptr(),
        bk.data_ptr(), k.element_size(), n, f, first, get_num_threads(),
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
