"""What a party sees of its own rows before anything of them is sent: whether a training has room for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch

from securemodel.engines.clear import ClearSide
from securemodel.errors import InputError
from securemodel.program import StepProgram
from securemodel.training.compiling import TrainingProgram
from securemodel.training.datasets import Batches, Positions

Encode = Callable[[Sequence[torch.Tensor | None]], object]
"""Computes and encodes what a party does of its parts of a batch. Raises InputError."""


def encoder(program: StepProgram, me: str) -> Encode:
    """What this party encodes of its rows alone in a run of this program, or before it."""
    if isinstance(program, TrainingProgram) and program.with_inputs:
        program = program.with_inputs
    count = len(program.step.batch) if program.step else 0
    side, graph = ClearSide(program, me), program.graph
    side.set_model(program.model)

    def of_rows(node_id: int, seen: set[int]) -> bool:
        node = graph[node_id]
        if node_id in seen:
            return True
        seen.add(node_id)
        kind, _, name = node.attrs["name"].partition(":") if node.op == "placeholder" else ("", "", "")
        return (kind != "input" or int(name) < count) and all(of_rows(at, seen) for at in node.args)

    entering = [n for n in graph.nodes if n.op in ("input", "own", "encode", "positions") and n.phase == "run"]
    mine = [n for n in entering if graph[n.args[0]].form == "float" and graph[n.args[0]].owner == me]
    nodes = [node for node in mine if of_rows(node.args[0], set())]

    def encode(given: Sequence[torch.Tensor | None]) -> None:
        side.set_inputs([*given, *[None] * (len(program.header.inputs) - len(given))])
        for node in nodes:
            side.encoded(node)

    return encode


def check_rows(batches: Batches, me: str, encode: Encode) -> None:
    """Encodes all rows of a party, batch after batch. Raises InputError, which says the column and the row."""
    mine = [(name, piece) for name, _, piece in batches.parts() if piece.party == me]
    for name, piece in mine:
        try:
            _ = piece.tensor
        except InputError as error:
            raise InputError(f"column {name!r}: {error}") from error
    for places in batches.in_turn() if mine else ():
        try:
            encode(batches.rows_at(places, me))
        except InputError as error:
            raise _located(batches, me, encode, places, error) from error


def _located(batches: Batches, me: str, encode: Encode, places: Positions, error: InputError) -> InputError:
    """The error that a row of these gives by itself; where none does, that of all together."""
    for number in range(max(batches.sizes)):
        alone = tuple(np.full_like(at, at[number % len(at)]) for at in places)
        try:
            encode(batches.rows_at(alone, me))
        except InputError as found:
            rows = [at[place[0] % len(at)] for at, place in zip(batches.data.positions, alone, strict=True)]
            return _named(found, [f"{name!r}, row {rows[part]}" for name, part, _ in batches.parts()])
    return _named(error, [repr(name) for name, _, _ in batches.parts()])


def _named(error: InputError, columns: Sequence[str]) -> InputError:
    """The same where a program's inputs are called by the names of their columns, and the row, counted from 0."""
    first, *rest = str(error).splitlines()
    first = re.sub(r"\binput (\d+)", lambda at: f"column {columns[int(at[1])]}", first)
    return InputError("\n".join([first, *rest]))
