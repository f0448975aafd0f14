"""Real numbers in the ring: x is the signed integer round(x * 2^frac_bits) modulo 2^64."""

from __future__ import annotations

import torch

from protocols import kernels
from protocols.errors import InputError

_SHORT = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)


def encode(x: torch.Tensor, frac_bits: int, limit: float, what: str) -> torch.Tensor:
    """Ring tensor (int64, the shape of `x`) of a float or integer tensor.

    `limit` is the largest magnitude allowed; `what` names the value in errors.
    Raises InputError when a value is NaN, infinite, complex or outside [-limit, limit].
    """
    x = x.detach()
    if x.is_complex():
        raise InputError(f"{what} has complex numbers where real ones are read. Give its real part, or both parts.")
    if x.dtype not in (torch.float32, torch.float64):
        x = x.to(torch.float64)
    if x.numel():
        low, high = torch.aminmax(x)
        largest = max(-low.item(), high.item())
        if not largest <= limit:  # also true for NaN
            bad = "NaN or infinite values" if not torch.isfinite(x).all() else "values out of range"
            raise InputError(
                f"{what} has {bad}; with {frac_bits} fractional bits every value must be finite and within "
                f"[-{limit:.6g}, {limit:.6g}]. Clean or rescale it, or compile with other frac_bits or width."
            )
    return kernels.encode(x, frac_bits)


def decode(ring: torch.Tensor, frac_bits: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of a ring tensor: float32, or float64 where `dtype`, that of the values, has more digits than that."""
    return ring.double() * 2.0**-frac_bits if dtype not in _SHORT else kernels.decode(ring, frac_bits)
