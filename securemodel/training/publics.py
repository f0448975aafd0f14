"""The public numbers of each step: learning rates, momentum, corrections of moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from protocols.errors import explain
from securemodel.errors import InputError
from securemodel.training.optimizers import Numbers, Rule


@dataclass(frozen=True, repr=False)
class Update:
    """One call of an optimizer's `step` for one of its groups.

    `name` is that of the group, such as `optimizer.groups.0`; `suffix` is "" at the first call in a step, then "@1"
    and so on. `parameters` are those that have a gradient, by full name; `fixed` are the entries of the group that are constants of the program.
    """

    name: str
    suffix: str
    rule: Rule
    optimizer: torch.optim.Optimizer
    index: int
    parameters: tuple[str, ...]
    fixed: dict[str, Any]

    @property
    def group(self) -> dict[str, Any]:
        """The group as it is now: load_state_dict puts another in its place."""
        return self.optimizer.param_groups[self.index]

    def named(self, numbers: Numbers) -> Numbers:
        return {f"{self.name}.{key}{self.suffix}": value for key, value in numbers.items()}


class PublicInputs:
    """Makes the public numbers of one step after the other, from the optimizers' groups as they are at that time.

    All parties make the same numbers when they run the same schedule. `memory` is all that is remembered between
    steps, by the name of the group: counts of steps and what these weigh; a checkpoint keeps it.
    """

    def __init__(
        self, updates: Sequence[Update], memory: Mapping[str, Numbers], constants: Mapping[str, float] | None = None
    ) -> None:
        self._updates, self._constants = tuple(updates), dict(constants or {})
        self.memory = {name: dict(numbers) for name, numbers in memory.items()}

    def next(self) -> dict[str, torch.Tensor]:
        """The public numbers of the next step by name, as float64. Raises InputError if a constant has changed."""
        made: Numbers = dict(self._constants)
        for update in self._updates:
            _check_fixed(update)
            numbers, self.memory[update.name] = update.rule.numbers(update.group, self.memory[update.name])
            made.update(update.named(numbers))
            vars(update.optimizer)["_opt_called"] = True  # this stands for its update: else torch's schedulers warn
        return {name: torch.tensor(number, dtype=torch.float64) for name, number in made.items()}


def fixed_entries(group: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    """The entries of a group that become constants, and which scheduled ones are zero: that changes the program."""
    fixed = {key: group[key] for key in group if key not in ("params", "initial_lr", *rule.scheduled, *_OF_SCHEDULERS)}
    return fixed | {f"whether {key} is 0": not group[key] for key in rule.scheduled if key == "momentum"}


_OF_SCHEDULERS = ("max_lr", "min_lr", "max_momentum", "base_momentum")
"""What schedulers write into groups for themselves."""


def _check_fixed(update: Update) -> None:
    now = fixed_entries(update.group, update.rule)
    changed = [key for key, value in update.fixed.items() if now.get(key, value) != value]
    if changed:
        raise InputError(
            explain(
                f"{', '.join(changed)} of an optimizer has changed since the step was captured",
                where=update.name,
                why=f"only {' and '.join(update.rule.scheduled)} may change from step to step",
                fix="capture the step again, or leave it as it was",
            )
        )
