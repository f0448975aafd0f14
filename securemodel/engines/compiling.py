"""From a model and the names of the parties to a program, for the engine that is to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from protocols.errors import explain
from protocols.names import NAME_RULE, is_name
from securemodel.compiler.builder import PUBLIC
from securemodel.compiler.capture import Captured, Examples, capture
from securemodel.compiler.ir import ROUNDINGS, Header, Rounding
from securemodel.compiler.lowering import Lowered
from securemodel.compiler.ops import precision_problem
from securemodel.compiler.owners import Weights, check_owners, given_weights, weight_owners
from securemodel.compiler.postprocess import Reveal, capture_revealing
from securemodel.compiler.report import Report
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

    def assemble(
        self,
        header: Header,
        lowered: Lowered,
        model: torch.nn.Module,
        examples: Examples,
        truncate_outputs: bool,
        reveal: Reveal,
        **options: Any,
    ) -> Program: ...


def compile_for(
    compiler: Compiling,
    model: torch.nn.Module,
    example_inputs: Examples,
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
    **options: Any,
) -> Program:
    """What `securemodel.compile` does once it knows the engine; the same arguments, and its errors."""
    examples = _as_examples(example_inputs)
    example_inputs = tuple(examples.values()) if isinstance(examples, Mapping) else examples
    owners = _owners(inputs, examples)
    weights = given_weights(weights)
    check_owners(weights, model)
    names = _party_names(weights, owners, outputs, parties)
    _check_arguments(example_inputs, owners, frac_bits, width, rounding)
    captured = capture_revealing(model, examples, reveal)
    lowered = compiler.lower(captured, weights, owners, frac_bits, width=width, rounding=rounding)
    if lowered.problems:
        raise UnsupportedOperator(_report(model, lowered))
    to = receivers(outputs, len(lowered.outputs))
    if len(to) != len(lowered.outputs):
        raise CompileError(f"outputs names {len(to)} receivers, but the model returns {len(lowered.outputs)} values")
    shapes = tuple(tuple(x.shape) for x in example_inputs)
    header = Header(names, frac_bits, width, weights, tuple(owners), shapes, tuple(to), rounding)
    program = compiler.assemble(header, lowered, model, examples, truncate_outputs, reveal, **options)
    return replace(program, reveal=reveal, captured=captured)


def compile_again(program: Program, compiler: Compiling, rounding: Rounding | None = None) -> Program:
    """The model of a compiled program for another engine. Raises what `compile` does."""
    header = program.header
    if program.model is None:
        raise InputError(
            explain(
                "this program was read from a file, and only its model can be compiled for another protocol",
                fix="give the script that compiles it",
            )
        )
    return compile_for(
        compiler, program.model, program.examples, weights=_as_given(header.weights), inputs=header.inputs,
        outputs=header.outputs, parties=header.parties, reveal=program.reveal, frac_bits=header.frac_bits,
        width=header.width, rounding=rounding or header.rounding,
    )  # fmt: skip


def _as_given(weights: Weights) -> str | dict[str, str]:
    return weights if isinstance(weights, str) else dict(weights)


def check_for(compiler: Compiling, model: torch.nn.Module, example_inputs: Examples) -> Report:
    """What `securemodel.check` does once it knows the engine."""
    examples = _as_examples(example_inputs)
    lowered = compiler.lower(capture(model, examples), "model owner", ["data owner"] * len(examples))
    return _report(model, lowered)


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


def _party_names(weights: Weights, owners: Sequence[str], outputs, parties) -> tuple[str, ...]:
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


def _check_arguments(example_inputs, owners, frac_bits: int, width: int, rounding: str) -> None:
    if rounding not in ROUNDINGS:
        raise CompileError(f"rounding = {rounding!r} is none of {', '.join(map(repr, ROUNDINGS))}")
    if len(owners) != len(example_inputs):
        raise CompileError(f"inputs names {len(owners)} owners for {len(example_inputs)} example inputs")
    if not all(isinstance(x, torch.Tensor) for x in example_inputs):
        raise CompileError("example_inputs must be tensors (their values do not matter, their shapes do)")
    if problem := precision_problem(frac_bits, width):
        raise CompileError(problem)
