"""Intervals of tensors and their arithmetic.

Sums of products are bounded around the middle of their operands [Rump 1999, "Fast and parallel interval arithmetic",
section 4].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

UNBOUNDED = 2.0**300
"""Bounds from here on are none. Products of two are finite, and with any number of fixed point too large for it."""
_SLACK = 2.0**-40
_FORBIDDEN, INFINITE = 2.0**24, 2.0**29


@dataclass(frozen=True, repr=False)
class Interval:
    """Tensors of one shape, float64: each element lies in [low, high]."""

    low: torch.Tensor
    high: torch.Tensor

    @property
    def magnitudes(self) -> torch.Tensor:
        """The largest magnitude of each element."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def largest(self) -> float:
        """The largest magnitude of all elements."""
        return float(self.magnitudes.max()) if self.low.numel() else 0.0

    @property
    def middle(self) -> torch.Tensor:
        return (self.low + self.high) / 2

    @property
    def radius(self) -> torch.Tensor:
        return (self.high - self.low) / 2


def between(low: torch.Tensor, high: torch.Tensor) -> Interval:
    """An interval with room for rounding, whose bounds are finite; a bound that is no number is none."""
    low, high = low.double(), high.double()
    low, high = torch.where(low.isnan(), -UNBOUNDED, low), torch.where(high.isnan(), UNBOUNDED, high)
    low, high = low.clamp(-UNBOUNDED, UNBOUNDED), high.clamp(-UNBOUNDED, UNBOUNDED)
    return Interval(low - low.abs() * _SLACK, high + high.abs() * _SLACK)


def within(shape: Sequence[int], low: float, high: float) -> Interval:
    """Any numbers of a shape that lie in [low, high]."""
    made = torch.zeros(tuple(shape), dtype=torch.float64)
    return Interval(made + low, made + high)


def unbounded(shape: Sequence[int]) -> Interval:
    """Any numbers of a shape."""
    return within(shape, -UNBOUNDED, UNBOUNDED)


def as_interval(x: Any) -> Interval:
    """A number or tensor that is known, or an interval as it is; infinite and huge numbers are those of masks."""
    if isinstance(x, Interval):
        return x
    known = torch.as_tensor(x).double()
    known = torch.where(known.abs() >= INFINITE, known.sign() * _FORBIDDEN, known)
    return Interval(known, known)


def hull(x: Interval, dim: int | None = None, shape: Sequence[int] | None = None) -> Interval:
    """What any element along an axis, or any at all, lies in."""
    if dim is None:
        low, high = x.low.min(), x.high.max()
    else:
        low, high = x.low.amin(dim, keepdim=True), x.high.amax(dim, keepdim=True)
    return Interval(low, high) if shape is None else Interval(low.expand(tuple(shape)), high.expand(tuple(shape)))


def either(x: Interval, y: Interval) -> Interval:
    return Interval(torch.minimum(x.low, y.low), torch.maximum(x.high, y.high))


def plus(x: Interval, y: Interval) -> Interval:
    return between(x.low + y.low, x.high + y.high)


def scaled(x: Interval, factor: float | torch.Tensor) -> Interval:
    low, high = x.low * factor, x.high * factor
    return between(torch.minimum(low, high), torch.maximum(low, high))


def times(x: Interval, y: Interval) -> Interval:
    products = torch.stack(torch.broadcast_tensors(x.low * y.low, x.low * y.high, x.high * y.low, x.high * y.high))
    return between(products.amin(0), products.amax(0))


def inverse(x: Interval) -> Interval:
    """1 / x, of any size where x may be 0."""
    some = (x.low <= 0) & (x.high >= 0)
    low, high = torch.where(some, -UNBOUNDED, 1 / x.high), torch.where(some, UNBOUNDED, 1 / x.low)
    return between(low, high)


def product(f: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: Interval, y: Interval) -> Interval:
    """Of a function that is linear in both: the product of the middles, give or take those with the radii."""
    middle = f(x.middle, y.middle)
    radius = torch.zeros_like(middle)
    if bool(y.radius.any()):
        radius = radius + f(x.magnitudes, y.radius)
    if bool(x.radius.any()):
        radius = radius + f(x.radius, y.middle.abs())
    return between(middle - radius, middle + radius)


def power(x: Interval, exponent: float) -> Interval:
    if exponent < 0:
        return inverse(power(x, -exponent))
    low, high = x.low, x.high
    if exponent != int(exponent):
        low, high = low.clamp_min(0), high.clamp_min(0)
    elif exponent % 2 == 0:
        low, high = low.clamp_min(0).maximum(-high), x.magnitudes
    return between(low**exponent, high**exponent)
