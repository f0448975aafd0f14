"""Truncation, selection and fixed point in plain torch."""

from typing import cast

import torch
from torch import Tensor

from protocols.kernels.twins.planes import unpack_bits
from protocols.kernels.twins.ring import shift_right


def _bits(words: Tensor, like: Tensor) -> Tensor:
    return unpack_bits(words, like.numel()).to(torch.int64).reshape(like.shape)


def wrap_dtype(f: int) -> torch.dtype:
    """The narrowest type of at least f bits: what is multiplied by 2^(64-f) counts modulo 2^f only."""
    return torch.int16 if f <= 16 else torch.int32 if f <= 32 else torch.int64


def deal_truncation(lam: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """lam >> f (logical), and the top bit of lam."""
    return shift_right(lam, f), shift_right(lam, 63).to(wrap_dtype(f))


def _shifted(m: Tensor, f: int, offset: int) -> tuple[Tensor, Tensor]:
    """The public part of the truncated value, and whether m's top bit is clear."""
    raised = m + (offset + (1 << 62))
    return shift_right(raised, f) - (1 << (62 - f)), 1 - shift_right(raised, 63)


def truncate(
    m: Tensor, a: Tensor, k: Tensor, f: int, first: bool, offset: int = 0, chat: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of (x + offset) >> f."""
    public, clear = _shifted(m, f, offset)
    carry = 0 if chat is None else bit_to_ring(chat, cast(Tensor, gamma).view(m.shape), first)
    a, k = a.view(m.shape), k.view(m.shape).to(torch.int64)
    return (public if first else 0) - a + (clear * k << (64 - f)) - carry


def bit_times(words: Tensor, v: Tensor | None, n: int) -> Tensor:
    """bit * v; the bit itself as 0 or 1 when v is None."""
    bits = unpack_bits(words, n).to(torch.int64)
    return bits if v is None else bits.reshape(v.shape) * v


def select(bhat: Tensor, m: Tensor, lam: Tensor | None, beta: Tensor, beta_lam: Tensor, first: bool) -> Tensor:
    """Share of b * x."""
    bits = _bits(bhat, m)
    own = (m if first else 0) - (0 if lam is None else lam.view(m.shape))
    return bits * own + (1 - 2 * bits) * (m * beta.view(m.shape) - beta_lam.view(m.shape))


def select_truncated(
    bhat: Tensor, m: Tensor, a: Tensor, k: Tensor, b: Tensor, ba: Tensor, bk: Tensor, f: int, first: bool,
    offset: int = 0, chat: Tensor | None = None, gamma: Tensor | None = None, bgamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of b * ((x + offset) >> f)."""
    bits = _bits(bhat, m)
    public, clear = _shifted(m, f, offset)
    b, ba, bk = (t.view(m.shape) for t in (b, ba, bk))
    other = public * b - ba + (clear * bk.to(torch.int64) << (64 - f))
    if chat is not None:  # b c = bhat c + (1 - 2 bhat) (chat beta + (1 - 2 chat) beta gamma)
        carries = _bits(chat, m)
        other -= carries * b + (1 - 2 * carries) * cast(Tensor, bgamma).view(m.shape)
    return bits * truncate(m, a, k, f, first, offset, chat, gamma) + (1 - 2 * bits) * other


def bit_to_ring(bhat: Tensor, beta: Tensor, first: bool) -> Tensor:
    """Share of the bit b as a ring value."""
    bits = _bits(bhat, beta)
    return (bits if first else 0) + (1 - 2 * bits) * beta


def encode(x: Tensor, frac_bits: int) -> Tensor:
    """Nearest integer to x * 2^frac_bits, ties to even."""
    return torch.round(x.double() * 2.0**frac_bits).to(torch.int64)


def decode(x: Tensor, frac_bits: int) -> Tensor:
    """x / 2^frac_bits as float32."""
    return (x.double() * 2.0**-frac_bits).float()
