"""What the owners of columns compute of them in the clear, before anything is shared: codes, numbers, categories.

Columns may be those of several parties: a module takes one tensor float[rows, its columns] of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

Missing = Literal["low", "high", "zero", "refused"]
"""Where a missing value stands among the numbers: below all of them, above them, at zero, or nowhere."""

LOW_BITS = 26
_LOW = (1 << LOW_BITS) - 1
_BITS = {True: 31, False: 52}
_ZERO = 1.0000000180025095e-35
"""LightGBM's zero reaches so far."""
_NOWHERE = 1 << 60
"""A code that no program has room for: its owner is told so before anything is sent."""


@dataclass(frozen=True)
class Coded:
    """A column as whole numbers in the order of its values; `single`: as float32 first, which some libraries compare.

    `also` is a number that stands for what is missing, beside NaN. `flat`: what LightGBM takes for zero is zero.
    """

    column: int
    single: bool
    missing: Missing = "refused"
    also: float | None = None
    flat: bool = False


@dataclass(frozen=True)
class Number:
    """A column times 2^-exponent, with `missing` (None: refused) in place of what is missing."""

    column: int
    exponent: int = 0
    missing: float | None = None


@dataclass(frozen=True)
class Equals:
    """1 where a column is this value, else 0; NaN is what is missing. `known`: the values it may have, if others are refused."""

    column: int
    value: float
    known: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Above:
    """1 where a column is above this value, else 0."""

    column: int
    value: float


Source = Coded | Number | Equals | Above


def code(x: torch.Tensor, single: bool) -> torch.Tensor:
    """Whole numbers in the order of floats: their bits, of float32 (|code| <= 2^31) or float64 (cut to |code| <= 2^52).

    Both zeros are 0. Cutting rounds down; numbers that differ by 2^-40 of themselves keep their order.
    """
    if single:
        bits = (x.float() + 0.0).view(torch.int32).long()
        return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    bits = (x.double() + 0.0).view(torch.int64)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits) >> 11


def number_of(codes: np.ndarray) -> np.ndarray:
    """The least float64 of each code."""
    bits = np.asarray(codes, np.int64) << 11
    return np.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits).view(np.float64)


def code_bits(single: bool) -> int:
    """Differences of codes stay below 2 to this."""
    return _BITS[single] + 1


def code_at_most(limit: np.ndarray | float, single: bool) -> np.ndarray:
    """The code that those of numbers <= limit are below."""
    exact = np.asarray(limit, np.float64)
    if single:
        with np.errstate(over="ignore"):
            near = exact.astype(np.float32)
            exact = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float64)
    return code(torch.as_tensor(exact), single).numpy() + 1


def code_less(limit: np.ndarray | float) -> np.ndarray:
    """The code that those of float32 numbers < limit are below, for a limit in float32."""
    return code(torch.as_tensor(np.asarray(limit, np.float32)), True).numpy()


def halves(codes: torch.Tensor) -> torch.Tensor:
    """[..., n] codes as [..., 2 n] smaller numbers, which fixed point has room for: the high parts, then the low ones."""
    return torch.cat([codes >> LOW_BITS, codes & _LOW], -1)


def whole(parts: torch.Tensor) -> torch.Tensor:
    """The codes of `halves`."""
    high, low = parts.chunk(2, -1)
    return (high << LOW_BITS) + low


class Sources(nn.Module):
    """One tensor for each party's columns, as [rows, sources] in the order of `sources`, which are all of one kind.

    `groups` has the columns of each tensor. Codes come as `halves`, [rows, 2 sources].
    """

    def __init__(self, sources: Sequence[Source], groups: Sequence[Sequence[int]]) -> None:
        super().__init__()
        owner = {column: (part, at) for part, group in enumerate(groups) for at, column in enumerate(group)}
        self.parts: list[list[Source]] = [[] for _ in groups]
        self.places: list[list[int]] = [[] for _ in groups]
        numbers: list[list[int]] = [[] for _ in groups]
        for number, source in enumerate(sources):
            part, at = owner[source.column]
            self.parts[part].append(source)
            self.places[part].append(at)
            numbers[part].append(number)
        if sources and isinstance(sources[0], Coded):
            numbers = [[*part, *(len(sources) + number for number in part)] for part in numbers]
        flat = [number for part in numbers for number in part]
        self.order = [flat.index(number) for number in range(len(flat))]

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        given = zip(self.parts, self.places, tensors, strict=True)
        made = [_made(part, tensor[:, places]) for part, places, tensor in given if part]
        joined = torch.cat(made, 1) if len(made) > 1 else made[0]
        return joined if self.order == list(range(len(self.order))) else joined[:, self.order]


def _made(sources: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    values = lambda name: torch.tensor([getattr(source, name) for source in sources], dtype=torch.float64)
    if isinstance(sources[0], Coded):
        bits = _BITS[sources[0].single]
        stands = {"low": -(1 << bits), "high": (1 << bits) - 1, "zero": 0, "refused": _NOWHERE}
        x = torch.where(x.abs() <= _ZERO, 0.0, x) if sources[0].flat else x
        gone, missing = x.isnan(), torch.tensor([stands[source.missing] for source in sources])
        if any(source.also is not None for source in sources):
            also = torch.tensor([float("nan") if s.also is None else s.also for s in sources], dtype=torch.float64)
            gone = gone | ((x.float() == also.float()) if sources[0].single else (x.double() == also))
        return halves(torch.where(gone, missing, code(x, sources[0].single)))
    x = x.double()
    if isinstance(sources[0], Above):
        return (x > values("value")).long()
    if isinstance(sources[0], Equals):
        wanted = values("value")
        made = torch.where(wanted.isnan(), x.isnan(), x == wanted).long()
        if all(source.known is None for source in sources):
            return made
        strange = [
            torch.zeros_like(column, dtype=torch.bool) if source.known is None
            else ~(column.isnan() | (column.unsqueeze(1) == torch.tensor(source.known, dtype=torch.float64)).any(1))
            for source, column in zip(sources, x.unbind(1), strict=True)
        ]  # fmt: skip
        return torch.where(torch.stack(strange, 1), _NOWHERE, made)
    given = [source.missing for source in sources]
    instead = torch.tensor([float("nan") if m is None else m for m in given], dtype=torch.float64)
    return torch.where(x.isnan(), instead, x) * 2.0 ** -values("exponent")
