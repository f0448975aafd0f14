"""What a party sees of its own inputs before anything is sent: whether the program has room for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch

from protocols.fixedpoint import encode
from protocols.names import PUBLIC
from securemodel.compiler.ir import Node, is_check
from securemodel.engines.clear import ClearSide
from securemodel.engines.paillier.program import PaillierProgram
from securemodel.program import Program
from securemodel.sessions.rows import filled

_ENCODED = ("input", "own", "encode", "encrypt")


def reads_own_weights(program: Program, me: str) -> bool:
    """Whether what this party computes, or checks, of its inputs alone needs weights that it gives."""
    graph = program.graph
    checks = [n.id for n in graph.nodes if is_check(n) and n.phase == "run" and n.owner in (me, PUBLIC)]
    seen, queue = set(), [*checks, *(node.args[0] for node in _encoded(program, me))]
    while queue:
        node = graph[queue.pop()]
        if node.id not in seen:
            seen.add(node.id)
            queue += node.args
            if node.op == "placeholder" and node.attrs["name"].startswith("state:"):
                return True
    return False


def input_check(program: Program, me: str, model: torch.nn.Module | None) -> Callable[[Sequence[torch.Tensor]], None]:
    """A function that computes and encodes what this party will of its inputs, as many rows as there are at most in a run.

    It raises InputError for numbers that are not finite or out of range, and what torch raises for others that the
    model cannot use, as an index that is too large. `model` is needed where `reads_own_weights`.
    """
    clear, nodes = ClearSide(program, me), _encoded(program, me)
    if model is not None:
        clear.set_model(model)
    shapes = program.header.input_shapes
    places = [index for index, owner in enumerate(program.header.inputs) if owner in (me, PUBLIC)]
    size, at_once = program.header.rows, rows_of_graph(program)

    def check(tensors: Sequence[torch.Tensor]) -> None:
        inputs: list[torch.Tensor | None] = [None] * len(shapes)
        for place, x in zip(places, tensors, strict=True):
            inputs[place] = filled(x, program)
        for start in range(0, min(size, len(tensors[0])) if at_once < size else 1, at_once):
            clear.set_inputs([None if x is None else x[start : start + at_once] for x in inputs])
            for node in nodes:
                if node.op == "encrypt":
                    limit = cast(PaillierProgram, program).settings["input_limit"]
                    encode(clear.value(node.args[0]), program.header.frac_bits, limit, clear.describe(node.args[0]))
                else:
                    clear.encoded(node)

    return check


def rows_of_graph(program: Program) -> int:
    """How many rows the graph is about: those of a run, or one where an engine walks it row by row."""
    inputs = [n for n in program.graph.nodes if n.op == "placeholder" and n.attrs["name"].startswith("input:")]
    return next((node.shape[0] for node in inputs if node.shape), program.header.rows)


def _encoded(program: Program, me: str) -> list[Node]:
    """The nodes of a run that encode a float which this party computes."""
    graph = program.graph
    encoding = [node for node in graph.nodes if node.op in _ENCODED and node.phase == "run"]
    return [n for n in encoding if graph[n.args[0]].form == "float" and graph[n.args[0]].owner in (me, PUBLIC)]
