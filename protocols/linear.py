"""Linear operations with public structure: the same function acts on values, masks and shares.

Each entry takes ring tensors (int64) and public attributes and is linear modulo 2^64, so it may be
applied to m and lam of a masked value, to additive shares and, by whoever deals, to whole masks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial

import torch


def _window_sum(
    x: torch.Tensor, dim: int, starts: list[int] | torch.Tensor, ends: list[int] | torch.Tensor
) -> torch.Tensor:
    """Sums over the index ranges [starts[i], ends[i]) of one axis; exact in the ring by prefix sums."""
    zero = torch.zeros_like(x.narrow(dim, 0, 1))
    prefix = torch.cat([zero, x.cumsum(dim)], dim)
    index = lambda at: torch.as_tensor(at, device=x.device)
    return prefix.index_select(dim, index(ends)) - prefix.index_select(dim, index(starts))


def _pad(x: torch.Tensor, pads: list[int]) -> torch.Tensor:
    """Zero padding in torch.nn.functional.pad's order (last axis first); negative pads crop."""
    return torch.nn.functional.pad(x, pads)


def _slice(x: torch.Tensor, dim: int, start: int, stop: int, step: int) -> torch.Tensor:
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def _index(x: torch.Tensor, dim: int, index: list[int] | torch.Tensor) -> torch.Tensor:
    at = torch.as_tensor(index, device=x.device)
    return x[..., at] if dim == x.dim() - 1 else x.index_select(dim, at)  # the same; each is the faster one


def _index_sub(
    x: torch.Tensor, dim: int, plus: list[int] | torch.Tensor, minus: list[int] | torch.Tensor
) -> torch.Tensor:
    """Differences of positions of one axis."""
    return _index(x, dim, plus) - _index(x, dim, minus)


LINEAR: dict[str, Callable[..., torch.Tensor]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "neg": lambda x: -x,
    "scale": lambda x, factor, bits=0: x * factor,  # with so many fractional bits more
    "ldexp": lambda x, bits: x,  # the same ring elements, read with so many fractional bits more
    "reshape": lambda x, shape: x.reshape(shape),
    "permute": lambda x, dims: x.permute(dims),
    "expand": lambda x, shape: x.expand(shape),
    "slice": _slice,
    "index_sub": _index_sub,
    "flip": lambda x, dims: x.flip(dims),
    "index": _index,
    "cat": lambda *xs, dim: torch.cat(xs, dim),
    "pad": _pad,
    "sum": lambda x, dims, keepdim: x.sum(dims, keepdim=keepdim),
    "window_sum": _window_sum,
}

_SAME_SHAPE = frozenset({"neg", "scale", "ldexp", "flip"})


def linear_shape(kind: str, shapes: Sequence[Sequence[int]], attrs: dict) -> tuple[int, ...]:
    """The shape of a linear operation's result. Raises what torch raises where there is none."""
    if kind in ("add", "sub"):
        x, y = map(tuple, shapes)
        return x if x == y else tuple(torch.broadcast_shapes(x, y))
    if kind in _SAME_SHAPE:
        return tuple(shapes[0])
    meta = [torch.empty(tuple(shape), dtype=torch.int64, device="meta") for shape in shapes]
    return tuple(LINEAR[kind](*meta, **attrs).shape)


LAYOUT = frozenset({"ldexp", "reshape", "permute", "expand", "slice", "flip", "index", "pad"})
"""Operations that only move elements: each output element is one input element or zero."""


def apply(
    kind: str,
    tensors: Sequence[torch.Tensor | None],
    attrs: dict,
    shapes: Sequence[Sequence[int]],
    shape: Sequence[int],
) -> torch.Tensor | None:
    """Applies a linear operation to shares, where a share of None is zero.

    `shapes` are the operands' shapes and `shape` the result's.
    """
    if all(t is None for t in tensors):
        return None
    if any(t is None for t in tensors):
        present = next(t for t in tensors if t is not None)
        if kind in ("add", "sub"):
            return (-present if kind == "sub" and tensors[0] is None else present).expand(shape)
        tensors = [present.new_zeros(()).expand(s) if t is None else t for t, s in zip(tensors, shapes, strict=True)]
    return LINEAR[kind](*tensors, **attrs)


def ready(kind: str, attrs: dict, device: torch.device) -> Callable[..., torch.Tensor]:
    """A linear operation of tensors alone, with its attributes: what follows from these is made once, for a device."""
    if kind in _READY:
        return _READY[kind](device=device, **attrs)
    return partial(LINEAR[kind], **attrs) if attrs else LINEAR[kind]


def _times(factor: int, device: torch.device, bits: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x * factor


def _sliced(dim: int, start: int, stop: int, step: int, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    at = (slice(None),) * dim + (slice(start, stop, step),)
    return lambda x: x[at]


def _windows(dim: int, starts: list[int], ends: list[int], device: torch.device) -> Callable[..., torch.Tensor]:
    first, behind = (torch.as_tensor(at, device=device) for at in (starts, ends))
    return partial(_window_sum, dim=dim, starts=first, ends=behind)


_READY: dict[str, Callable[..., Callable[..., torch.Tensor]]] = {
    "add": lambda device: operator.add,
    "sub": lambda device: operator.sub,
    "neg": lambda device: operator.neg,
    "scale": _times,
    "ldexp": lambda device, bits: lambda x: x,
    "slice": _sliced,
    "index": lambda device, dim, index: partial(_index, dim=dim, index=torch.as_tensor(index, device=device)),
    "index_sub": lambda device, dim, plus, minus: partial(
        _index_sub, dim=dim, plus=torch.as_tensor(plus, device=device), minus=torch.as_tensor(minus, device=device)
    ),
    "window_sum": _windows,
}
