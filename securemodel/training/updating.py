"""Stands in for the `step` of optimizers while a training step is traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from protocols.errors import explain
from securemodel.compiler.lower.private import PRIVATE
from securemodel.errors import CompileError
from securemodel.training.noise import Noise
from securemodel.training.notes import Note, user_line
from securemodel.training.optimizers import Group, Numbers, Roots, Rule, rule_of, started
from securemodel.training.privacy import DP
from securemodel.training.publics import Update, fixed_entries
from securemodel.training.tracing import Calls, given, number

Gradients = dict[int, torch.Tensor]
"""By the identity of the parameter."""


class Updates:
    """The optimizers of a step: what they keep, and the updates they are asked for, in order.

    `starts` has the start value of each slot by full name, `memory` what is remembered of earlier steps by the group.
    With `dp` each of `parties` adds noise to the gradients: `noise` in order.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        names: Mapping[int, str],
        roots: Roots,
        dp: DP | None = None,
        parties: Sequence[str] = (),
    ) -> None:
        self._optimizers, self._names, self._roots = dict(optimizers), names, roots
        self._dp, self._parties = dp, tuple(parties)
        self._rules: dict[str, Rule] = {name: rule_of(optimizer, name) for name, optimizer in optimizers.items()}
        self.memory: dict[str, Numbers] = {}
        self.starts: dict[str, torch.Tensor] = {}
        for name, optimizer in optimizers.items():
            for index, group in enumerate(optimizer.param_groups):
                where = f"{name}.groups.{index}"
                self.memory[where] = started(optimizer, group, where)
                self.starts.update(self._slots(name, optimizer, group, self.memory[where]))
        self.begin({})

    def _slots(self, name: str, optimizer: Any, group: Group, memory: Numbers) -> dict[str, torch.Tensor]:
        """The start values of a group: those of torch times their factors."""
        rule, starts = self._rules[name], {}
        factors = rule.factors(group, memory, self._roots)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for slot in rule.slots(group):
                before = state.get(slot)
                if before is None:
                    filled = group.get("initial_accumulator_value", 0)
                    before = torch.full_like(parameter, filled, requires_grad=False, device="cpu")
                starts[f"{name}.{self._names[id(parameter)]}.{slot}"] = before.detach() * factors[slot]
        return starts

    def begin(self, slots: Mapping[str, torch.Tensor]) -> None:
        """Begins a trace with these values of the slots."""
        self.slots: dict[str, torch.Tensor] = dict(slots)
        self.made: list[Update] = []
        self.noise: list[Noise] = []
        self._updated: dict[str, tuple[str, ...]] = {}

    def stand_in(self, calls: Calls) -> None:
        """Puts a functional update in the place of each optimizer's `step`."""
        for name, optimizer in self._optimizers.items():
            vars(optimizer)["step"] = self._step_of(name, optimizer, calls)

    def _step_of(self, name: str, optimizer: torch.optim.Optimizer, calls: Calls) -> Callable[..., None]:
        def step(closure: Any = None) -> None:
            if closure is not None:
                what = "an optimizer is given a closure"
                fix = "compute the loss and call backward before optimizer.step()"
                raise CompileError(explain(what, where=user_line(Note()).place(), fix=fix))
            calls.modules.append(Note(path=name, kind=type(optimizer).__name__))
            with torch.no_grad():
                gradients = self._gradients(name, optimizer)
                for index, group in enumerate(optimizer.param_groups):
                    self._update(name, index, optimizer, gradients)
            calls.modules.pop()

        return step

    def _gradients(self, name: str, optimizer: torch.optim.Optimizer) -> Gradients:
        """The gradients of all parameters that have one; with `dp` cut as one vector, and noisy."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self._dp is None or not parameters:
            return {id(p): p.grad for p in parameters}
        if len({p.dtype for p in parameters}) > 1:
            what = "an optimizer has parameters of several types, whose gradients make no one vector to clip"
            raise CompileError(explain(what, where=name, fix="give it parameters of one type"))
        flat = _joined([p.grad for p in parameters])
        noise = number(f"{name}.noise")
        drawn = [self._drawn(name, party, flat.numel()) * noise for party in self._parties]
        parts = PRIVATE(flat, drawn, self._dp.max_grad_norm).split([p.numel() for p in parameters])
        return {id(p): part.view(p.shape) for p, part in zip(parameters, parts, strict=True)}

    def _drawn(self, name: str, party: str, count: int) -> torch.Tensor:
        noise = Noise(f"noise:{len(self.noise)}", party, count)
        self.noise.append(noise)
        return given(torch.empty(count, dtype=torch.float64), noise.name)

    def _update(self, name: str, index: int, optimizer: torch.optim.Optimizer, gradients: Gradients) -> None:
        """Updates those parameters of a group that have a gradient, those of one type as one vector."""
        group, rule = optimizer.param_groups[index], self._rules[name]
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        where = f"{name}.groups.{index}"
        names = tuple(self._names[id(p)] for p in parameters)
        self._check_counts(where, rule, group, names)
        call = sum(update.name == where for update in self.made)
        update = Update(where, f"@{call}" if call else "", rule, optimizer, index, names, fixed_entries(group, rule))
        self.made.append(update)
        keys, _ = rule.numbers(group, self.memory[where])
        numbers = {key: number(full) for key, full in zip(keys, update.named(keys), strict=True)}
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            self._flat(name, rule, group, [p for p in parameters if p.dtype == dtype], numbers, gradients)

    def _flat(
        self,
        name: str,
        rule: Rule,
        group: Group,
        parameters: list,
        numbers: dict[str, torch.Tensor],
        gradients: Gradients,
    ) -> None:
        old = {slot: [f"{name}.{self._names[id(p)]}.{slot}" for p in parameters] for slot in rule.slots(group)}
        state = {slot: _joined([self.slots[full] for full in names]) for slot, names in old.items()}
        gradient = _joined([gradients[id(p)] for p in parameters])
        if group.get("maximize"):
            gradient = -gradient
        new, kept = rule.update(_joined(parameters), gradient, state, numbers, group, self._roots)
        sizes = [p.numel() for p in parameters]
        for parameter, part in zip(parameters, new.split(sizes), strict=True):
            parameter.copy_(part.view(parameter.shape))
        for slot, names in old.items():
            for full, parameter, part in zip(names, parameters, kept[slot].split(sizes), strict=True):
                self.slots[full] = part.view(parameter.shape)

    def _check_counts(self, where: str, rule: Rule, group: Group, updated: tuple[str, ...]) -> None:
        """Raises CompileError if parameters of a group would count their steps differently, and it matters."""
        before = self._updated.setdefault(where, updated)
        zero = dict.fromkeys(("steps", "weight1", "weight2"), 0.0)
        later = dict.fromkeys(("weight1", "weight2"), 0.5) | {"steps": 5}
        if before != updated and rule.numbers(group, zero)[0] != rule.numbers(group, later)[0]:
            what = "an optimizer updates other parameters of one group at each of its calls in a step"
            fix = "give these parameters optimizers of their own, or leave dampening out"
            raise CompileError(explain(what, where=f"{where}, {user_line(Note()).place()}", fix=fix))


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
