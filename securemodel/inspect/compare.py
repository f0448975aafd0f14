"""`compare`: float, fixed point in the clear and secure side by side, to see where a model loses its precision.

For one owner's test data only: inputs, weights and every value in between are in this process, in the clear.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from protocols.errors import explain
from protocols.shares import RING_BITS, Masked
from securemodel.compiler.capture import Captured, layer_of, model_state, source_line
from securemodel.compiler.ir import PHASES, Graph, Mark, Node, Phase, only_moves
from securemodel.compiler.ops import ROWS, encoding_limit, shifted_bits
from securemodel.compiler.wire import sent_bits
from securemodel.engines.clear import ClearSide, revealed
from securemodel.engines.masked.party import OnlineParty
from securemodel.engines.masked.walk import local_walks
from securemodel.errors import InputError
from securemodel.inspect.differences import Comparison, Limit, Row
from securemodel.inspect.fixed import Both, FixedPoint
from securemodel.inspect.ranges import ranges
from securemodel.inspect.reference import reference
from securemodel.planning.layer_names import INPUTS, OUTPUTS, layer_names
from securemodel.program import Program, checked
from securemodel.sessions.rows import batches, split_rows
from securemodel.sessions.session import Session

_INFINITY = 1e30  # from here on a float stands for infinity, as in masks of attention: nothing to compare with


def compare(program: Program, *inputs: torch.Tensor, model: torch.nn.Module | None = None) -> Comparison:
    """Runs a program on test data three ways in this process, and says for each layer what came of it.

    Float64 with torch, fixed point in the clear, and all parties together as `local` does. For **test data of one
    owner**: everything is in the clear here, nothing is protected. `model` gives the weights if the program was
    compiled without them. Inputs are as for `Session.run`.

    Raises InputError for inputs or weights of wrong shapes or out of range, for programs read from a file, and for those
    with a `protocol`.
    """
    model = model_in_the_clear(program, model, "compare()", "compared layer by layer")
    header = program.header
    total = split_rows(inputs, program, [True] * len(header.inputs))
    found = _Findings(program)
    clear = {name: ClearSide(program, name) for name in program.parties}
    for side in clear.values():
        side.set_model(model)
    fixed, state = FixedPoint(program, clear), model_state(model)
    captured = cast(Captured, program.model_graph)
    recorders: list[_Recorded] = []

    def recorder(*args) -> _Recorded:
        recorders.append(_Recorded(*args))
        return recorders[-1]

    phases: tuple[Phase, ...] = PHASES
    with _Unguarded(program, local_walks(program, make_party=recorder)) as session:
        session.load(program, model)
        for part, _ in batches(inputs, program, total):
            for side in clear.values():
                side.set_inputs(part)
            right, outputs = reference(captured, state, cast(Sequence[torch.Tensor], part), found.wanted)
            results = session.run(*part)
            secure = _opened(program.graph, recorders)
            for phase in phases:
                found.note_walk(fixed.walk(phase), right, secure)
            phases = ("run",)
            found.note_outputs(outputs, results if isinstance(results, tuple) else (results,))
    return Comparison(found.rows(), header.tuned.tables if header.tuned else 0)


def model_in_the_clear(program: Program, model: torch.nn.Module | None, where: str, done: str) -> torch.nn.Module:
    """The model of a program whose values can be looked at in the clear: `model`, or its own.

    Raises InputError for programs of another protocol, of a training, with state or read from a file; `done` says what
    is not done with them.
    """
    checked(program, where)
    if program.protocol != "masked":
        what, why = f"programs of the protocol {program.protocol!r} cannot be {done}", "only the masked engine's can"
        raise InputError(explain(what, where=where, why=why, fix="compile the model without protocol="))
    if program.maker != Program.maker:
        what, fix = f"steps of a training are not {done}", "job.simulate(steps) shows fixed point beside float"
        raise InputError(explain(what, where=where, why="each depends on those before it", fix=fix))
    if any(node.op == "state" for node in program.graph.nodes):
        what, why = f"programs with state are not {done}", "a run depends on those before it"
        raise InputError(explain(what, where=where, why=why, fix="compile a model that takes the state as an input"))
    model = model or program.model
    if program.model_graph is None or model is None:
        why = "there is no float result to compare with"
        fix = "give the program that compile() returns"
        what = "this program was read from a file, and the file does not hold the model"
        raise InputError(explain(what, where=where, why=why, fix=fix))
    if not isinstance(model, torch.nn.Module):
        what, fix = f"model= is no model but {type(model).__name__}", "give the torch.nn.Module with the weights"
        raise InputError(explain(what, where=where, fix=fix))
    return model


# ---- what the parties held
class _Unguarded(Session):
    """A session whose runs have results where a guard says that a value left its range, too: here one looks which."""

    def _in_range(self, outputs: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        return outputs[: len(self.program.header.results)]


class _Recorded(OnlineParty):
    """A party that keeps its part of every value that the model has, too: for `compare` only."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.held: dict[int, torch.Tensor | Masked | None] = {}

    def _release(self, env: dict, node: Node, done: Sequence[int]) -> None:
        if _values(node):
            self.held[node.id] = env[node.id]
        super()._release(env, node, done)


