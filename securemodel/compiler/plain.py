"""Functions in place of those that torch writes with steps that torch.export cannot follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class WrittenPlainly(TorchFunctionMode):
    """While a model is captured: calls of such functions, by whatever name, are calls of those of this module."""

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _PLAIN.get(function, function)(*args, **kwargs or {})


def _covariance(
    tensor: torch.Tensor, *, correction: int = 1, fweights: torch.Tensor | None = None,
    aweights: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """What torch does after it asked whether the number of observations is above `correction`."""
    if fweights is not None or aweights is not None or tensor.ndim > 2:
        return torch.cov(tensor, correction=correction, fweights=fweights, aweights=aweights)
    centered = _centered(tensor)
    return (centered @ centered.mH / max(centered.shape[1] - correction, 0)).squeeze()


def _correlation(tensor: torch.Tensor) -> torch.Tensor:
    """Products of normalized rows, which need no quotients of the variances."""
    if tensor.ndim > 2 or tensor.is_complex():
        return torch.corrcoef(tensor)
    rows = torch.nn.functional.normalize(_centered(tensor), dim=1)
    return (rows @ rows.mT).squeeze()


def _centered(tensor: torch.Tensor) -> torch.Tensor:
    rows = tensor if tensor.ndim == 2 else tensor.reshape(1, -1)
    return rows - rows.sum(1, keepdim=True) / rows.shape[1]


def _fill_diagonal(tensor: torch.Tensor, number: float, wrap: bool = False) -> torch.Tensor:
    """What torch does through as_strided."""
    columns = tensor.shape[-1]
    rows = range(tensor.shape[0] if wrap and tensor.ndim == 2 else min(tensor.shape))
    at = [row for row in rows if row % (columns + 1) < columns]
    across = [row % (columns + 1) for row in at]
    places = [at, *[across] * (tensor.ndim - 1)]
    tensor[tuple(places)] = number
    return tensor


_PLAIN: dict[Callable, Callable] = {
    torch.Tensor.data.__get__: torch.Tensor.detach,  # type: ignore[attr-defined]  # a getter written in C
    torch.Tensor.fill_diagonal_: _fill_diagonal,
    **dict.fromkeys((torch.cov, torch.Tensor.cov), _covariance),
    **dict.fromkeys((torch.corrcoef, torch.Tensor.corrcoef), _correlation),
}
