"""The one file that knows every engine: what compiles, plans, reads and runs the programs of each protocol."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import torch

from protocols.devices import Device, chosen
from protocols.errors import ConfigError, explain
from protocols.identity import PartiesConfig
from securemodel.compiler.capture import Captured, Examples, model_state
from securemodel.compiler.ir import Graph, Rounding
from securemodel.compiler.postprocess import Reveal
from securemodel.compiler.report import Magnitudes, Report
from securemodel.compiler.tuning import Tuning
from securemodel.engines.compiling import Compiling, check_for, compile_for
from securemodel.engines.compiling import compile_again as compile_again_for
from securemodel.engines.crypten import compiling as crypten_compiling
from securemodel.engines.crypten import program as crypten_program
from securemodel.engines.masked import compiling as masked_compiling
from securemodel.engines.paillier import compiling as paillier_compiling
from securemodel.engines.paillier import deep, reading
from securemodel.engines.paillier import program as paillier_program
from securemodel.errors import InputError, RangeWarning
from securemodel.family import Family
from securemodel.inspect.magnitudes import Ranges, magnitudes
from securemodel.invocation import current
from securemodel.ledger import book_of, record_for
from securemodel.planning import crypten as crypten_planning
from securemodel.planning import deep as deep_planning
from securemodel.planning import paillier as paillier_planning
from securemodel.planning import plan as masked_planning
from securemodel.program import READERS, Program, checked
from securemodel.sessions import crypten, masked, paillier, serving
from securemodel.sessions.remote import at_lane
from securemodel.sessions.serving import ServingSession
from securemodel.sessions.session import Session


@dataclass(frozen=True)
class Engine:
    """What a protocol has: its part of compiling, the sessions it opens, the further options of `compile`, and whether its
    sessions take a device."""

    compiling: Compiling
    open_local: Callable[..., Session]
    open_connection: Callable[..., Session]
    options: tuple[str, ...] = ()
    on_gpus: bool = False


ENGINES: Mapping[str, Engine] = {
    "masked": Engine(masked_compiling, masked.open_local, masked.open_connection, ("state", "tuned"), on_gpus=True),
    "crypten": Engine(crypten_compiling, crypten.open_local, crypten.open_connection),
    "paillier": Engine(
        paillier_compiling,
        paillier.open_local,
        paillier.open_connection,
        ("weight_limit", "input_limit", "key_bits", "insecure_key_bits"),
    ),
}

Program.planner = staticmethod(masked_planning.make_plan)
deep.DeepProgram.planner = staticmethod(deep_planning.make_plan)
paillier_program.PaillierProgram.planner = staticmethod(paillier_planning.make_plan)
crypten_program.CryptenProgram.planner = staticmethod(crypten_planning.make_plan)

READERS.update(
    {
        deep.DeepProgram.kind: reading.read_deep,
        paillier_program.KIND: reading.read_encrypted,
        crypten_program.KIND: crypten_program.read_program,
    }
)


def engine_of(protocol: str) -> Engine:
    """The engine of a protocol. Raises InputError for an unknown one."""
    if protocol not in ENGINES:
        raise InputError(
            explain(f"no protocol is called {protocol!r}", fix=f"use one of {', '.join(map(repr, ENGINES))}")
        )
    return ENGINES[protocol]


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
    ranges: Ranges = None,
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
    `state` (of the masked engine) maps inputs, by name or position, to the positions of the outputs that a run hands to
    the next one in their place: they stay shares that nobody sees, start as in the examples, which everybody knows, and
    start again with each load. `inputs` and `outputs` then leave them out.
    `tuned` (of the masked engine): ranges that `tune` measured, or the file of them. Comparisons see no more bits than
    these; a value that leaves its range makes a wrong result. All parties give the same.
    `protocol` is what runs the program: "masked", this project's engine and the default, "paillier"
    (docs/encrypted-graphs.md), or "crypten" (docs/crypten.md). Further options are those of the protocol.
    `ranges` says what the inputs lie in, as for `check`: a RangeWarning then lists the layers whose values are not shown
    to fit the ring. The program is the same.

    Raises UnsupportedOperator (with the report of `check`), CompileError, InputError.
    """
    protocol = protocol or current().protocol or "masked"
    _check_options(protocol, options)
    if "tuned" in options:
        options["tuned"] = _tuning(options["tuned"])
    program = compile_for(
        engine_of(protocol).compiling, model, example_inputs, weights=weights, inputs=inputs, outputs=outputs,
        parties=parties, reveal=reveal, frac_bits=frac_bits, width=width,
        rounding=rounding or _default_rounding(protocol), truncate_outputs=truncate_outputs, **options,
    )  # fmt: skip
    if ranges is not None and program.captured:
        _warn_of_ranges(program, ranges)
    return program