def _opened(graph: Graph, parties: Sequence[_Recorded]) -> dict[int, torch.Tensor]:
    """The ring values that the parties hold together."""
    bits, out = _known_bits(graph), {}
    for node_id in parties[0].held:
        parts: list[Any] = [party.held[node_id] for party in parties]
        value = torch.zeros(graph[node_id].shape, dtype=torch.int64)
        if isinstance(parts[0], Masked):
            value = value + parts[0].m
            parts = [None if part.lam is None else -part.lam for part in parts]
        for part in parts:
            value = value if part is None else value + part
        unknown = 64 - bits[node_id]
        out[node_id] = (value << unknown) >> unknown
    return out


def _known_bits(graph: Graph) -> list[int]:
    """How many low bits of each value the parties have: fewer than 64 where no more are read."""
    known: list[int] = []
    for node in graph.nodes:
        kept = node.attrs.get("read", RING_BITS)
        if ROWS[node.op].reads is None:
            kept = min(kept, *(known[a] for a in node.args)) + shifted_bits(node)
        known.append(min(sent_bits(node), kept))
    return known


def _values(node: Node) -> list[Mark]:
    """The marks of a node that say which operator of the model computes it."""
    return [mark for mark in node.marks if mark.low is None]


# ---- what is found
@dataclass
class _Layer:
    """What was seen of one layer so far."""

    largest: float | None = None
    fixed: float | None = None
    secure: float | None = None
    limits: dict[tuple[str, float, float], tuple[float, float]] = field(default_factory=dict)

    def differ(self, right: torch.Tensor, fixed: torch.Tensor, secure: torch.Tensor) -> None:
        """Notes the drift of a value."""
        right, fixed, secure = (_flat(x) for x in (right, fixed, secure))
        known = right.abs() < _INFINITY
        self.largest = _larger(self.largest, right[known].abs())
        self.fixed = _larger(self.fixed, (fixed - right)[known].abs())
        self.secure = _larger(self.secure, (secure - fixed).abs())

    def stay(self, what: str, low: float, high: float, values: torch.Tensor) -> None:
        """Notes that values must stay in [low, high)."""
        if values.numel():
            smallest, largest = (x.item() for x in torch.aminmax(values))
            before = self.limits.get((what, low, high), (smallest, largest))
            self.limits[what, low, high] = min(smallest, before[0]), max(largest, before[1])

    def row(self, name: str) -> Row:
        """The layer's line: its nearest limit, or one that it left."""
        limits = [Limit(*key, *ends) for key, ends in self.limits.items()]
        nearest = min(limits, key=lambda limit: (not limit.outside, limit.headroom), default=None)
        return Row(name, self.largest, self.fixed, self.secure, nearest)


def _larger(before: float | None, values: torch.Tensor) -> float | None:
    return max(
        [*([] if before is None else [before]), *([values.max().item()] if values.numel() else [])], default=None
    )


class _Findings:
    """Collects what is seen, by layers."""

    def __init__(self, program: Program) -> None:
        self._graph = program.graph
        self._layers: defaultdict[str, _Layer] = defaultdict(_Layer)
        self._encoding = encoding_limit(program.header)
        self._names = layer_names(program.graph)
        self._order = [INPUTS, *_layers_of(cast(Captured, program.model_graph)), OUTPUTS]
        self._outputs: dict[int, torch.Tensor] = {}
        self.wanted = {mark.name for node in program.graph.nodes for mark in _values(node)}

    def note_walk(
        self,
        walk: Iterable[tuple[Node, Both, list[Both]]],
        right: Mapping[str, torch.Tensor],
        secure: Mapping[int, torch.Tensor],
    ) -> None:
        """One phase in fixed point."""
        for node, value, operands in walk:
            if node.op in ("input", "own"):
                seen = value.number * 2.0 ** -(node.frac or 0)
                self._layers[self._names[node.id]].stay("encoding", -self._encoding, self._encoding, seen)
            for within in ranges(self._graph, node, value, operands):
                moved = within.mark is None or only_moves(node)
                layer = self._names[within.at] if moved else layer_of(cast(Mark, within.mark).source)
                self._layers[layer].stay(within.what, within.low, within.high, within.values)
            for mark in _values(node):
                layer = self._names[node.id] if only_moves(node) else layer_of(mark.source)
                numbers = _real(value.ring, mark.frac), _real(secure[node.id], mark.frac)
                self._layers[layer].differ(right[mark.name], *numbers)
            if node.op == "reveal":
                self._outputs[node.attrs["index"]] = revealed(node, value.ring)

    def note_outputs(self, right: Sequence[torch.Tensor], secure: Sequence[torch.Tensor]) -> None:
        """What the model returns."""
        for index, (float_, made) in enumerate(zip(right, secure, strict=True)):
            self._layers[OUTPUTS].differ(float_, self._outputs[index], made)

    def rows(self) -> tuple[Row, ...]:
        """All layers in the order of the model."""
        names = dict.fromkeys([*self._order[:-1], *self._layers, OUTPUTS])
        return tuple(self._layers[name].row(name) for name in names if name in self._layers)


def _layers_of(captured: Captured) -> list[str]:
    names = (source_line(node) for node in captured.graph.nodes if node.op == "call_function")
    return list(dict.fromkeys(layer_of(name) for name in names))


def _flat(x: torch.Tensor) -> torch.Tensor:
    """All numbers of a tensor in float64; of complex ones, both parts."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x.detach().double().reshape(-1)


def _real(ring: torch.Tensor, frac: int) -> torch.Tensor:
    return ring.double() * 2.0**-frac
