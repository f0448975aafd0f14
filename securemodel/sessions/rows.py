"""The rows of a run: how many there are, cut into batches of the compiled number, and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch

from securemodel.compiler.ir import is_check
from securemodel.engines.walk import Inputs, Rows
from securemodel.errors import InputError
from securemodel.program import Program


def split_rows(inputs: Inputs, program: Program, mine: Sequence[bool]) -> int:
    """Number of rows given by this party (0: none of the inputs is its own). Raises InputError."""
    header, rows = program.header, set()
    if len(inputs) != len(header.inputs):
        raise InputError(
            f"run() takes {len(header.inputs)} inputs (owned by {', '.join(header.inputs)}), got {len(inputs)}. "
            "Pass None for what another party owns."
        )
    for index, (x, shape, own) in enumerate(zip(inputs, header.input_shapes, mine, strict=True)):
        if not own:
            continue
        where = f"input {index} of {header.inputs[index]!r}"
        if not isinstance(x, torch.Tensor):
            raise InputError(f"{where} must be a tensor of shape {list(shape)}, got {type(x).__name__}")
        if x.layout is not torch.strided or x.is_meta or x.is_quantized:
            what = "on the meta device" if x.is_meta else f"{x.dtype}" if x.is_quantized else f"{x.layout}"
            raise InputError(f"{where} is {what}, whose values cannot be read; give a dense tensor of numbers")
        if tuple(x.shape[1:]) != shape[1:] or x.ndim != len(shape) or (x.ndim and not x.shape[0]):
            raise InputError(
                f"{where} has shape {list(x.shape)}; the program was compiled for {list(shape)} "
                "(only the number of rows, the first axis, may differ, and not be 0)"
            )
        rows.add(x.shape[0] if x.ndim else 1)
        if tuple(x.shape) != shape and not program.row_independent:
            raise InputError(
                f"{where} has shape {list(x.shape)}; the program was compiled for {list(shape)} and its rows "
                "depend on each other, so another number of rows means another model. Compile for this shape."
            )
    if not rows:
        return 0
    owned = [
        (cast(torch.Tensor, x), shape) for x, shape, own in zip(inputs, header.input_shapes, mine, strict=True) if own
    ]
    if all(tuple(x.shape) == shape for x, shape in owned):
        return header.rows
    if len(rows) > 1:
        raise InputError(f"the inputs have different numbers of rows: {sorted(rows)}. Give as many rows in each.")
    return rows.pop()


def batches(inputs: Inputs, program: Program, total: int) -> Iterator[tuple[list[torch.Tensor | None], Rows]]:
    """Slices of the compiled number of rows; the last one is filled up with rows whose results nobody gets."""
    size = program.header.rows
    if total in (0, size):
        yield list(inputs), Rows(total, 0)
        return
    for start in range(0, total, size):
        now = min(size, total - start)
        part = [None if x is None else filled(x[start : start + now], program) for x in inputs]
        yield part, Rows(now, total - start - now)


def filled(x: torch.Tensor, program: Program) -> torch.Tensor:
    """Rows [n, ...] followed by rows of zeros, as many as the program takes.

    Where the model asserts something of its inputs, which zeros might not be, by copies of the last row; and so are masks
    and other truth values, as of a mask that forbids all a softmax is no number.
    """
    size = program.header.rows
    if x.shape[0] == size:
        return x
    copied = x.dtype is torch.bool or any(map(is_check, program.graph.nodes))
    row = x[-1:] if copied else torch.zeros_like(x[-1:])
    return torch.cat([x, row.expand(size - x.shape[0], *x.shape[1:])])


def joined(parts: list[list[torch.Tensor | None]], rows: list[Rows], program: Program) -> list:
    """Outputs of all batches together, without the rows that only filled up."""
    if len(parts) == 1 and rows[0] in (Rows(), Rows(program.header.rows, 0)):
        return parts[0]
    out: list[torch.Tensor | None] = []
    for values in zip(*parts, strict=True):
        if values[0] is None:
            out.append(None)
        else:
            out.append(torch.cat([v[: r.now] for v, r in zip(values, rows, strict=True)]))
    return out


def announced(
    batches: Iterable[Inputs], rows: int, program: Program, mine: Sequence[bool]
) -> Iterator[tuple[list[torch.Tensor | None], Rows]]:
    """Checked batches, filled up, and what is announced with each. Raises InputError."""
    size, left = program.header.rows, rows
    source = iter(batches)
    while left:
        inputs = next(source, None)
        if inputs is None:
            raise InputError(f"run_batches() was to get {rows} rows, but its batches ended {left} rows before")
        count, expected = split_rows(inputs, program, mine), min(size, left)
        if count != expected:
            raise InputError(
                f"a batch has {count} rows where {expected} are due: give {size} rows in each, "
                f"the rest in the last one, and {rows} in all"
            )
        left -= count
        owned = [x if own else None for x, own in zip(inputs, mine, strict=True)]
        yield [x if x is None or count == size else filled(x, program) for x in owned], Rows(count, left)


def others(inputs: int) -> Iterator[tuple[list[torch.Tensor | None], Rows]]:
    """What a party gives that owns no inputs."""
    while True:
        yield [None] * inputs, Rows()


@dataclass(frozen=True)
class Batch:
    """What one batch of `Session.run_batches` gave: this party's outputs, and how many rows come after it."""

    outputs: tuple[torch.Tensor | None, ...] = field(repr=False)
    rows: int
    rows_left: int
