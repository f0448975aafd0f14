"""From a model and the names of the parties to a program, for the engine that is to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from protocols.errors import explain
from protocols.names import NAME_RULE, PUBLIC, is_name
from securemodel.compiler.capture import Captured, Examples, Kept, capture, example_tensors, model_state, usable
from securemodel.compiler.explaining import NeedsValues
from securemodel.compiler.faithful import unlike
from securemodel.compiler.ir import CLIENT, ROUNDINGS, Graph, Header, Rounding, Stranger
from securemodel.compiler.lowering import Lowered
from securemodel.compiler.ops import precision_problem
from securemodel.compiler.owners import Weights, check_owners, given_weights, weight_owners
from securemodel.compiler.postprocess import Reveal, Source, capture_revealing, revealing
from securemodel.compiler.report import Magnitudes, Report
from securemodel.errors import CompileError, InputError, UnsupportedOperator
from securemodel.program import Program, receivers


class Compiling(Protocol):
    """An engine's part of compiling: what it makes of captured operators, and of the lowered model."""

    def lower(
        self,
        captured: Captured,
        weights: Weights,
        owners: Sequence[str],
        frac_bits: int = 16,
        *,
        width: int = 64,
        rounding: Rounding = "exact",
    ) -> Lowered: ...

    @property
    def assemble(self) -> Callable[..., Program]:
        """(header, lowered, source, truncate_outputs, options of the engine) -> the program."""


