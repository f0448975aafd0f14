"""Truncation, selection and fixed point in C++."""

import torch
from torch import Tensor, get_num_threads

from protocols.kernels.cpu import build
from protocols.kernels.twins.pointwise import wrap_dtype


def _like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def deal_truncation(lam: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """lam >> f (logical), and the top bit of lam."""
    a, k = _like(lam), torch.empty(lam.shape, dtype=wrap_dtype(f))
    build.module.deal_truncation(
        a.data_ptr(), k.data_ptr(), k.element_size(), lam.data_ptr(), lam.numel(), f, get_num_threads()
    )
    return a, k


def truncate(
    m: Tensor, a: Tensor, k: Tensor, f: int, first: bool, offset: int = 0, chat: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of (x + offset) >> f."""
    out = _like(m)
    build.module.truncate(
        out.data_ptr(), m.data_ptr(), a.data_ptr(), k.data_ptr(), k.element_size(), _address(chat), _address(gamma),
        m.numel(), f, offset, first, get_num_threads(),
    )  # fmt: skip
    return out


def bit_times(words: Tensor, v: Tensor | None, n: int) -> Tensor:
    """bit * v; the bit itself as 0 or 1 when v is None."""
    out = words.new_empty(n) if v is None else _like(v)
    build.module.bit_times(out.data_ptr(), words.data_ptr(), _address(v), n, get_num_threads())
    return out


def select(bhat: Tensor, m: Tensor, lam: Tensor | None, beta: Tensor, beta_lam: Tensor, first: bool) -> Tensor:
    """Share of b * x."""
    out = _like(m)
    build.module.select(
        out.data_ptr(), bhat.data_ptr(), m.data_ptr(), _address(lam), beta.data_ptr(), beta_lam.data_ptr(), m.numel(),
        first, get_num_threads(),
    )  # fmt: skip
    return out


def select_truncated(
    bhat: Tensor, m: Tensor, a: Tensor, k: Tensor, b: Tensor, ba: Tensor, bk: Tensor, f: int, first: bool,
    offset: int = 0, chat: Tensor | None = None, gamma: Tensor | None = None, bgamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of b * ((x + offset) >> f)."""
    out = _like(m)
    build.module.select_truncated(
        out.data_ptr(), bhat.data_ptr(), m.data_ptr(), a.data_ptr(), k.data_ptr(), b.data_ptr(), ba.data_ptr(),
        bk.data_ptr(), k.element_size(), _address(chat), _address(gamma), _address(bgamma), m.numel(), f, offset, first,
        get_num_threads(),
    )  # fmt: skip
    return out


def bit_to_ring(bhat: Tensor, beta: Tensor, first: bool) -> Tensor:
    """Share of the bit b as a ring value."""
    out = _like(beta)
    build.module.bit_to_ring(out.data_ptr(), bhat.data_ptr(), beta.data_ptr(), beta.numel(), first, get_num_threads())
    return out


def encode(x: Tensor, frac_bits: int) -> Tensor:
    """Nearest integer to x * 2^frac_bits, ties to even."""
    out = torch.empty(x.shape, dtype=torch.int64)
    wide = x.dtype is torch.float64
    build.module.encode(out.data_ptr(), x.data_ptr(), x.numel(), wide, 2.0**frac_bits, get_num_threads())
    return out


def decode(x: Tensor, frac_bits: int) -> Tensor:
    """x / 2^frac_bits as float32."""
    out = torch.empty(x.shape, dtype=torch.float32)
    build.module.decode(out.data_ptr(), x.data_ptr(), x.numel(), 2.0**-frac_bits, get_num_threads())
    return out
