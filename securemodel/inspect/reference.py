"""The captured model in float64 with torch: what every value would be without fixed point and approximations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from protocols.errors import explain
from securemodel.compiler.capture import Captured
from securemodel.compiler.lowering import CHECKS, METADATA
from securemodel.errors import InputError


def reference(
    captured: Captured, state: Mapping[str, torch.Tensor], inputs: Sequence[torch.Tensor], wanted: Collection[str]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """(the values of the operators named in `wanted`, the outputs), all reals in float64.

    Inputs are read as numbers of the types that the model was captured with, whatever their own are. Raises InputError
    where they are none.
    """
    types = {node.name: node.meta["val"].dtype for node in captured.graph.nodes if node.name in captured.inputs}
    read = {name: _read_as(types[name], x, i) for i, (name, x) in enumerate(zip(captured.inputs, inputs, strict=False))}
    given = read | dict(captured.constants)
    given |= {name: state[target] for name, target in captured.states.items()}
    walk = _Walk(captured.graph, wanted)
    with torch.no_grad():
        names = [node.name for node in captured.graph.nodes if node.op == "placeholder"]
        outputs = walk.run(*[_wide(given[name]) for name in names], enable_io_processing=False)
    return walk.kept, list(outputs)


class _Walk(torch.fx.Interpreter):
    """Runs a graph of operators in float64 and keeps some of the values."""

    def __init__(self, graph: torch.fx.Graph, wanted: Collection[str]) -> None:
        super().__init__(torch.nn.Module(), graph=graph)
        self.kept: dict[str, torch.Tensor] = {}
        self._wanted = wanted

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        return (
            None if target in (METADATA, *CHECKS) else _wide(super().call_function(target, _wide(args), _wide(kwargs)))
        )

    def run_node(self, n: torch.fx.Node) -> Any:
        made = super().run_node(n)
        if n.name in self._wanted:
            self.kept[n.name] = made
        return made


def _read_as(dtype: torch.dtype, x: torch.Tensor, index: int) -> torch.Tensor:
    whole = not (dtype.is_floating_point or dtype.is_complex)
    if (x.is_complex() and not dtype.is_complex) or (whole and not torch.equal(x.to(dtype).to(x.dtype), x)):
        what = f"input {index} has numbers of {x.dtype} where the model reads {dtype}"
        raise InputError(explain(what, fix="give numbers of that type, or others that are the same numbers"))
    return x.to(dtype) if whole else x.detach().to(_wide(dtype))


def _wide(value: Any) -> Any:
    """The same with float64 and complex128 in place of every other such type, in tensors and as arguments."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(_wide(value.dtype))
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else torch.complex128 if value.is_complex else value
    if isinstance(value, dict):
        return {key: _wide(part) for key, part in value.items()}
    return type(value)(_wide(part) for part in value) if type(value) in (list, tuple) else value
