"""What a gate is: the parts it is dealt, how they are made from masks, how a party evaluates it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch

from protocols.shares import Role

Shape = tuple[int, ...]
Dealt = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """One dealt tensor: shared additively (`add`) or by exclusive or (`xor`).

    `low`: of ring elements, how many low bytes of each are sent, padded to whole words; None: all. The sum of the shares is
    right in these, whatever the others are.
    """

    name: str
    sharing: str
    shape: Shape
    dtype: torch.dtype = torch.int64
    low: int | None = None

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one share, as it is sent."""
        count = numel(self.shape)
        return count * self.dtype.itemsize if self.low is None else -(-count * self.low // 8) * 8


def ring_part(name: str, shape: Shape, attrs: dict, bits: int = 64, more: int = 0) -> Part:
    """Ring elements that a gate multiplies by whole numbers and adds up, `bits` of which it looks at, with their sum times
    2^more: if "read" low bits of its result are read, no more are dealt, as sums and products are right modulo 2^n where
    their operands are.
    """
    low = -(-max(1, min(bits, attrs.get("read", 64) - (64 - bits)) - more) // 8)
    return Part(name, "add", tuple(shape), low=low if low < 8 else None)


def ready_attrs(attrs: dict, device: torch.device) -> dict:
    """A gate's attributes for many evaluations: a table and terms in them are tensors on the device, as gates take them too."""
    made = dict(attrs)
    if "table" in attrs:
        made["table"] = torch.tensor(attrs["table"], dtype=torch.int64, device=device)
    if "terms" in attrs:
        made["terms"] = Terms.of(attrs["terms"], device)
    return made


class Terms(NamedTuple):
    """Products of bits, for each factor: which row it is, and minus one where the opposite is meant, for each term."""

    rows: tuple[torch.Tensor, ...]
    opposites: tuple[torch.Tensor, ...]
    several: torch.Tensor
    """Which subsets of factors, numbered in binary, have two members or more."""

    @staticmethod
    def of(terms: Terms | Sequence[Sequence[Sequence[Any]]], device: torch.device) -> Terms:
        """Of lists of (row, whether the opposite is meant), one for each term; `Terms` as they are."""
        if isinstance(terms, Terms):
            return terms
        factors = list(zip(*terms, strict=True))
        return Terms(
            tuple(torch.tensor([row for row, _ in factor], device=device) for factor in factors),
            tuple(torch.tensor([[-int(other)] for _, other in factor], device=device) for factor in factors),
            torch.tensor([s for s in range(2 ** len(factors)) if s.bit_count() > 1], dtype=torch.int64, device=device),
        )


class Gate(Protocol):
    """A correlated operation (one file each in this package).

    `shapes` are the operands' shapes and `shape` the result's. `masks` are the operands' full masks,
    known only where dealing happens; `operands` are one party's forms of the operands. The result is this party's share of it,
    or its masked form (`REMASKED`).
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]: ...

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt: ...

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Any], dealt: Dealt) -> Any: ...


def dealt_bytes(gate: Gate, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> int:
    """Preprocessing bytes of one evaluation: what is sent to the last party (section 1 of docs/protocol.md)."""
    return sum(part.nbytes for part in gate.parts(attrs, shapes, shape))


def numel(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    count = 1
    for size in shape:
        count *= size
    return count
