"""Finds out whether a captured model computes what the model does, by trying both in the clear.

Code may ask whether PyTorch captures it (`torch.compiler.is_compiling()`), and compute something else then; a decomposition
of PyTorch's may be wrong. Nobody would notice: what is captured is what runs in shares.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from securemodel.compiler.capture import (
    ONE_AT_A_TIME,
    Captured,
    Examples,
    apart,
    call,
    outputs_of,
    tensors_in,
    unchecked,
)
from securemodel.compiler.lowering import UNSET
from securemodel.compiler.report import Problem
from securemodel.compiler.rows import made_up_inputs

_NEAR = 1e-2
"""Of the largest number of a result: rounding differs by less, another computation mostly by more."""
_TRIALS = 2


def unlike(
    model: torch.nn.Module, captured: Captured, examples: Examples, state: Mapping[str, torch.Tensor]
) -> Problem | None:
    """What is wrong with a captured model that gives other results than the model, on made-up inputs.

    `state` has its weights, by the names in `captured`. None where the two agree on one of two trials, where the model
    gives other results each time, or where either cannot be tried: weights on the meta device, inputs that its code
    refuses, results that are not finite, memory that is read before it is written.
    """
    if any(tensor.is_meta for tensor in state.values()) or any(node.target in UNSET for node in captured.graph.nodes):
        return None
    generator, least = torch.Generator().manual_seed(1), float("inf")  # example data: nothing here hides anything
    try:
        with ONE_AT_A_TIME, torch.no_grad(), unchecked():
            model = copy.deepcopy(model) if captured.writes else apart(model)
            for _ in range(_TRIALS):
                inputs = made_up_inputs(examples, generator)
                wanted, again = (_results(model, examples, inputs) for _ in range(2))
                least = min(least, _apart_by(_ran(captured, state, inputs), wanted) - _apart_by(again, wanted))
    except Exception:  # what cannot be tried cannot be judged
        return None
    if not _NEAR < least < float("inf"):
        return None
    return Problem(
        "the whole model",
        type(model).__name__,
        f"captured, it gives other results than it does itself, {least:.2g} of their largest number away",
        "its code may ask whether it is captured (torch.compiler.is_compiling()) and compute something else then: write "
        "it without; or report a decomposition of PyTorch's that is wrong",
    )


def _results(model: torch.nn.Module, examples: Examples, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return tensors_in(call(model, examples, [x.clone() for x in inputs]))


def _ran(captured: Captured, state: Mapping[str, torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the captured operators give, one after the other."""
    given = {name: state[of] for name, of in captured.states.items()} | captured.constants
    given |= dict(zip(captured.inputs, [x.clone() for x in inputs], strict=True))
    values: dict[torch.fx.Node, Any] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            values[node] = given[node.name]
        elif node.op == "call_function":
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = cast(Callable, node.target)(*args, **kwargs)
    return [values[node] for node in outputs_of(captured.graph)]


def _apart_by(made: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference of two results' real numbers, as a part of their largest number; 0 where one is not finite."""
    most = 0.0
    for x, y in zip(made, wanted, strict=True):
        x, y = torch.view_as_real(x) if x.is_complex() else x, torch.view_as_real(y) if y.is_complex() else y
        if y.is_floating_point() and y.numel() and bool(x.isfinite().all()) and bool(y.isfinite().all()):
            most = max(most, float((x - y).abs().max() / y.abs().max().clamp_min(1e-6)))
    return most
