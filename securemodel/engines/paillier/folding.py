"""The server's linear layers multiplied out into one matrix: A and b with y = A x + b for the client's numbers x."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from protocols.linear import LINEAR
from securemodel.compiler.ir import Node
from securemodel.engines.clear import ClearSide
from securemodel.engines.paillier.program import PaillierProgram

_AT_A_TIME = 64  # rows of the matrix


def fold(program: PaillierProgram, clear: ClearSide) -> tuple[np.ndarray, np.ndarray]:
    """(A float64[outputs, inputs], b float64[outputs]) of one row, for the numbers the server has in `clear`.

    A is the derivative of the linear part, which is the same everywhere.
    """
    function, count = _linear_part(program, clear), program.shape.inputs
    origin = torch.zeros(count, dtype=torch.float64)
    matrix = torch.func.jacrev(function, chunk_size=_AT_A_TIME)(origin).detach()
    with torch.no_grad():
        return matrix.numpy(), function(origin).numpy()


def _linear_part(program: PaillierProgram, clear: ClearSide) -> Callable[[torch.Tensor], torch.Tensor]:
    """From all numbers that the client encrypts in a row to all that it decrypts, in float64."""
    encrypted, decrypted = program.nodes("encrypt"), program.nodes("decrypt")
    steps = [n for n in program.graph.nodes if n.form == "secret" and n.op != "encrypt" and n.id in program.live]
    known = {a: clear.value(a).double() for n in steps for a in n.args if program.graph[a].form == "float"}

    def function(x: torch.Tensor) -> torch.Tensor:
        env = dict(known)
        for node, part in zip(encrypted, x.split([math.prod(n.shape) for n in encrypted]), strict=True):
            env[node.id] = part.reshape(node.shape)
        for node in steps:
            env[node.id] = _apply(node, [env[a] for a in node.args])
        return torch.cat([env[n.args[0]].reshape(-1) for n in decrypted])

    return function


def _apply(node: Node, operands: list[torch.Tensor]) -> torch.Tensor:
    """What a node of the linear part computes, on reals."""
    if node.op == "linear":
        return LINEAR[node.attrs["kind"]](*operands, **node.attrs["attrs"])
    if node.op == "bilinear":
        kind, (x, y) = node.attrs["kind"], operands
        if kind in ("mul", "matmul"):
            return x * y if kind == "mul" else x @ y
        return getattr(torch.nn.functional, kind)(x, y, **node.attrs["attrs"])
    if node.op == "factor":
        return operands[0] * node.attrs["factor"]
    return operands[0] * 2.0 ** node.attrs.get("bits", 0)
