"""Recognizes steps that train a linear model, so that two parties can make them with Paillier alone.

Strict: the captured step, without the loss that it returns, may have linear operators and a sigmoid alone; and on
random numbers of several sizes it must do exactly what the formula says. Whatever else it is, it is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from protocols.errors import explain
from securemodel.errors import CompileError
from securemodel.training.compiling import without_outputs
from securemodel.training.datasets import Batches
from securemodel.training.reference import run_in_float
from securemodel.training.steps import CapturedStep, Returned

MASKED = "compile with protocol='masked', which trains any model and needs a dealer"
_OPERATORS = frozenset(
    "aten." + name
    for name in ["cat", "t", "transpose", "permute", "mm", "addmm", "matmul", "bmm", "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "expand", "sigmoid", "sub", "add", "mul", "div", "neg", "sum", "full", "ones_like", "scalar_tensor", "split_with_sizes", "split", "slice", "select", "clone", "detach", "_to_copy", "alias", "lift_fresh_copy", "getitem", "zeros_like", "fill"]
) | {"getitem"}  # fmt: skip
_SAMPLES = ((0.3, 0.5), (1.0, 0.1), (3.0, 0.02), (30.0, 0.7))  # sizes of numbers, learning rates
_CLOSE = 1e-6


@dataclass(frozen=True)
class Linear:
    """What a step was found to do: w <- w - lr (factor X^T (link(X w + bias) - y) + decay w).

    `columns` are the inputs that make up X, in the model's order; `labels` is the input y.
    """

    kind: Literal["logistic", "linear"]
    columns: tuple[int, ...]
    labels: int
    outputs: int
    weight: str
    bias: str | None
    rate: str
    factor: float
    decay: float


def recognized(step: CapturedStep, batches: Batches) -> Linear:
    """What the step does. Raises CompileError where it is not the training of a linear model."""
    weight, bias = _parameters(step)
    if len(step.updates) != 1 or type(step.updates[0].optimizer) is not torch.optim.SGD:
        kinds = sorted({type(update.optimizer).__name__ for update in step.updates})
        raise _refused(f"the step updates with {' and '.join(kinds) or 'no optimizer'}", "one SGD for the whole model")
    group = step.updates[0].group
    if group["momentum"]:
        raise _refused("the optimizer has momentum", "SGD without momentum, with or without weight decay")
    if step.random or len(step.numbers) != 1:
        raise _refused("the step draws random numbers", "a step that is the same for the same batch")
    bare = _bare(step)
    used = _check_operators(bare)
    columns = _columns(bare, step)
    labels = [at for at in range(len(step.batch)) if at not in columns]
    if len(labels) != 1:
        raise _refused(f"{len(labels)} inputs are no columns of the linear model", "columns and one input of labels")
    outputs, rows = step.states[weight].start.shape[0], batches.sizes[0]
    if step.batch[labels[0]].shape not in ((rows, outputs), (rows,) if outputs == 1 else (rows, outputs)):
        raise _refused("the labels have another shape than the scores", f"labels of {[rows, outputs]}")
    kind: Literal["logistic", "linear"] = "logistic" if used else "linear"
    found = Linear(kind, columns, labels[0], outputs, weight, bias, step.numbers[0], 1.0, float(group["weight_decay"]))
    return _fitted(bare, found)


def _refused(what: str, wanted: str) -> CompileError:
    return CompileError(
        explain(
            f"protocol 'paillier' cannot train this: {what}",
            why=f"it is for linear, ridge and logistic regression; here it wants {wanted}",
            fix=MASKED,
        )
    )


def _parameters(step: CapturedStep) -> tuple[str, str | None]:
    """The names of the weights [outputs, columns] and of the bias [outputs]."""
    others = [s.name for s in step.states.values() if s.kind not in ("parameter", "optimizer")]
    parameters = [s for s in step.states.values() if s.kind == "parameter"]
    weights = [s for s in parameters if s.start.ndim == 2]
    bias = [s for s in parameters if s.start.ndim == 1]
    linear = len(weights) == 1 and len(bias) <= 1 and len(parameters) == len(weights) + len(bias)
    if others or not linear or any(s.output is None for s in parameters):
        names = ", ".join(s.name for s in step.states.values())
        raise _refused(f"its states are {names}", "one nn.Linear whose parameters are all trained")
    if bias and bias[0].start.shape != weights[0].start.shape[:1]:
        raise _refused("the bias has another size than the outputs", "one nn.Linear")
    return weights[0].name, bias[0].name if bias else None


def _bare(step: CapturedStep) -> CapturedStep:
    """The step without what it returns, which nobody learns."""
    captured = without_outputs(step.captured, list(step.returned.outputs))
    return replace(step, captured=captured, returned=Returned((), (), (), torch.utils._pytree.tree_flatten(())[1]))


def _check_operators(step: CapturedStep) -> bool:
    """Whether there is a sigmoid. Raises CompileError for other operators that are not linear."""
    names = set()
    for node in step.captured.graph.nodes:
        if node.op == "call_function":
            names.add(str(node.target).split(".default")[0] if "aten" in str(node.target) else node.target.__name__)
    short = {".".join(name.split(".")[:2]) for name in names}
    wrong = sorted(short - _OPERATORS)
    if wrong:
        what = f"{', '.join(wrong)} is not linear, nor a sigmoid"
        raise _refused(what, "binary_cross_entropy_with_logits or mse_loss of a linear model's scores")
    return "aten.sigmoid" in short


def _columns(step: CapturedStep, whole: CapturedStep) -> tuple[int, ...]:
    """The inputs that are put side by side, in order."""
    inputs = {name: at for at, name in enumerate(step.captured.inputs[: len(whole.batch)])}
    found = set()
    for node in step.captured.graph.nodes:
        if node.op == "call_function" and "aten.cat" in str(node.target):
            parts = node.args[0]
            if len(node.args) == 2 and node.args[1] in (1, -1) and all(p.name in inputs for p in parts):
                found.add(tuple(inputs[p.name] for p in parts))
    if len(found) != 1:
        raise _refused("the columns of the parties are not put side by side", "model(torch.cat([a, b], 1))")
    (made,) = found
    if len(set(made)) != len(made):
        raise _refused("an input is put in twice", "model(torch.cat([a, b], 1))")
    return made


def _fitted(step: CapturedStep, linear: Linear) -> Linear:
    """The same with the factor of its gradients, if the step does what the formula says. Raises CompileError."""
    generator = torch.Generator().manual_seed(20_24)  # what is tried hides nothing
    factor = math.nan
    for size, lr in _SAMPLES:
        draw = lambda shape, size=size: size * torch.randn(shape, generator=generator, dtype=torch.float64)
        states = {name: draw(state.start.shape) for name, state in step.states.items()}
        batch = [draw(part.shape) for part in step.batch]
        numbers = {linear.rate: torch.tensor(lr, dtype=torch.float64)}
        states_after, _ = run_in_float(step, states, batch, numbers, {})
        gradients = _gradients(linear, states, batch)
        for name, gradient in gradients.items():
            before, after = states[name], states_after[name].double()
            change = (before - after) / lr - linear.decay * before
            if math.isnan(factor):
                factor = float((change * gradient).sum() / (gradient * gradient).sum())
            scale = change.abs().max() + gradient.abs().max() * abs(factor)
            if not (change - factor * gradient).abs().max() <= _CLOSE * scale:
                raise _refused("its update is not that of a linear model's loss", "BCE with logits or MSE, and SGD")
    if not factor > 0:
        raise _refused("its update goes up the gradient", "a loss that is made smaller")
    return replace(linear, factor=float(f"{factor:.9g}"))


def _gradients(linear: Linear, states: dict[str, torch.Tensor], batch: Sequence[torch.Tensor]) -> dict[str, Any]:
    x = torch.cat([batch[at] for at in linear.columns], 1)
    z = x @ states[linear.weight].T + (states[linear.bias] if linear.bias else 0)
    y = batch[linear.labels].reshape(z.shape)
    r = (torch.sigmoid(z) if linear.kind == "logistic" else z) - y
    gradients = {linear.weight: r.T @ x}
    return {**gradients, linear.bias: r.sum(0)} if linear.bias else gradients
