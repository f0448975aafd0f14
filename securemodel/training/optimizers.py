"""Optimizers of torch as functional updates of one flat vector, in a form that suits fixed point.

What a step's schedule changes (learning rates, momentum, bias corrections) is a public number of each step; everything
else of a group is a constant. A gradient is multiplied by `scale` before its square is kept, and a root is never taken
of less than `floor`: moments then lie where fixed point is exact, and torch's eps, which is below its unit, is felt.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from protocols.errors import explain
from securemodel.errors import CompileError

Group = Mapping[str, Any]
"""One of an optimizer's `param_groups`."""
Vectors = dict[str, torch.Tensor]
Numbers = dict[str, float]


@dataclass(frozen=True)
class Roots:
    """How second moments are kept: of gradients times `scale`, and at least `floor` where a root is taken.

    `scale=1, floor=0` is nearest to torch: rsqrt(v + eps^2) instead of 1 / (sqrt(v) + eps), which is at most a factor
    of sqrt(2) more, and a relative eps / sqrt(v) where sqrt(v) is far above eps.
    """

    scale: float = 1.0
    floor: float = 0.0

    def inverse(self, square: torch.Tensor, eps: float) -> torch.Tensor:
        return torch.rsqrt(square + max((eps * self.scale) ** 2, self.floor))


@dataclass(frozen=True)
class Rule:
    """How one class of optimizers goes on.

    `slots` are the states of a parameter, `numbers` the public numbers of the next step and what to remember of it,
    `update` the new parameters and states; `factors` tell what a slot has to be divided by to be torch's.
    """

    kind: type[torch.optim.Optimizer]
    slots: Callable[[Group], tuple[str, ...]]
    numbers: Callable[[Group, Numbers], tuple[Numbers, Numbers]]
    update: Callable[[torch.Tensor, torch.Tensor, Vectors, Vectors, Group, Roots], tuple[torch.Tensor, Vectors]]
    factors: Callable[[Group, Numbers, Roots], Numbers]
    scheduled: tuple[str, ...]
    """Entries of a group that may change from step to step."""


def _averaged(average: torch.Tensor, g: torch.Tensor, root: Any) -> torch.Tensor:
    """average + root^2 (g^2 - average): no digit of a small square is lost, and both are weighted alike."""
    small = root * g
    return average + (small * small - root * (root * average))


SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
"""Slots of squares: they are kept with the digits of products."""

# SGD: [SMDH13], as torch.optim.SGD writes it: the first buffer is the gradient itself, without dampening.


def _sgd_slots(group: Group) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] else ()


def _sgd_numbers(group: Group, memory: Numbers) -> tuple[Numbers, Numbers]:
    numbers = {"lr": float(group["lr"])}
    if group["momentum"]:
        numbers["momentum"] = float(group["momentum"])
    if group["momentum"] and group["dampening"]:
        numbers["gain"] = 1.0 - float(group["dampening"]) if memory["steps"] else 1.0
    return numbers, {"steps": memory["steps"] + 1}


def _sgd(p, g, state: Vectors, n: Vectors, group: Group, roots: Roots):
    if group["weight_decay"]:
        g = g + float(group["weight_decay"]) * p
    if not group["momentum"]:
        return p - n["lr"] * g, {}
    buffer = n["momentum"] * state["momentum_buffer"] + (n["gain"] * g if "gain" in n else g)
    direction = g + n["momentum"] * buffer if group["nesterov"] else buffer
    return p - n["lr"] * direction, {"momentum_buffer": buffer}


# Adam [KB15], AdamW [LH19], AMSGrad [RKK18] as torch.optim.Adam writes it: the largest of the moments that are not
# corrected is divided by what corrects the newest one. The states are the corrected moments: an average weighted by what the steps so far weigh,
# m += gain (g - m), gain = (1 - beta) / weight, weight = beta weight + 1 - beta. So no number is ever divided by 1 - beta^t.


def _adam_slots(group: Group) -> tuple[str, ...]:
    return "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])


