"""From trained shares to a program that runs inputs through them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from protocols.errors import InputError, explain
from protocols.names import PUBLIC
from securemodel.compiler.capture import Captured, Examples, Kept, model_state
from securemodel.compiler.lowering import Lowered, lower_model
from securemodel.compiler.owners import owner_of
from securemodel.compiler.postprocess import Reveal
from securemodel.engines.compiling import compile_for
from securemodel.engines.masked.compiling import assemble
from securemodel.program import Program
from securemodel.training.job import Job
from securemodel.training.naming import tensors


@dataclass(frozen=True, repr=False)
class Published:
    """A program that reads what a training keeps; `starts` are the tensors of its model before the training."""

    program: Program
    starts: dict[str, torch.Tensor]


@dataclass(frozen=True, repr=False)
class _FromShares:
    """Compiles a model whose tensors of these names are states of a training, with as many more fractional bits."""

    states: dict[str, tuple[str, int]]

    def lower(self, captured: Captured, *args: Any, **options: Any) -> Lowered:
        kept = [
            Kept(node, state, None, None, more_bits)
            for node, name in captured.states.items()
            for state, more_bits in [self.states.get(name, ("", 0))]
            if state
        ]
        return lower_model(replace(captured, kept=tuple(kept)), *args, **options)

    assemble = staticmethod(assemble)


def publish(
    job: Job,
    model: torch.nn.Module,
    examples: torch.Tensor | Examples,
    inputs: str | Sequence[str],
    outputs: str | Sequence[str],
    reveal: Reveal,
) -> Published:
    """The program of a model that has the trained tensors in it: they are known by what they are, not by their names.

    Raises InputError for parameters of other models, and what `securemodel.compile` does.
    """
    header, captured = job.program.header, job.captured
    known = {id(tensor): name for name, tensor in tensors(job.models)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _check_known(parameters, known)
    held = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
    names = {name: known.get(id(tensor), "") for name, tensor in held.items()}
    kept = job.program.graph.keeps()
    more = {name: header.frac_bits if state.kind == "parameter" else 0 for name, state in captured.states.items()}
    weights = header.weights
    program = compile_for(
        _FromShares({name: (state, more[state]) for name, state in names.items() if state in kept}),
        copy.deepcopy(model), examples,
        weights=weights if isinstance(weights, str) else {
            name: (owner_of(weights, state) if state else None) or PUBLIC for name, state in names.items()
        },
        inputs=inputs, outputs=outputs, parties=header.parties, reveal=reveal, frac_bits=header.frac_bits,
        width=header.width, rounding=header.rounding,
    )  # fmt: skip
    given = model_state(model)
    starts = {
        name: captured.states[state].start if state in captured.states else given[name] for name, state in names.items()
    }
    return Published(program, starts)


def _check_known(parameters: dict[str, torch.nn.Parameter], known: dict[int, str]) -> None:
    strange = [name for name, parameter in parameters.items() if id(parameter) not in known]
    if strange or not parameters:
        raise InputError(
            explain(
                f"{strange[0]!r} is no parameter of the training's models"
                if strange
                else "the model has no parameters",
                where="publish()",
                why="a model made anew, or a copy, has weights of its own, which nobody trained",
                fix="give the module that compile_training() got, or a module made of it",
            )
        )
