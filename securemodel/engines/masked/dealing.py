"""The dealer's walk through a program: it knows masks and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from protocols.correlations import corrections, expand_share
from protocols.gates import GATES, SIGNED, Part
from protocols.prg import Stream
from securemodel.compiler.ir import PHASES, Graph, Node, Phase
from securemodel.engines.masked.masks import Masks, has_mask, mask_of
from securemodel.engines.masked.tables import TableMasks, table_streams


def last_uses(graph: Graph, phase: Phase) -> dict[int, list[int]]:
    """For each node of a phase, the values that nobody of the phase reads after it."""
    last: dict[int, int] = {}
    for node in graph.nodes:
        if node.phase == phase:
            last[node.id] = node.id
            last.update({a: node.id for a in node.args if graph[a].phase == phase})
    done: dict[int, list[int]] = {}
    for value, user in last.items():
        done.setdefault(user, []).append(value)
    return done


def dealt_parts(graph: Graph) -> dict[int, tuple[Part, ...]]:
    """By gate, what is dealt for it."""
    gates = (node for node in graph.nodes if node.op in GATES)
    return {n.id: GATES[n.op].parts(n.attrs, [graph[a].shape for a in n.args], n.shape) for n in gates}


class Dealing:
    """Makes the correlations of a program for parties whose streams it shares, in the program's order.

    `tables`: the streams of the masks of rows that are shared once, by owner; by default the owner's, and of an owner who
    left those of all parties.
    """

    def __init__(
        self,
        graph: Graph,
        parties: Sequence[str],
        streams: dict[str, Stream],
        tables: Mapping[str, Sequence[Stream]] | None = None,
    ) -> None:
        self._graph = graph
        self._streams = {name: streams[name] for name in parties}
        self._ranks = list(self._streams.values())
        self._tables = tables or table_streams(graph, parties, lambda name, owner: self._streams[name])
        self._step_of_epoch = 0
        self._loaded: Masks = {}
        self._done = {phase: last_uses(graph, phase) for phase in PHASES}
        self._parts = dealt_parts(graph)

    def deal(self, epoch: int, phase: Phase, first: int = 0) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """For each gate of a phase: (node id, the last party's shares of what is dealt).

        `first`: in a load, the step that the run of the next epoch makes, and so on.
        """
        if phase == "load":
            self._step_of_epoch = first - epoch - 1
        tables = TableMasks(self._tables, self._step_of_epoch + epoch)
        masks: Masks = {} if phase == "load" else dict(self._loaded)
        for node in self._graph.nodes:
            if node.phase != phase:
                continue
            if node.op in GATES:
                yield node.id, self._gate(node, masks, epoch)
            elif has_mask(node):
                masks[node.id] = mask_of(self._graph, node, masks, self._streams, epoch, tables)
            for value in () if phase == "load" else self._done[phase].get(node.id, ()):
                masks.pop(value, None)
        if phase == "load":
            self._loaded = masks

    def loads_like(self, other: Dealing) -> None:
        """Takes the masks of the last load from the dealing of a program with the same load."""
        self._loaded = other._loaded

    def _gate(self, node: Node, masks: Masks, epoch: int) -> list[torch.Tensor]:
        operands = [self._present(masks.get(a), self._graph[a]) for a in node.args]
        parts = self._parts[node.id]
        if signed := SIGNED.get(node.op):
            first = expand_share(self._ranks[0], epoch, node.id, parts)
            masks[node.id] = signed.sign(node.attrs, operands, first)
        return corrections(self._ranks[:-1], epoch, node.id, parts, GATES[node.op].deal(node.attrs, operands))

    def _present(self, mask: torch.Tensor | None, node: Node) -> torch.Tensor:
        """A mask of None is zero: the value is public. Shares of bits have none, and nobody reads it."""
        if mask is not None:
            return mask
        shape = () if node.form == "bits" else tuple(node.shape)
        return torch.zeros(shape, dtype=torch.int64, device=self._ranks[0].device)


class FamilyDealing:
    """Deals for programs that share one load, as for the sizes of a family; a session of one program is a family of one."""

    def __init__(self, each: Sequence[Dealing]) -> None:
        self._each = each

    def __len__(self) -> int:
        return len(self._each)

    def deal(self, epoch: int, phase: Phase, first: int = 0) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """As of one program; `first`: of a run, which of the programs it is of."""
        if phase == "run":
            yield from self._each[first].deal(epoch, phase)
            return
        yield from self._each[0].deal(epoch, phase, first)
        for other in self._each[1:]:
            other.loads_like(self._each[0])