def _adam_numbers(group: Group, memory: Numbers) -> tuple[Numbers, Numbers]:
    steps, lr = memory["steps"] + 1, float(group["lr"])
    beta1, beta2 = (float(beta) for beta in group["betas"])
    weight1 = beta1 * memory["weight1"] + 1 - beta1
    weight2 = beta2 * memory["weight2"] + 1 - beta2
    # torch corrects by 1 - beta^t, which is the weight only while beta stays the same
    rate = lr * (weight1 / (1 - beta1**steps)) * math.sqrt((1 - beta2**steps) / weight2)
    numbers = {"lr": rate, "exp_avg_gain": (1 - beta1) / weight1, "exp_avg_sq_root": math.sqrt((1 - beta2) / weight2)}
    if group["amsgrad"]:
        numbers["max_exp_avg_sq_gain"] = memory["weight2"] / weight2
    if group["weight_decay"] and _decoupled(group):
        numbers["decay"] = lr * float(group["weight_decay"])
    return numbers, {"steps": steps, "weight1": weight1, "weight2": weight2}


def _decoupled(group: Group) -> bool:
    return bool(group.get("decoupled_weight_decay"))


def _adam(p, g, state: Vectors, n: Vectors, group: Group, roots: Roots):
    if group["weight_decay"] and not _decoupled(group):
        g = g + float(group["weight_decay"]) * p
    if roots.scale != 1:
        g = g * roots.scale
    first = state["exp_avg"] + n["exp_avg_gain"] * (g - state["exp_avg"])
    second = _averaged(state["exp_avg_sq"], g, n["exp_avg_sq_root"])
    kept = {"exp_avg": first, "exp_avg_sq": second}
    if group["amsgrad"]:
        second = kept["max_exp_avg_sq"] = torch.maximum(n["max_exp_avg_sq_gain"] * state["max_exp_avg_sq"], second)
    new = p - n["lr"] * (first * roots.inverse(second, group["eps"]))
    if "decay" in n:
        new = new - n["decay"] * p
    return new, kept


def _adam_factors(group: Group, memory: Numbers, roots: Roots) -> Numbers:
    first, second = memory["weight1"] or 1.0, memory["weight2"] or 1.0
    square = roots.scale**2 / second
    return {"exp_avg": roots.scale / first, "exp_avg_sq": square, "max_exp_avg_sq": square}


_LEAST_VARIANCE = 2.0**-10  # a difference of squares has fewer digits than they have

# RMSprop [Hinton, lecture 6e], as torch.optim.RMSprop writes it.


def _rmsprop_slots(group: Group) -> tuple[str, ...]:
    more = [("grad_avg", group["centered"]), ("momentum_buffer", group["momentum"] > 0)]
    return ("square_avg", *(name for name, wanted in more if wanted))


def _rmsprop_numbers(group: Group, memory: Numbers) -> tuple[Numbers, Numbers]:
    numbers = {"lr": float(group["lr"])}
    if group["momentum"] > 0:
        numbers["momentum"] = float(group["momentum"])
    return numbers, {"steps": memory["steps"] + 1}


def _rmsprop(p, g, state: Vectors, n: Vectors, group: Group, roots: Roots):
    if group["weight_decay"]:
        g = g + float(group["weight_decay"]) * p
    if roots.scale != 1:
        g = g * roots.scale
    gain = 1 - float(group["alpha"])
    square = _averaged(state["square_avg"], g, math.sqrt(gain))
    new, variance = {"square_avg": square}, square
    if group["centered"]:
        new["grad_avg"] = state["grad_avg"] + gain * (g - state["grad_avg"])
        variance = square - new["grad_avg"] * new["grad_avg"]
        roots = replace(roots, floor=roots.floor and max(roots.floor, _LEAST_VARIANCE))
    direction = g * roots.inverse(variance, group["eps"])
    if "momentum" in n:
        direction = new["momentum_buffer"] = n["momentum"] * state["momentum_buffer"] + direction
    return p - n["lr"] * direction, new


def _rmsprop_factors(group: Group, memory: Numbers, roots: Roots) -> Numbers:
    return {"square_avg": roots.scale**2, "grad_avg": roots.scale, "momentum_buffer": 1.0}


