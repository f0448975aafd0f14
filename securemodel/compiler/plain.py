"""Functions in place of those that torch writes with steps that torch.export cannot follow."""

from __future__ import annotations

import itertools
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


def _embedding(
    input: torch.Tensor, weight: torch.Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, *rest: Any, **named: Any,
) -> torch.Tensor:  # fmt: skip
    """Of the table with all rows cut to the norm, where torch cuts those that it reads, and writes them back."""
    table = weight if max_norm is None else _cut_rows(weight, max_norm, norm_type)
    return torch.nn.functional.embedding(input, table, padding_idx, None, norm_type, *rest, **named)


def _embedding_bag(
    input: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, *rest: Any, **named: Any,
) -> torch.Tensor:  # fmt: skip
    """The same."""
    table = weight if max_norm is None else _cut_rows(weight, max_norm, norm_type)
    return torch.nn.functional.embedding_bag(input, table, offsets, None, norm_type, *rest, **named)


def _cut_rows(weight: torch.Tensor, max_norm: float, norm_type: float) -> torch.Tensor:
    norms = torch.linalg.vector_norm(weight, norm_type, dim=1, keepdim=True)
    return weight * torch.where(norms > max_norm, max_norm / (norms + 1e-7), 1.0)


def _bincount(input: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    """For numbers below `minlength`, where that is given: the result then has a known size."""
    if not minlength:
        return torch.bincount(input, weights)
    units = torch.nn.functional.one_hot(input.long(), minlength)
    return units.sum(0) if weights is None else weights @ units.to(weights.dtype)


def _combinations(input: torch.Tensor, r: int = 2, with_replacement: bool = False) -> torch.Tensor:
    """Elements at known positions, where torch picks them with a mask."""
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    places = torch.tensor(list(choose(range(input.shape[0]), r)), dtype=torch.int64).reshape(-1, r)
    return input[places]


_PLAIN: dict[Callable, Callable] = {
    torch.nn.functional.embedding: _embedding,
    torch.nn.functional.embedding_bag: _embedding_bag,
    **dict.fromkeys((torch.bincount, torch.Tensor.bincount), _bincount),
    torch.combinations: _combinations,
    torch.Tensor.data.__get__: torch.Tensor.detach,  # type: ignore[attr-defined]  # a getter written in C
    torch.Tensor.fill_diagonal_: _fill_diagonal,
    **dict.fromkeys((torch.cov, torch.Tensor.cov), _covariance),
    **dict.fromkeys((torch.corrcoef, torch.Tensor.corrcoef), _correlation),
}
