"""compile and check: from a model and the names of the parties to a program."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from protocols.errors import explain
from securemodel.backends.table import PROTOCOLS, part_of, parts_of
from securemodel.compiler.builder import PUBLIC
from securemodel.compiler.capture import capture
from securemodel.compiler.ir import Header
from securemodel.compiler.lowering import Lowered
from securemodel.compiler.report import Report
from securemodel.errors import CompileError, InputError, UnsupportedOperator
from securemodel.program import Program, receivers

_RESERVED = frozenset({PUBLIC, "all", "dealer"})
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def compile(
    model: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    weights: str,
    inputs: str | Sequence[str],
    outputs: str | Sequence[str],
    parties: Sequence[str] | None = None,
    frac_bits: int = 16,
    width: int = 64,
    truncate_outputs: bool = False,
    protocol: str = "masked",
    **options: Any,
) -> Program:
    """Compiles a model into a program that parties run together without showing each other their data.

    `weights` names the party that owns the parameters and buffers, `inputs` the owner of each input (one
    name for all, or a tuple), `outputs` who learns each output (a party, "all", or a tuple). "public" marks
    what everybody knows. `parties` orders the online parties; by default the weights' owner is first.
    The weights need not be real at any party but their owner: a model on the meta device will do.
    Reals have `frac_bits` fractional bits. `width` bounds what is compared: magnitudes stay below
    2^(width - 1 - frac_bits); smaller is faster. Results of products are revealed with 2 frac_bits
    fractional bits; `truncate_outputs` cuts them to frac_bits first, for one more round.
    `protocol` is what runs the program: "masked", this project's engine, "paillier" (docs/encrypted-graphs.md), or
    "crypten" (docs/crypten.md). Further options are those of the protocol.

    Raises UnsupportedOperator (with the report of `check`), CompileError, InputError.
    """
    _check_options(protocol, options)
    example_inputs = _as_tuple(example_inputs)
    owners = [inputs] * len(example_inputs) if isinstance(inputs, str) else list(inputs)
    names = _party_names(weights, owners, outputs, parties)
    _check_arguments(example_inputs, owners, frac_bits, width)
    compiler = part_of(protocol, "compiling")
    lowered = compiler.lower(capture(model, example_inputs), weights, owners, frac_bits)
    if lowered.problems:
        raise UnsupportedOperator(_report(model, lowered))
    to = receivers(outputs, len(lowered.outputs))
    if len(to) != len(lowered.outputs):
        raise CompileError(f"outputs names {len(to)} receivers, but the model returns {len(lowered.outputs)} values")
    shapes = tuple(tuple(x.shape) for x in example_inputs)
    header = Header(names, frac_bits, width, weights, tuple(owners), shapes, tuple(to))
    return compiler.assemble(header, lowered, model, example_inputs, truncate_outputs, **options)


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
        program.model, program.examples, weights=header.weights, inputs=header.inputs, outputs=header.outputs,
        parties=header.parties, frac_bits=header.frac_bits, width=header.width, protocol=protocol,
    )  # fmt: skip


def check(model: torch.nn.Module, example_inputs: Sequence[torch.Tensor], *, protocol: str = "masked") -> Report:
    """Every operator of a model that has no secure version, with source line, reason and remedy.

    Assumes the usual case: one party owns the weights, another the inputs.
    """
    example_inputs = _as_tuple(example_inputs)
    compiler = part_of(protocol, "compiling")
    lowered = compiler.lower(capture(model, example_inputs), "model owner", ["data owner"] * len(example_inputs))
    return _report(model, lowered)


def _check_options(protocol: str, options: dict[str, Any]) -> None:
    """Options of other protocols, and of none, are a mistake in the call. Raises TypeError."""
    known = parts_of(protocol).options
    if unknown := [name for name in options if name not in known]:
        owners = [other for other, parts in PROTOCOLS.items() if unknown[0] in parts.options]
        where = f"; it is one of protocol={owners[0]!r}" if owners else ""
        raise TypeError(f"compile() got an unexpected argument {unknown[0]!r}{where}")


def _as_tuple(example_inputs: Any) -> tuple[torch.Tensor, ...]:
    return (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)


def _report(model: torch.nn.Module, lowered: Lowered) -> Report:
    return Report(type(model).__name__, lowered.problems, lowered.operators)


def _party_names(weights: str, owners: Sequence[str], outputs, parties) -> tuple[str, ...]:
    to = [outputs] if isinstance(outputs, str) else list(outputs)
    given = [n for n in (weights, *owners) if n != PUBLIC] + [n for n in to if n not in (PUBLIC, "all")]
    used = list(dict.fromkeys(given))
    names = tuple(parties) if parties is not None else tuple(used)
    missing = [n for n in used if n not in names]
    if missing:
        raise CompileError(
            f"unknown party {', '.join(missing)}: the parties are {', '.join(names)}. "
            "Name every owner and receiver in `parties`."
        )
    bad = [n for n in names if n in _RESERVED or not _NAME.fullmatch(n)]
    if bad or len(set(names)) != len(names):
        raise CompileError(
            f"bad party names {', '.join(map(repr, bad or names))}: use different names of letters, digits, '_' and "
            f"'-' that start with a letter, none of {', '.join(sorted(_RESERVED))}"
        )
    if len(names) < 2:
        raise CompileError(
            f"a secure program needs at least two online parties, got {', '.join(names) or 'none'}. "
            "Name a further one in `parties`."
        )
    return names


def _check_arguments(example_inputs, owners, frac_bits: int, width: int) -> None:
    if len(owners) != len(example_inputs):
        raise CompileError(f"inputs names {len(owners)} owners for {len(example_inputs)} example inputs")
    if not all(isinstance(x, torch.Tensor) for x in example_inputs):
        raise CompileError("example_inputs must be tensors (their values do not matter, their shapes do)")
    if not 4 <= frac_bits <= 24:
        raise CompileError(f"frac_bits = {frac_bits} is outside 4..24: products need 2 frac_bits plus the integer part")
    if not frac_bits + 8 <= width <= 64:
        raise CompileError(f"width = {width} is outside {frac_bits + 8}..64 for {frac_bits} fractional bits")