def _tuning(given: Tuning | str | Path | None) -> Tuning | None:
    """A tuning, or the one in a file. Raises InputError, FileError."""
    if isinstance(given, str | Path):
        return Tuning.load(given)
    if given is not None and not isinstance(given, Tuning):
        fix = "give what tune() found as .tuning, or the file that its save() wrote"
        raise InputError(explain(f"tuned= is no tuning but {type(given).__name__}", where="compile()", fix=fix))
    return given


def _warn_of_ranges(program: Program, ranges: Ranges) -> None:
    """Lists the layers of a program whose values are not shown to fit, once. Raises InputError for wrong ranges."""
    header, captured = program.header, cast(Captured, program.captured)
    state = model_state(cast(torch.nn.Module, program.model))
    found = magnitudes(captured, program.graph, state, program.examples, ranges, header.frac_bits, header.width)
    if found:
        warnings.warn(str(found), RangeWarning, stacklevel=3)


def _default_rounding(protocol: str) -> Rounding:
    return "fast" if protocol == "crypten" else "exact"


def _check_options(protocol: str, options: dict[str, Any]) -> None:
    """Options of other protocols, and of none, are a mistake in the call. Raises TypeError."""
    known = engine_of(protocol).options
    if unknown := [name for name in options if name not in known]:
        owners = [other for other, engine in ENGINES.items() if unknown[0] in engine.options]
        where = f"; it is one of protocol={owners[0]!r}" if owners else ""
        raise TypeError(f"compile() got an unexpected argument {unknown[0]!r}{where}")


def compile_again(program: Program, protocol: str) -> Program:
    """The model of a compiled program for another protocol. Raises what `compile` does."""
    rounding = _default_rounding(protocol) if "crypten" in (protocol, program.protocol) else None
    return compile_again_for(program, engine_of(protocol).compiling, rounding)


def check(
    model: torch.nn.Module, example_inputs: Examples, *, protocol: str = "masked", ranges: Ranges = None
) -> Report:
    """Every operator of a model that has no secure version, with source line, reason and remedy.

    Assumes the usual case: one party owns the weights, another the inputs. For the masked engine, and a model with its
    weights, the report also lists the first layers whose values are not shown to fit the ring. `ranges`: (least, largest)
    of the inputs, numbers or tensors that broadcast to them, or such a pair for each by name or in order; without one,
    real numbers are taken within ±1 or as far as the example's go. Raises InputError for ranges that fit no input.
    """

    def look(captured: Captured, graph: Graph, examples: Examples) -> Magnitudes | None:
        return magnitudes(captured, graph, model_state(model), examples, ranges)

    engine = engine_of(protocol).compiling
    return (
        check_for(engine, model, example_inputs, look)
        if protocol == "masked"
        else check_for(engine, model, example_inputs)
    )


