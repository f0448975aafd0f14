"""The server's linear layers multiplied out into one matrix: A and b with y = A x + b for the client's numbers x."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from protocols.bilinear import real_bilinear
from protocols.linear import LINEAR
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
            env[node.id] = _APPLY[node.op](node.attrs, *(env[a] for a in node.args))
        return torch.cat([env[n.args[0]].reshape(-1) for n in decrypted])

    return function


_APPLY: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda attrs, *xs: LINEAR[attrs["kind"]](*xs, **attrs["attrs"]),
    "bilinear": lambda attrs, x, y: real_bilinear(attrs["kind"], x, y, attrs["attrs"]),
    "factor": lambda attrs, x: x * attrs["factor"],
    "ldexp": lambda attrs, x: x * 2.0 ** attrs["bits"],
    "rescale": lambda attrs, x: x,
}
"""What the operators of the linear part compute, on reals."""