def compile_for(
    compiler: Compiling,
    model: torch.nn.Module,
    example_inputs: torch.Tensor | Examples,
    *,
    weights: str | Mapping[str, str],
    inputs: str | Sequence[str] | Mapping[str, str],
    outputs: str | Sequence[str],
    parties: Sequence[str] | None,
    reveal: Reveal,
    frac_bits: int,
    width: int,
    rounding: Rounding,
    truncate_outputs: bool = False,
    state: Mapping[str | int, int] | None = None,
    stranger: Stranger | None = None,
    **options: Any,
) -> Program:
    """What `securemodel.compile` does once it knows the engine; the same arguments, and its errors.

    With `stranger`, inputs and outputs may be those of "client", who is no party.
    """
    usable(model)
    examples = _as_examples(example_inputs)
    example_inputs = example_tensors(examples)
    places = _places(state or {}, examples)
    given = [at for at in range(len(example_inputs)) if at not in places]
    owners = _owners(inputs, _only(examples, given))
    owner = given_weights(weights)
    check_owners(owner, [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    names = _of_service(owner, owners, outputs, parties) if stranger else party_names(owner, owners, outputs, parties)
    _check_arguments(example_inputs, len(given), owners, frac_bits, width, rounding)
    captured = capture_revealing(model, examples, reveal)
    captured = _with_state(captured, places, example_inputs)
    more: dict[str, Any] = {"stranger": stranger} if stranger else {}
    if tuned := options.get("tuned"):
        more |= {"whole_rows": tuned.whole_rows, "halved": tuned.halvings}
    lowered = compiler.lower(captured, owner, owners, frac_bits, width=width, rounding=rounding, **more)
    if lowered.problems:
        raise UnsupportedOperator(_report(model, lowered))
    if problem := unlike(revealing(model, reveal), captured, examples, model_state(model)):
        raise UnsupportedOperator(Report(type(model).__name__, (problem,), ()))
    to = receivers(outputs, len(lowered.outputs))
    if len(to) != len(lowered.outputs):
        raise CompileError(f"outputs names {len(to)} receivers, but the model returns {len(lowered.outputs)} values")
    shapes = tuple(tuple(example_inputs[at].shape) for at in given)
    header = Header(names, frac_bits, width, owner, tuple(owners), shapes, tuple(to), rounding)
    program = compiler.assemble(header, lowered, Source(model, examples, reveal), truncate_outputs, **options)
    return replace(program, reveal=reveal, captured=captured)


def _places(state: Mapping[str | int, int], examples: Examples) -> dict[int, tuple[str, int]]:
    """{position of an input: (its name as a state, the output that replaces it)}. Raises CompileError."""
    names: list[str | int] = [*examples] if isinstance(examples, Mapping) else [*range(len(examples))]
    if unknown := [key for key in state if key not in names]:
        raise CompileError(f"state names the input {unknown[0]!r}, but the inputs are {', '.join(map(repr, names))}")
    if len(set(state.values())) != len(state):
        raise CompileError("state gives one output to two inputs: the next value of each is an output of its own")
    return {names.index(key): (f"input {key}", output) for key, output in state.items()}


def _only(examples: Examples, places: Sequence[int]) -> Examples:
    if isinstance(examples, Mapping):
        names = list(examples)
        return {names[at]: examples[names[at]] for at in places}
    return tuple(examples[at] for at in places)


def _with_state(
    captured: Captured, places: Mapping[int, tuple[str, int]], examples: Sequence[torch.Tensor]
) -> Captured:
    """The captured model with inputs that stay between runs. Raises CompileError."""
    if wrong := [output for _, output in places.values() if not 0 <= output < len(captured.outputs)]:
        raise CompileError(f"state names the output {wrong[0]}, but the model returns {len(captured.outputs)} values")
    kept = [Kept(captured.inputs[at], name, to, examples[at].detach()) for at, (name, to) in places.items()]
    return replace(captured, kept=tuple(kept))


def compile_again(program: Program, compiler: Compiling, rounding: Rounding | None = None, **options: Any) -> Program:
    """The model of a compiled program for another engine, or with other options of its own. Raises what `compile` does."""
    header = program.header
    if any(node.op == "state" for node in program.graph.nodes):
        raise InputError(explain("a program with state is for the masked engine alone", fix="leave out --protocol"))
    if program.model is None:
        raise InputError(
            explain(
                "this program was read from a file, and only its model can be compiled for another protocol",
                fix="give the script that compiles it",
            )
        )
    return compile_for(
        compiler, program.model, program.examples, weights=_as_given(header.weights), inputs=header.inputs,
        outputs=header.results, parties=header.parties, reveal=program.reveal, frac_bits=header.frac_bits,
        width=header.width, rounding=rounding or header.rounding, **options,
    )  # fmt: skip


def _as_given(weights: Weights) -> str | dict[str, str]:
    return weights if isinstance(weights, str) else dict(weights)


Look = Callable[[Captured, Graph, Examples], Magnitudes | None]


def check_for(
    compiler: Compiling,
    model: torch.nn.Module,
    example_inputs: Examples,
    look: Look = lambda captured, graph, examples: None,
) -> Report:
    """What `securemodel.check` does once it knows the engine; `look` judges a model that has no problems."""
    examples = _as_examples(example_inputs)
    try:
        captured = capture(model, examples)
    except NeedsValues as error:
        return Report(type(model).__name__, (error.problem,), ())
    lowered = compiler.lower(captured, "model owner", ["data owner"] * len(examples))
    report = _report(model, lowered)
    if not report:
        return report
    if problem := unlike(model, captured, examples, model_state(model)):
        return replace(report, problems=(problem,))
    return replace(report, magnitudes=look(captured, lowered.builder.graph, examples))


def _as_examples(given: Any) -> Examples:
    if isinstance(given, Mapping):
        return dict(given)
    return (given,) if isinstance(given, torch.Tensor) else tuple(given)


def _owners(inputs: str | Sequence[str] | Mapping[str, str], examples: Examples) -> list[str]:
    """The owner of each input, in the order of the examples."""
    if isinstance(inputs, str):
        return [inputs] * len(examples)
    if not isinstance(inputs, Mapping):
        return list(inputs)
    if not isinstance(examples, Mapping) or set(inputs) != set(examples):
        raise CompileError(
            "inputs names owners by the names of inputs: give example_inputs as a dict with the same names"
        )
    return [inputs[name] for name in examples]


def _report(model: torch.nn.Module, lowered: Lowered) -> Report:
    return Report(type(model).__name__, lowered.problems, lowered.operators, lowered.approximated, lowered.unchecked)


def party_names(weights: Weights, owners: Sequence[str], outputs, parties) -> tuple[str, ...]:
    """All online parties, those that are given or else all that have or learn something. Raises CompileError."""
    to = [outputs] if isinstance(outputs, str) else list(outputs)
    given = [n for n in (*weight_owners(weights), *owners) if n != PUBLIC] + [n for n in to if n not in (PUBLIC, "all")]
    used = list(dict.fromkeys(given))
    names = tuple(parties) if parties is not None else tuple(used)
    missing = [n for n in used if n not in names]
    if missing:
        raise CompileError(
            f"unknown party {', '.join(missing)}: the parties are {', '.join(names)}. "
            "Name every owner and receiver in `parties`."
        )
    bad = [n for n in names if not is_name(n)]
    if bad or len(set(names)) != len(names):
        raise CompileError(
            f"bad party names {', '.join(map(repr, bad or names))}: parties have different names, and {NAME_RULE}"
        )
    if len(names) < 2:
        raise CompileError(
            f"a secure program needs at least two online parties, got {', '.join(names) or 'none'}. "
            "Name a further one in `parties`."
        )
    return names


def _of_service(weights: Weights, owners: Sequence[str], outputs: str | Sequence[str], parties) -> tuple[str, ...]:
    """The parties of a program that a client asks, who is none of them. Raises CompileError."""
    to = [outputs] if isinstance(outputs, str) else list(outputs)
    names = party_names(weights, [n for n in owners if n != CLIENT], [n for n in to if n != CLIENT], parties)
    if CLIENT in names:
        raise CompileError(f"a party cannot be called {CLIENT!r} here: so those who ask the parties are called")
    return names


def _check_arguments(example_inputs, given: int, owners, frac_bits: int, width: int, rounding: str) -> None:
    check_numbers(frac_bits, width, rounding)
    if len(owners) != given:
        raise CompileError(f"inputs names {len(owners)} owners for {given} example inputs")
    if not all(isinstance(x, torch.Tensor) for x in example_inputs):
        raise CompileError("example_inputs must be tensors (their values do not matter, their shapes do)")


def check_numbers(frac_bits: int, width: int, rounding: str) -> None:
    """Raises CompileError for numbers in which no program computes."""
    if rounding not in ROUNDINGS:
        raise CompileError(f"rounding = {rounding!r} is none of {', '.join(map(repr, ROUNDINGS))}")
    if problem := precision_problem(frac_bits, width):
        raise CompileError(problem)