# Adagrad [DHS11], as torch.optim.Adagrad writes it.


def _adagrad_numbers(group: Group, memory: Numbers) -> tuple[Numbers, Numbers]:
    rate = float(group["lr"]) / (1 + memory["steps"] * float(group["lr_decay"]))
    return {"lr": rate}, {"steps": memory["steps"] + 1}


def _adagrad(p, g, state: Vectors, n: Vectors, group: Group, roots: Roots):
    if group["weight_decay"]:
        g = g + float(group["weight_decay"]) * p
    if roots.scale != 1:
        g = g * roots.scale
    total = state["sum"] + g * g
    return p - n["lr"] * (g * roots.inverse(total, group["eps"])), {"sum": total}


RULES = (
    Rule(torch.optim.SGD, _sgd_slots, _sgd_numbers, _sgd, lambda *_: {"momentum_buffer": 1.0}, ("lr", "momentum")),
    Rule(torch.optim.AdamW, _adam_slots, _adam_numbers, _adam, _adam_factors, ("lr", "betas")),
    Rule(torch.optim.Adam, _adam_slots, _adam_numbers, _adam, _adam_factors, ("lr", "betas")),
    Rule(torch.optim.RMSprop, _rmsprop_slots, _rmsprop_numbers, _rmsprop, _rmsprop_factors, ("lr", "momentum")),
    Rule(
        torch.optim.Adagrad, lambda group: ("sum",), _adagrad_numbers, _adagrad,
        lambda group, memory, roots: {"sum": roots.scale**2}, ("lr",),
    ),
)  # fmt: skip

_INSTEAD = {
    "LBFGS": "it needs a closure and searches along a line by comparing losses: use SGD with momentum, or Adam",
    "SparseAdam": "which rows have a gradient would show the data: use Adam and embeddings with sparse=False",
}
_SUPPORTED = "use SGD, Adam, AdamW, RMSprop or Adagrad of torch.optim"


def rule_of(optimizer: torch.optim.Optimizer, name: str) -> Rule:
    """How an optimizer goes on. Raises CompileError for one that has no secure form, with what to use instead."""
    kind = type(optimizer)
    rule = next((rule for rule in RULES if isinstance(optimizer, rule.kind)), None)
    own = vars(optimizer).get("step")
    if rule is None or inspect.unwrap(kind.step) is not inspect.unwrap(rule.kind.step):
        _refuse(name, kind, "has no secure form", _INSTEAD.get(kind.__name__, _SUPPORTED))
    if own is not None and not hasattr(own, "_wrapped_by_lr_sched"):
        _refuse(name, kind, "has its own `step`, which would not be run", _SUPPORTED + " as it is")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        _refuse(name, kind, "has hooks on its `step`, which would not be run", "write into the step what they do")
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            _refuse(name, kind, "with differentiable=True has no secure form", "leave differentiable out")
    return rule


def _refuse(name: str, kind: type, what: str, fix: str) -> NoReturn:
    raise CompileError(explain(f"the optimizer {kind.__name__} {what}", where=name, fix=fix))


def started(optimizer: torch.optim.Optimizer, group: Group, name: str) -> Numbers:
    """What is remembered of the steps an optimizer made before; nothing but zeros for a new one. Raises CompileError."""
    counts = set()
    for parameter in group["params"]:
        state = optimizer.state.get(parameter, {})
        if "step" in state:
            counts.add(int(state["step"]))
        elif state.get("momentum_buffer") is not None:  # SGD does not count: only whether it is the first matters
            counts.add(1)
    if len(counts) > 1:
        what = "parameters of one group have made different numbers of steps"
        raise CompileError(explain(what, where=name, fix="give them groups of their own, or a new optimizer"))
    steps = counts.pop() if counts else 0
    betas = group.get("betas", (0.0, 0.0))
    weights = {f"weight{i}": 1 - float(beta) ** steps for i, beta in enumerate(betas, 1)}
    return {"steps": steps, **(weights if "betas" in group else {})}
