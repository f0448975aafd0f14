"""A party's walk through a program before its inputs exist: mask shares, dealt shares, prepared products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from protocols.correlations import expand_share
from protocols.gates import GATES, HALVED, Dealt, Part
from protocols.prg import Stream
from securemodel.compiler.ir import PHASES, Graph, Node, Phase
from securemodel.compiler.positions import is_table
from securemodel.engines.masked.dealing import dealt_parts, last_uses
from securemodel.engines.masked.masks import DERIVED, Masks, has_mask, mask_of
from securemodel.engines.masked.tables import TableMasks


class Source(Protocol):
    """Where a party's shares of dealt values come from."""

    def dealt(self, epoch: int, node: int, parts: Sequence[Part]) -> Dealt: ...


@dataclass(frozen=True)
class StreamSource:
    """Every rank but the last: dealt shares are stream output."""

    stream: Stream

    def dealt(self, epoch: int, node: int, parts: Sequence[Part]) -> Dealt:
        return expand_share(self.stream, epoch, node, parts)


@dataclass(frozen=True, repr=False)
class LoadedOperand:
    """A masked value of the load phase: what later products need of it."""

    m: torch.Tensor
    lam: torch.Tensor | None
    share: torch.Tensor | None


Prepared = Mapping[str, torch.Tensor | None]
Item = tuple[int, Prepared]


class Preparing:
    """Prepares one party's runs, node by node in the program's order."""

    def __init__(self, graph: Graph, me: str, stream: Stream, source: Source) -> None:
        self._graph, self._me, self._stream, self.source = graph, me, stream, source
        self._done = {phase: last_uses(graph, phase) for phase in PHASES}
        self._parts = dealt_parts(graph)

    def run(
        self, epoch: int, phase: Phase, loaded: dict[int, LoadedOperand], step: int = 0
    ) -> Iterator[tuple[int, Prepared]]:
        """(node id, what was prepared for it), for each node that has something to prepare. `step` says which rows are read.

        Inputs and positions are left out: their masks are made when they are shared, so that sharing waits for nothing.
        """
        lams: Masks = {i: value.lam for i, value in loaded.items()}
        for node in self._graph.nodes:
            if node.phase != phase:
                continue
            if node.op in GATES:
                yield node.id, self._gate(node, lams, epoch, loaded)
            elif node.form != "order" and has_mask(node) and not is_table(self._graph, node):
                lams[node.id] = mask_of(self._graph, node, lams, {self._me: self._stream}, epoch, TableMasks(step=step))
                if node.op != "input":
                    yield node.id, {"lam": lams[node.id]}
            for value in self._done[phase].get(node.id, ()):
                lams.pop(value, None)

    def masks(self, epoch: int, wanted: frozenset[int], loaded: dict[int, LoadedOperand]) -> Masks:
        """This party's shares of the masks of some values of a run, None for zero."""
        lams: Masks = {i: value.lam for i, value in loaded.items()}
        needed = set(wanted)
        for node in reversed(self._graph.nodes):
            if node.id in needed and node.op in DERIVED:
                needed.update(node.args)
        for node in self._graph.nodes:
            if node.id in needed and node.phase == "run":
                lams[node.id] = mask_of(self._graph, node, lams, {self._me: self._stream}, epoch)
        return {i: lams[i] for i in wanted}

    def _gate(self, node: Node, lams: Masks, epoch: int, loaded: dict[int, LoadedOperand]) -> Prepared:
        came = self.source.dealt(epoch, node.id, self._parts[node.id])
        dealt = {name: share.to(self._stream.device) for name, share in came.items()}
        if (halved := HALVED.get(node.op)) and node.args[1] in loaded:
            halved.prepare(node.attrs, lams[node.args[0]], loaded[node.args[1]].m, dealt)
        return dealt
