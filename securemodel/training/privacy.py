"""Differential privacy of a training: what is asked for, how often a row takes part, and what follows for epsilon.

Clipped gradients of a batch that differs in one row are at most 2 max_grad_norm apart; each step is a Gaussian mechanism
[Dwork and Roth 2014, appendix A]. A row is in one batch an epoch at most, and everybody knows in which: nothing is gained
by sampling, and the steps that a row takes part in are composed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from protocols.errors import explain
from securemodel.compiler.capture import outputs_of
from securemodel.compiler.lower.private import LEAST_NORM, MOST_NORM, PRIVATE
from securemodel.errors import CompileError, InputError
from securemodel.shown import Shown
from securemodel.training.steps import CapturedStep

_MOST_NOISE = 2.0**20
_MOST_DRAWN = 9.5  # of the standard normal distribution
_MOST_MOMENT = 120.0  # a root of what second moments may be


@dataclass(frozen=True)
class DP:
    """Differentially private steps: gradients of all parameters of an optimizer are cut, as one vector, to the norm
    `max_grad_norm` (2^-6 to 2^6), and every party adds normal noise to each element, of standard deviation
    `noise_multiplier` times 2 max_grad_norm: by that much a gradient may change when one row is another. Raises InputError.
    """

    noise_multiplier: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        if not LEAST_NORM <= self.max_grad_norm <= MOST_NORM:
            what = f"max_grad_norm={self.max_grad_norm} is not between {LEAST_NORM} and {MOST_NORM}"
            raise InputError(explain(what, where="DP()", fix="multiply the loss by a number that brings it there"))
        if not 0 < self.noise_multiplier or not self.noise <= _MOST_NOISE:
            what = f"noise_multiplier={self.noise_multiplier} is no positive number of a size that fits"
            raise InputError(explain(what, where="DP()", fix="give one between 0.1 and 100; 1 is usual"))

    @property
    def noise(self) -> float:
        """The standard deviation of each party's noise."""
        return 2.0 * self.noise_multiplier * self.max_grad_norm

    def most_scale(self, parties: int) -> float:
        """The largest factor with which gradients, noise included, may be squared."""
        return _MOST_MOMENT / (self.max_grad_norm + _MOST_DRAWN * math.sqrt(parties) * self.noise)


@dataclass(frozen=True)
class Influence:
    """Where the rows of a batch go in a step: `gradients` is how many noisy gradients they reach, `states` and `returned`
    are the names of what they reach without noise.
    """

    gradients: int
    states: tuple[str, ...]
    returned: tuple[str, ...]


def influence(step: CapturedStep) -> Influence:
    """Follows the rows through a step. Raises CompileError where a row would reach the gradients of later steps, too."""
    captured, graph = step.captured, step.captured.graph
    output = outputs_of(graph)
    ends = {name: output[state.output] for name, state in step.states.items() if state.output is not None}
    places = {name: node for node, name in captured.states.items()}
    rows = set(captured.inputs[: len(step.batch)])
    private = [node for node in graph.nodes if node.target is PRIVATE]
    first = reached = _reached(graph, rows)
    carried: set[str] = set()
    while found := {name for name, end in ends.items() if end in reached} - carried:
        carried |= found
        reached = _reached(graph, rows | {places[name] for name in carried})
    for name in sorted(carried):
        later = _reached(graph, {places[name]})
        if any(node.args[0] in later for node in private):
            raise CompileError(
                explain(
                    f"gradients depend on {name}, which earlier steps made of their rows without noise",
                    why="a row would take part in all later steps, and no number of epochs would bound what it does",
                    fix="zero the gradients in each step; keep statistics of rows out of the loss",
                )
            )
    names = [name for name, at in zip(step.returned.names, step.returned.outputs, strict=True) if output[at] in reached]
    return Influence(sum(node.args[0] in first for node in private), tuple(sorted(carried)), tuple(names))


def _reached(graph: torch.fx.Graph, sources: Collection[str]) -> set[torch.fx.Node]:
    """What depends on some placeholders, but through noisy gradients."""
    reached: set[torch.fx.Node] = set()
    for node in graph.nodes:
        given = node.name in sources and node.op == "placeholder"
        if given or (node.op == "call_function" and node.target is not PRIVATE and reached & _operands(node)):
            reached.add(node)
    return reached


