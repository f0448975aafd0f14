"""What is computed of the weights between steps: functions of data sets that are revealed, and a guard of ranges."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from protocols.errors import explain
from securemodel.errors import CompileError
from securemodel.training.capture import capture_step
from securemodel.training.compiling import Terms, TrainingProgram, reading_tables
from securemodel.training.datasets import Batches, Dataset
from securemodel.training.naming import named, tensors

EVERYBODY = "all"
_MOST_ROWS = 256  # that an evaluation takes at a time
NOW, BEFORE = "now ", "before "
"""How a guard's states are named: the weights, and those of the last time that all were in range."""
_MOST_UPDATE = 8.0  # an eighth of what a small number's product with a gradient may be


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A function of a data set and the models that is revealed: one program for full batches, one for the rows left over."""

    name: str
    pieces: tuple[tuple[Batches, TrainingProgram], ...]
    receivers: tuple[str, ...]


def compile_evaluation(
    name: str,
    function: Callable[..., Any],
    data: Dataset,
    to: str,
    models: Any,
    kept: set[str],
    terms: Terms,
    batch: Batches,
) -> Evaluation:
    """A function of the columns of `data` and of what steps keep, for receiver `to`. Raises CompileError."""
    if list(data.columns) != list(batch.data.columns):
        raise CompileError(
            explain(f"the evaluation {name!r} has other columns than the batch", fix="give both the same, from split()")
        )
    modes = [(module, module.training) for model in named(models, "model").values() for module in model.modules()]
    pieces = []
    try:
        for module, _ in modes:
            module.training = False
        for batches in data.blocks(_MOST_ROWS, batch.resident):
            captured = capture_step(batches.flat(function), models, None, batches.examples())
            receivers = [to] * len(captured.returned.names)
            program = terms.compile(captured, name, batches.owners(), receivers, reads=kept)
            pieces.append((batches, reading_tables(program, batches)))
    finally:
        for module, mode in modes:
            module.training = mode
    return Evaluation(name, tuple(pieces), tuple(receivers))


def together(results: Sequence[Any]) -> Any:
    """Batches as one: numbers are added, rows are put one below the other."""
    if isinstance(results[0], Mapping):
        return {name: together([result[name] for result in results]) for name in results[0]}
    if isinstance(results[0], (list, tuple)):
        return type(results[0])(together(parts) for parts in zip(*results, strict=True))
    if results[0] is None or not isinstance(results[0], torch.Tensor):
        return results[0]
    return torch.cat(list(results)) if results[0].ndim else torch.stack(list(results)).sum(0)


def compile_guard(models: Any, kept: set[str], every: int, terms: Terms) -> TrainingProgram:
    """Says of each trained parameter, to everybody, whether it is within an eighth of its range, and so are its changes."""
    room = 62 - 3 * terms.frac_bits
    limit = 2.0 ** (min(room, terms.width - 1 - terms.frac_bits) - 3)
    both = {prefix + name: copy.deepcopy(m) for prefix in (NOW, BEFORE) for name, m in named(models, "model").items()}
    whole = {
        name: parameter for name, parameter in tensors(both) if name.removeprefix(NOW).removeprefix(BEFORE) in kept
    }
    trained = [name.removeprefix(NOW) for name in whole if name.startswith(NOW)]

    def guard() -> dict[str, torch.Tensor]:
        within = {}
        for name in trained:
            now, change = whole[NOW + name], whole[NOW + name] - whole[BEFORE + name]
            small = change.abs().amax() < _MOST_UPDATE * every
            within[name] = torch.logical_and(now.abs().amax() < limit, small)
        return within

    captured = capture_step(guard, both, None, ())
    return terms.compile(captured, "guard", [], [EVERYBODY] * len(trained), reads=set(whole))
