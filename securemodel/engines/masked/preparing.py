"""A party's walk through a program before its inputs exist: mask shares, dealt shares, prepared products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import torch

from protocols.correlations import dealt_places
from protocols.gates import GATES, HALVED, REMASKED, Dealt, Part
from protocols.prg import Draws, Place, Stream
from securemodel.compiler.ir import PHASES, Graph, Node, Phase
from securemodel.compiler.positions import is_table
from securemodel.engines.masked.dealing import dealt_parts, last_uses
from securemodel.engines.masked.masks import DERIVED, FRESH, Masks, known_factors, portions
from securemodel.engines.masked.tables import NO_TABLES, TableMasks


class Source(Protocol):
    """Where the last party's shares of dealt values come from, on the device that it computes on; those of every other rank
    are stream output."""

    def dealt(self, epoch: int, wanted: Sequence[tuple[int, Sequence[Part]]], device: torch.device) -> list[Dealt]: ...


@dataclass(frozen=True, repr=False)
class LoadedOperand:
    """A masked value of the load phase: what later products need of it."""

    m: torch.Tensor
    lam: torch.Tensor | None
    share: torch.Tensor | None

    @cached_property
    def value(self) -> torch.Tensor:
        """The value itself, at the party that alone masks it."""
        return self.m if self.lam is None else self.m - self.lam


Prepared = Mapping[str, torch.Tensor | None]
Item = tuple[int, Prepared]


@dataclass(repr=False)
class _Run:
    """What there is of a run while it is prepared: masks, and what is dealt for gates of the portion."""

    epoch: int
    loaded: Mapping[int, LoadedOperand]
    tables: TableMasks
    lams: Masks
    dealt: dict[int, Dealt]


_Make = Callable[[_Run], Prepared | None]


@dataclass(frozen=True)
class _Portion:
    """Some nodes of a phase. `drawn`: what the draws are, masks of nodes or (with names) what is dealt for a gate. `wanted`:
    of the last party, the gates and what is dealt for them. `steps`: by node, what prepares it, and the masks that nobody
    reads after it."""

    draws: Draws
    wanted: tuple[tuple[int, tuple[Part, ...]], ...]
    drawn: tuple[tuple[int, tuple[str, ...]], ...]
    steps: tuple[tuple[int, _Make, list[int]], ...]


class Preparing:
    """Prepares one party's runs, node by node in the program's order. `source`: of the last party; None for all others."""

    def __init__(
        self, graph: Graph, parties: Sequence[str], me: str, stream: Stream, source: Source | None = None
    ) -> None:
        self._graph, self._me, self._stream, self.source = graph, me, stream, source
        self._parts, self._known = dealt_parts(graph), known_factors(graph, parties)
        self._flat = {phase: [self._portion(nodes, phase) for nodes in portions(graph, phase)] for phase in PHASES}

    def run(
        self, epoch: int, phase: Phase, loaded: Mapping[int, LoadedOperand], step: int = 0
    ) -> Iterator[tuple[int, Prepared]]:
        """(node id, what was prepared for it), for each node that has something to prepare. `step` says which rows are read.

        Inputs and positions are left out: their masks are made when they are shared, so that sharing waits for nothing.
        """
        lams: Masks = {i: value.lam for i, value in loaded.items()}
        run = _Run(epoch, loaded, TableMasks(step=step), lams, {})
        for portion in self._flat[phase]:
            drawn = iter(portion.draws.draw(self._stream, epoch))
            for node, names in portion.drawn:
                if names:
                    run.dealt[node] = {name: next(drawn) for name in names}
                else:
                    lams[node] = next(drawn)
            if portion.wanted:
                self._receive(portion.wanted, run)
            for node, make, done in portion.steps:
                prepared = make(run)
                for value in done:
                    lams.pop(value, None)
                if prepared is not None:
                    yield node, prepared

    def masks(self, epoch: int, wanted: frozenset[int], loaded: Mapping[int, LoadedOperand]) -> Masks:
        """This party's shares of the masks of some values of a run, None for zero."""
        lams: Masks = {i: value.lam for i, value in loaded.items()}
        needed = set(wanted)
        for node in reversed(self._graph.nodes):
            if node.id in needed and node.op in DERIVED:
                needed.update(node.args)
        for node in self._graph.nodes:
            if node.id not in needed or node.phase != "run":
                continue
            if node.op in DERIVED:
                lams[node.id] = DERIVED[node.op](self._graph, node, self._stream.device)(lams, NO_TABLES)
            else:
                places = self._places(node)
                lams[node.id] = Draws(places).draw(self._stream, epoch)[0] if places else None
        return {i: lams[i] for i in wanted}

    def _receive(self, wanted: Sequence[tuple[int, Sequence[Part]]], run: _Run) -> None:
        """The last party's shares of what is dealt for a portion."""
        given = cast(Source, self.source).dealt(run.epoch, wanted, self._stream.device)
        run.dealt.update(zip((node for node, _ in wanted), given, strict=True))

    # ---- made once
    def _places(self, node: Node) -> list[Place]:
        """What of this party's stream a node takes: its part of a fresh mask, or what is dealt for a gate."""
        if node.op in GATES:
            return dealt_places(node.id, self._parts[node.id]) if self.source is None else []
        fresh = FRESH.get(node.op)
        drawn = fresh and fresh.use is not None and fresh.mine(node, self._me) and not is_table(self._graph, node)
        return [fresh.place(node)] if fresh and drawn else []

    def _portion(self, nodes: Sequence[Node], phase: Phase) -> _Portion:
        done = last_uses(self._graph, phase)
        places = {node: self._places(self._graph[node]) for node in (n.id for n in nodes)}
        names = {i: tuple(p.name for p in self._parts[i]) if i in self._parts else () for i in places}
        return _Portion(
            Draws([place for here in places.values() for place in here]),
            tuple((node.id, self._parts[node.id]) for node in nodes if self.source and node.op in GATES),
            tuple((node, names[node]) for node, here in places.items() if here),
            tuple((node.id, self._make(node), done.get(node.id, [])) for node in nodes),
        )

    def _make(self, node: Node) -> _Make:
        """What prepares a node whose portion is drawn."""
        i = node.id
        if node.op in GATES:
            return self._gate_maker(node)
        if node.form in ("order", "window") or is_table(self._graph, node):
            return lambda run: None
        if node.op in DERIVED:
            derive = DERIVED[node.op](self._graph, node, self._stream.device)

            def make(run: _Run) -> Prepared:
                lam = run.lams[i] = derive(run.lams, run.tables)
                return {"lam": lam}

            return make
        if not self._places(node):
            run_zero = lambda run: run.lams.setdefault(i, None)
            return run_zero if node.op == "input" else lambda run: {"lam": run_zero(run)}
        return (lambda run: None) if node.op == "input" else lambda run: {"lam": run.lams[i]}

    def _gate_maker(self, node: Node) -> _Make:
        i = node.id
        take = lambda run: run.dealt.pop(i)
        if node.op in REMASKED:
            return lambda run: self._masked(i, take(run), run)
        return (lambda run: self._half(node, take(run), run)) if node.op in HALVED else take

    def _masked(self, i: int, dealt: Dealt, run: _Run) -> Dealt:
        """What is dealt for a gate whose result is masked by it."""
        (run.lams[i],) = dealt.values()
        return dealt

    def _half(self, node: Node, dealt: Dealt, run: _Run) -> Dealt:
        """What is dealt for a product, with the half that needs no input where the second operand is loaded. Who knows that
        operand has no such half."""
        if node.args[1] in run.loaded and self._known.get(node.id) != self._me:
            HALVED[node.op].prepare(node.attrs, run.lams[node.args[0]], run.loaded[node.args[1]].m, dealt)
        return dealt
