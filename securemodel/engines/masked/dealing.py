"""The dealer's walk through a program: it knows masks and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from protocols import linear
from protocols.correlations import corrections, expand_share, full_bit_mask, full_mask
from protocols.gates import GATES
from protocols.gates.lookup import Lookup
from protocols.prg import Stream
from protocols.shares import part_of_bits
from securemodel.compiler.ir import PHASES, Graph, Node, Phase


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


class Dealing:
    """Makes the correlations of a program for parties whose streams it shares, in the program's order."""

    def __init__(self, graph: Graph, parties: Sequence[str], streams: dict[str, Stream]) -> None:
        self._graph = graph
        self._parties = tuple(parties)
        self._streams = [streams[name] for name in parties]
        self._loaded: dict[int, torch.Tensor | None] = {}
        self._done = {phase: last_uses(graph, phase) for phase in PHASES}

    def deal(self, epoch: int, phase: Phase) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """For each gate of a phase: (node id, the last party's shares of what is dealt)."""
        masks: dict[int, torch.Tensor | None] = {} if phase == "load" else dict(self._loaded)
        for node in self._graph.nodes:
            if node.phase != phase:
                continue
            if node.op in GATES:
                yield node.id, self._gate(node, masks, epoch)
            else:
                mask = self._mask(node, masks, epoch)
                if mask is not None:
                    masks[node.id] = mask
            for value in () if phase == "load" else self._done[phase].get(node.id, ()):
                masks.pop(value, None)
        if phase == "load":
            self._loaded = masks

    def _mask(self, node: Node, masks: dict, epoch: int) -> torch.Tensor | None:
        if node.op == "mask":
            return full_mask(self._streams, epoch, node.id, node.shape)
        if node.op == "input":
            return full_mask([self._streams[self._parties.index(node.owner)]], epoch, node.id, node.shape)
        if node.op == "mask_bits":
            return full_bit_mask(self._streams, epoch, node.id, node.shape)
        if node.op == "xor" and node.form == "masked_bits":
            return masks[node.args[0]] ^ masks[node.args[1]]
        if node.op == "part":
            return part_of_bits(masks[node.args[0]], node.attrs, node.shape)
        if node.op == "linear" and node.form == "masked":
            shapes = [self._graph[a].shape for a in node.args]
            operands = [masks.get(a) for a in node.args]
            return linear.apply(node.attrs["kind"], operands, node.attrs["attrs"], shapes, node.shape)
        return None

    def _gate(self, node: Node, masks: dict, epoch: int) -> list[torch.Tensor]:
        gate = GATES[node.op]
        shapes = [self._graph[a].shape for a in node.args]
        operands = [self._present(masks.get(a), s) for a, s in zip(node.args, shapes, strict=True)]
        parts = gate.parts(node.attrs, shapes, node.shape)
        if isinstance(gate, Lookup):
            first = expand_share(self._streams[0], epoch, node.id, parts)
            masks[node.id] = gate.mask_of_result(node.attrs, operands, first)
        return corrections(self._streams[:-1], epoch, node.id, parts, gate.deal(node.attrs, operands))

    def _present(self, mask: torch.Tensor | None, shape: Sequence[int]) -> torch.Tensor:
        """A mask of None is zero: the value is public."""
        if mask is not None:
            return mask
        return torch.zeros(tuple(shape), dtype=torch.int64, device=self._streams[0].device)
