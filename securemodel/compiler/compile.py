"""compile and check: from a model and the names of the parties to a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from protocols.errors import explain
from protocols.names import NAME_RULE, is_name
from securemodel.backends.table import PROTOCOLS, default_protocol, part_of, parts_of
from securemodel.compiler.builder import PUBLIC
from securemodel.compiler.capture import Examples, capture
from securemodel.compiler.ir import ROUNDINGS, Header, Rounding
from securemodel.compiler.lowering import Lowered
from securemodel.compiler.ops import precision_problem
from securemodel.compiler.owners import Weights, check_owners, given_weights, weight_owners
from securemodel.compiler.postprocess import Reveal, capture_revealing
from securemodel.compiler.report import Report
from securemodel.errors import CompileError, InputError, UnsupportedOperator
from securemodel.program import Program, receivers


def compile(
    model: torch.nn.Module,
    example_inputs: Examples,
    *,
    weights: str | Mapping[str, str],
    inputs: str | Sequence[str] | Mapping[str, str],
    outputs: str | Sequence[str],
    parties: Sequence[str] | None = None,
    reveal: Reveal = "all",
    frac_bits: int = 16,
    width: int = 64,
    rounding: Rounding | None = None,
    truncate_outputs: bool = False,
    protocol: str | None = None,
    **options: Any,
) -> Program:
    """Compiles a model into a program that parties run together without showing each other their data.

    `example_inputs` is a tensor, a tuple of tensors, or a dict of those that `model` takes by name; `run` then takes
    them in the dict's order. Of what the model returns, the tensors are the outputs, in order.
    `weights` names the party that owns the parameters and buffers, or maps prefixes of their names to owners
    (the longest prefix counts, "" is for the rest), `inputs` the owner of each input (one name for all, a
    tuple, or a dict), `outputs` who learns each output (a party, "all", or a tuple). "public" marks what everybody
    knows. `parties` orders the online parties; by default the weights' owners are first. The weights need not be
    real at any party but their owner: a model on the meta device will do.
    `reveal` says what becomes of the model's result before it is revealed: "all" of it, its softmax
    ("probabilities"), the "class" of the largest score, or ("top", k) classes and their probabilities.
    Reals have `frac_bits` fractional bits. `width` bounds what is compared: magnitudes stay below
    2^(width - 1 - frac_bits); smaller is faster. Results of products are revealed with 2 frac_bits
    fractional bits, those of small public factors with up to 3 frac_bits; `truncate_outputs` cuts them to frac_bits
    first, for three more rounds, or one with fast rounding.
    `rounding`: "exact", the default, makes every truncated value the nearest one, so that results are a function of the
    inputs alone; with "fast" it may be one unit higher, by chance, which tells the receiver of an output something about
    the digits that were cut off (docs/threat-model.md), for less time. CrypTen has "fast" only.
    `protocol` is what runs the program: "masked", this project's engine and the default, "paillier"
    (docs/encrypted-graphs.md), or "crypten" (docs/crypten.md). Further options are those of the protocol.

    Raises UnsupportedOperator (with the report of `check`), CompileError, InputError.
    """
    protocol = protocol or default_protocol()
    _check_options(protocol, options)
    examples = _as_examples(example_inputs)
    example_inputs = tuple(examples.values()) if isinstance(examples, Mapping) else examples
    owners = _owners(inputs, examples)
    weights = given_weights(weights)
    check_owners(weights, model)
    names = _party_names(weights, owners, outputs, parties)
    rounding = rounding or ("fast" if protocol == "crypten" else "exact")
    _check_arguments(example_inputs, owners, frac_bits, width, rounding)
    compiler = part_of(protocol, "compiling")
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


def compile_again(program: Program, protocol: str) -> Program:
    """The model of a compiled program for another protocol. Raises what `compile` does."""
    header = program.header
    if program.model is None:
        raise InputError(
            explain(
                "this program was read from a file, and only its model can be compiled for another protocol",
                fix="give the script that compiles it",
            )
        )
    return compile(
        program.model, program.examples, weights=_as_given(header.weights), inputs=header.inputs, outputs=header.outputs,
        parties=header.parties, reveal=program.reveal, frac_bits=header.frac_bits, width=header.width,
        rounding=None if "crypten" in (protocol, program.protocol) else header.rounding, protocol=protocol,
    )  # fmt: skip


def _as_given(weights: Weights) -> str | dict[str, str]:
    return weights if isinstance(weights, str) else dict(weights)


def check(model: torch.nn.Module, example_inputs: Examples, *, protocol: str = "masked") -> Report:
    """Every operator of a model that has no secure version, with source line, reason and remedy.

    Assumes the usual case: one party owns the weights, another the inputs.
    """
    examples = _as_examples(example_inputs)
    compiler = part_of(protocol, "compiling")
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
        raise CompileError("inputs names owners by the names of inputs: give example_inputs as a dict with the same names")
    return [inputs[name] for name in examples]


def _check_options(protocol: str, options: dict[str, Any]) -> None:
    """Options of other protocols, and of none, are a mistake in the call. Raises TypeError."""
    known = parts_of(protocol).options
    if unknown := [name for name in options if name not in known]:
        owners = [other for other, parts in PROTOCOLS.items() if unknown[0] in parts.options]
        where = f"; it is one of protocol={owners[0]!r}" if owners else ""
        raise TypeError(f"compile() got an unexpected argument {unknown[0]!r}{where}")


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