@overload
def local(program: Program, *, ledger: str | Path | None = None, device: Device = None) -> Session: ...
@overload
def local(program: Family, *, device: Device = None) -> ServingSession: ...
def local(
    program: Program | Family, *, ledger: str | Path | None = None, device: Device = None
) -> Session | ServingSession:
    """A session with all parties on this machine; `run` takes and returns everything.

    Programs of the masked engine run in this process, those of CrypTen in one process for each party. Runs are
    written into a ledger (docs/audit.md) only where one is named. Raises LedgerError if it cannot be written. Of a family,
    a session that takes and returns shares; a service counts its runs itself. `device`: what all parties and the dealer
    compute on, "cpu" or "cuda" (docs/gpu.md); results are the same bits. Raises ConfigError where there is none.
    """
    if isinstance(program, Family):
        return serving.open_local(program.programs, program.digest, device)
    book = book_of(ledger or False)
    options = _on(program, device, "local()")
    session = engine_of(program.protocol).open_local(program, **options)
    if book:
        session.record = record_for(book, program, "all", os.urandom(16))
    return session


@overload
def connect(
    program: Program,
    me: str | None = None,
    config: str | Path | PartiesConfig | None = None,
    *,
    lane: int | None = None,
    store: str | Path | None = None,
    ahead: bool = True,
    insecure_plain: bool = False,
    paillier_key: str | Path | None = None,
    ledger: str | Path | bool = True,
    device: Device = None,
) -> Session: ...
@overload
def connect(
    program: Family,
    me: str | None = None,
    config: str | Path | PartiesConfig | None = None,
    *,
    lane: int | None = None,
    ahead: bool = True,
    insecure_plain: bool = False,
    device: Device = None,
) -> ServingSession: ...
def connect(
    program: Program | Family,
    me: str | None = None,
    config: str | Path | PartiesConfig | None = None,
    *,
    lane: int | None = None,
    store: str | Path | None = None,
    ahead: bool = True,
    insecure_plain: bool = False,
    paillier_key: str | Path | None = None,
    ledger: str | Path | bool = True,
    device: Device = None,
) -> Session | ServingSession:
    """Connects this party with the others and returns its end of the session.

    The same script runs at every party; `me` and `config` (a parties file) come from the command line
    `securemodel run` unless given. `lane`: further sessions of the same parties, each in processes of its own, run
    side by side as lane 1, 2, ... (docs/several-machines.md). With `store`, preprocessing made by `securemodel prepare`
    is used instead of a dealer. `ahead` prepares the run after the one that goes on. `insecure_plain` leaves TLS out, for
    measurements on one host only. `paillier_key` is the file of the client's private key for a program of the protocol
    "paillier", which otherwise makes one for the session. Each run is written into the `ledger` (docs/audit.md): True
    is the one that the command line names, or else the user's own; False is none. A family has a dealer, and no ledger:
    a service counts its runs itself. `device`: what this party computes on, "cpu" or "cuda" (docs/gpu.md); each party
    chooses for itself, and the others see nothing of it.

    Raises ConfigError, LedgerError (before anything is sent), PeerAbsent, IdentityError, Mismatch (other program, version or script).
    """
    config = config if lane is None else at_lane(config, lane)
    if isinstance(program, Family):
        return serving.open_connection(
            program.programs, program.digest, me, config, ahead=ahead, insecure_plain=insecure_plain, device=device
        )
    paillier_key = paillier_key or current().paillier_key
    options = {"store": store, "ahead": ahead, "insecure_plain": insecure_plain, "paillier_key": paillier_key}
    options |= _on(program, device, "connect()")
    book = book_of(ledger)
    session = engine_of(program.protocol).open_connection(program, me, config, **options)
    if book:
        session.record = record_for(book, program, session.me, session.channel.session)
    return session


def _on(program: Program, device: Device, where: str) -> dict[str, Any]:
    """The option of an engine whose sessions take a device. Raises ConfigError for one that computes on the CPU alone."""
    if engine_of(checked(program, where).protocol).on_gpus:
        return {"device": device}
    if chosen(device or current().device).type != "cpu":
        what = f"a program of the protocol {program.protocol!r} computes on the CPU alone"
        fix = 'leave the device out, or compile without protocol="..."'
        raise ConfigError(explain(what, why="only the masked engine has kernels for other devices", fix=fix))
    return {}
