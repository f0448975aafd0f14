"""What a gate is: the parts it is dealt, how they are made from masks, how a party evaluates it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from protocols.shares import Role

Shape = tuple[int, ...]
Dealt = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """One dealt tensor: shared additively (`add`) or by exclusive or (`xor`)."""

    name: str
    sharing: str
    shape: Shape
    dtype: torch.dtype = torch.int64

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one share."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def ready_attrs(attrs: dict, device: torch.device) -> dict:
    """A gate's attributes for many evaluations: a table in them is a tensor on the device, as gates take it too."""
    if "table" not in attrs:
        return attrs
    return {**attrs, "table": torch.tensor(attrs["table"], dtype=torch.int64, device=device)}


class Gate(Protocol):
    """A correlated operation (one file each in this package).

    `shapes` are the operands' shapes and `shape` the result's. `masks` are the operands' full masks,
    known only where dealing happens; `operands` are one party's forms of the operands.
    """

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]: ...

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt: ...

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Any], dealt: Dealt) -> torch.Tensor: ...


def dealt_bytes(gate: Gate, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> int:
    """Preprocessing bytes of one evaluation: what is sent to the last party (section 1 of docs/protocol.md)."""
    return sum(part.nbytes for part in gate.parts(attrs, shapes, shape))


def numel(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    count = 1
    for size in shape:
        count *= size
    return count
