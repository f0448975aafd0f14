"""Bilinear maps on ring tensors: products, matrix products and convolutions, exact modulo 2^64."""

from __future__ import annotations

from collections.abc import Callable

import torch

from protocols import kernels


def _mul(x, y, out=None, accumulate=None):
    if out is None:
        return x * y
    if accumulate == "sub":
        return out.sub_(x * y)
    return out.add_(x * y) if accumulate == "add" else out.copy_(x * y)


def _matmul(x, y, out=None, accumulate=None):
    return kernels.matmul(x, y, out=out, accumulate=accumulate)


BILINEAR: dict[str, Callable[..., torch.Tensor]] = {
    "mul": _mul,
    "matmul": _matmul,
    "conv1d": kernels.conv1d,
    "conv2d": kernels.conv2d,
    "conv_transpose1d": kernels.conv_transpose1d,
    "conv_transpose2d": kernels.conv_transpose2d,
}


def bilinear(
    kind: str,
    x: torch.Tensor,
    y: torch.Tensor,
    attrs: dict,
    out: torch.Tensor | None = None,
    accumulate: str | None = None,
) -> torch.Tensor:
    """B(x, y); with `out` and accumulate "add" or "sub", adds it to or takes it from `out` in place."""
    return BILINEAR[kind](x, y, **attrs, out=out, accumulate=accumulate)


def real_bilinear(kind: str, x: torch.Tensor, y: torch.Tensor, attrs: dict) -> torch.Tensor:
    """B(x, y) of floating-point tensors."""
    return getattr(torch if kind in ("mul", "matmul") else torch.nn.functional, kind)(x, y, **attrs)