def _operands(node: torch.fx.Node) -> set[torch.fx.Node]:
    """What an operator's value depends on. In training batch normalization reads running statistics for the new ones only."""
    first = node.args[0] if node.target is operator.getitem else None
    if isinstance(first, torch.fx.Node) and first.target is _BATCH_NORM and cast(int, node.args[1]) >= _STATISTICS:
        return {*node.all_input_nodes, *first.all_input_nodes}
    if node.target in _IN_TRAINING and node.args[_IN_TRAINING[node.target]]:
        return {part for part in node.all_input_nodes if part not in node.args[3:5]}
    return set(node.all_input_nodes)


_BATCH_NORM, _STATISTICS = torch.ops.aten._native_batch_norm_legit_functional.default, 3
_IN_TRAINING: dict[Any, int] = {_BATCH_NORM: 5, torch.ops.aten.native_batch_norm_backward.default: 7}
"""Where an operator with running statistics as its operands 3 and 4 is told that it trains."""


@dataclass
class TakenPart:
    """How often a row can have been in a step: `steps` are those begun from the first on, `again` counts those that were
    begun once more, `own` those on batches that were given.
    """

    steps: int = 0
    again: dict[int, int] = field(default_factory=dict)
    own: int = 0

    def note(self, step: int, own: bool) -> None:
        """A step begins."""
        if own:
            self.own += 1
        elif step < self.steps:
            self.again[step] = self.again.get(step, 0) + 1
        self.steps = max(self.steps, step + 1)

    def most(self, steps_per_epoch: int) -> int:
        """The most steps that one row was in: one an epoch, and those that were made again; and all own ones."""
        more: dict[int, int] = {}
        for step, count in self.again.items():
            epoch = step // steps_per_epoch
            more[epoch] = max(more.get(epoch, 0), count)
        return math.ceil(self.steps / steps_per_epoch) + sum(more.values()) + self.own

    def saved(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"steps": self.steps, "again": {str(step): count for step, count in self.again.items()}, "own": self.own}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> TakenPart:
        return cls(saved["steps"], {int(step): count for step, count in saved["again"].items()}, saved["own"])


@dataclass(frozen=True)
class Privacy(Shown):
    """(epsilon, delta)-differential privacy of the weights, towards everybody but one party whose noise is its own secret.

    Neighbors differ in what one row is. `compositions`: noisy gradients that one row was in. `uncovered` names what is
    revealed beside the weights, or kept, and made of rows without noise.
    """

    epsilon: float
    delta: float
    compositions: int
    noise_multiplier: float
    uncovered: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"weights: epsilon = {self.epsilon:.4g} at delta = {self.delta:g}, for one row replaced by another",
            f"  a row is in {self.compositions} noisy gradients, each with noise_multiplier {self.noise_multiplier:g}",
            "  counted is the noise of one party: up to all others may work together",
            "not covered:" if self.uncovered else "nothing else is revealed of rows",
        ]
        return "\n".join([*lines, *(f"  {what}" for what in self.uncovered)])


def privacy(dp: DP, compositions: int, delta: float, uncovered: Sequence[str]) -> Privacy:
    """What so many Gaussian mechanisms give together: they are as one with the noise divided by the root of their number,
    whose epsilon is exact [Balle and Wang, ICML 2018]. Raises InputError, also where dp-accounting is not installed.
    """
    if not 0 < delta < 1:
        raise InputError(
            explain(f"delta={delta} is not between 0 and 1", fix="give less than one over the number of rows")
        )
    epsilon_of = _library()
    epsilon = epsilon_of(dp.noise_multiplier / math.sqrt(compositions), delta) if compositions else 0.0
    return Privacy(float(epsilon), delta, compositions, dp.noise_multiplier, tuple(uncovered))


def _library() -> Callable[[float, float], float]:
    try:
        from dp_accounting import get_epsilon_gaussian
    except ImportError as problem:
        what = "epsilon is computed by the package dp-accounting, which is not installed"
        raise InputError(explain(what, fix="pip install 'securemodel[privacy]'")) from problem
    return get_epsilon_gaussian
