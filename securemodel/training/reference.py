"""A captured step in float, in the clear: the specification of what the secure one computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from securemodel.training.steps import CapturedStep

aten = torch.ops.aten

Tensors = dict[str, torch.Tensor]


def start_states(step: CapturedStep) -> Tensors:
    """The states at the time of the capture, by name."""
    return {name: state.start for name, state in step.states.items()}


def draws(step: CapturedStep, generator: torch.Generator | None = None) -> Tensors:
    """Random numbers for one step, by name."""
    return {random.name: random.draw(generator) for random in step.random}


def run_in_float(
    step: CapturedStep, states: Mapping[str, torch.Tensor], batch: Sequence[torch.Tensor],
    numbers: Mapping[str, torch.Tensor], random: Mapping[str, torch.Tensor],
) -> tuple[Tensors, Any]:  # fmt: skip
    """All states after one step, and what it returns. `random` has the step's noise, too."""
    captured = step.captured
    drawn = [*(r.name for r in step.random), *(noise.name for noise in step.noise)]
    given = [*batch, *(numbers[name] for name in step.numbers), *(random[name] for name in drawn)]
    inputs = dict(zip(captured.inputs, given, strict=True))
    inputs.update({node: states[name] for node, name in captured.states.items()})
    inputs.update(captured.constants)
    order = [node.name for node in captured.graph.nodes if node.op == "placeholder"]
    module = torch.fx.GraphModule(torch.nn.Module(), captured.graph)
    with torch.no_grad():
        values = _Interpreter(module).run(*(inputs[name] for name in order))
    new = {name: values[s.output] if s.output is not None else states[name] for name, s in step.states.items()}
    return new, step.returned.restore([values[place] for place in step.returned.outputs])


class _Interpreter(torch.fx.Interpreter):
    """Takes tensors of any layout: the graph has no copies that only change it."""

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        return super().call_function(aten.reshape.default if target is aten.view.default else target, args, kwargs)


def as_torch_keeps_them(
    step: CapturedStep, states: Mapping[str, torch.Tensor], memory: Mapping[str, dict[str, float]]
) -> Tensors:
    """The states of optimizers as torch's optimizers keep them; `memory` is that of PublicInputs after the same steps."""
    out = {}
    for update in step.updates:
        factors = update.rule.factors(update.group, memory[update.name], step.roots)
        optimizer = update.name.partition(".groups.")[0]
        for slot in update.rule.slots(update.group):
            for parameter in update.parameters:
                name = f"{optimizer}.{parameter}.{slot}"
                out[name] = states[name] / factors[slot]
    return out
