"""The dealer's walk through a program: it knows masks and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from protocols.correlations import dealt_places, full_mask, hidden_order, packed, taken_places
from protocols.gates import GATES, REMASKED, SIGNED, Part, ready_attrs
from protocols.prg import Draws, Place, Stream
from securemodel.compiler.ir import PHASES, Graph, Node, Phase
from securemodel.compiler.positions import is_table
from securemodel.engines.masked.masks import DERIVED, FRESH, Derive, Masks, known_factors, portions
from securemodel.engines.masked.tables import TABLE_EPOCH, TableMasks, table_streams


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


ALL = ""
"""In the place of a party's name: that of nobody."""


def masks_needed(graph: Graph, known: Mapping[int, str]) -> dict[int, frozenset[str]]:
    """By value, whose shares are left out of the masks of it that are read: one party's, or ALL for nobody's.

    `known`: products by the party that knows their second operand, to which the mask of the first is dealt without its
    share.
    """
    needed: dict[int, frozenset[str]] = {node.id: frozenset() for node in graph.nodes}
    for node in reversed(graph.nodes):
        for index, a in enumerate(node.args):
            if node.op in GATES:
                needed[a] |= {known.get(node.id, ALL) if index == 0 else ALL}
            elif node.op in DERIVED:
                needed[a] |= needed[node.id]
    return needed


Dealt = list[tuple[int, list[torch.Tensor]]]
"""For some gates the last party's shares of what is dealt, by node, as they are sent."""


@dataclass(frozen=True)
class _Portion:
    """What the dealer does for some nodes of a phase: draws of all streams, then node by node, then corrections.

    `draws`: by stream, places and which of the tensors to make they are combined into. `masks`, `first`: which of these are
    masks of nodes, of all parties or without a share, and the first party's shares of what is dealt for gates with a sign.
    `steps`: by node, what makes its masks, or None for a gate, and the masks that nobody reads after it. `corrections`: by
    stream of all ranks but the last. `parts`: what is dealt for the gates.
    """

    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    draws: tuple[tuple[Stream, Draws, tuple[int, ...]], ...]
    masks: tuple[tuple[str, int, int], ...]
    first: tuple[tuple[Node, tuple[int, ...]], ...]
    steps: tuple[tuple[Node, Derive | None, list[int]], ...]
    corrections: tuple[tuple[Stream, Draws], ...]
    parts: tuple[Part, ...]


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
        self._device = self._ranks[0].device
        self._tables = tables or table_streams(graph, parties, lambda name, owner: self._streams[name])
        self._nothing = torch.zeros((), dtype=torch.int64, device=self._device)
        self._step_of_epoch = 0
        self._loaded: Masks = {}
        self._known = known_factors(graph, parties)
        self._needed = masks_needed(graph, self._known)
        self._parts = dealt_parts(graph)
        self._attrs = {n.id: ready_attrs(n.attrs, self._device) for n in graph.nodes if n.op in GATES}
        self._flat = {phase: [self._portion(nodes, phase) for nodes in portions(graph, phase)] for phase in PHASES}

    def deal(self, epoch: int, phase: Phase, first: int = 0) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """For each gate of a phase: (node id, the last party's shares of what is dealt).

        `first`: in a load, the step that the run of the next epoch makes, and so on.
        """
        return chain.from_iterable(self.by_portion(epoch, phase, first))

    def by_portion(self, epoch: int, phase: Phase, first: int = 0) -> Iterator[Dealt]:
        """What `deal` makes, as it is made: several gates at a time."""
        if phase == "load":
            self._step_of_epoch = first - epoch - 1
        tables = TableMasks(self._tables, self._step_of_epoch + epoch)
        masks: dict[str, Masks] = {without: {} for without in (ALL, *self._known.values())}
        if phase == "run":
            masks[ALL].update(self._loaded)
        for portion in self._flat[phase]:
            yield self._dealt(portion, masks, epoch, tables)
        if phase == "load":
            self._loaded = masks[ALL]

    def loads_like(self, other: Dealing) -> None:
        """Takes the masks of the last load from the dealing of a program with the same load."""
        self._loaded = other._loaded

    def _portion(self, nodes: Sequence[Node], phase: Phase) -> _Portion:
        done = {} if phase == "load" else last_uses(self._graph, phase)
        shapes: list[tuple[tuple[int, ...], torch.dtype]] = []
        drawn: dict[Stream, list[tuple[Place, int]]] = {stream: [] for stream in self._ranks}
        masks, first = [], []
        for node in nodes:
            if (fresh := FRESH.get(node.op)) and fresh.use is not None and not is_table(self._graph, node):
                for without in self._read(node):
                    own = [s for name, s in self._streams.items() if name != without and fresh.mine(node, name)]
                    for at, stream in enumerate(own):
                        drawn[stream].append((fresh.place(node, fresh.together if at else "set"), len(shapes)))
                    if own:
                        masks.append((without, node.id, len(shapes)))
                        shapes.append((node.shape, torch.int64))
            elif node.op in SIGNED:
                parts = dealt_places(node.id, self._parts[node.id])
                drawn[self._ranks[0]] += [(place, len(shapes) + at) for at, place in enumerate(parts)]
                first.append((node, tuple(range(len(shapes), len(shapes) + len(parts)))))
                shapes += [(part.shape, part.dtype) for part in self._parts[node.id]]
        fixed = [place for node in nodes if node.op in GATES for place in taken_places(node.id, self._parts[node.id])]
        return _Portion(
            tuple(shapes),
            tuple(
                (s, Draws([place for place, _ in here]), tuple(i for _, i in here)) for s, here in drawn.items() if here
            ),
            tuple(masks),
            tuple(first),
            tuple((node, self._mask_maker(node), done.get(node.id, [])) for node in nodes),
            tuple((stream, Draws(fixed)) for stream in self._ranks[:-1]) if fixed else (),
            tuple(part for node in nodes if node.op in GATES for part in self._parts[node.id]),
        )

    def _read(self, node: Node) -> list[str]:
        """Whose shares are left out of the masks of a value that are made: what is loaded has all of its own."""
        return [ALL] if node.phase == "load" else sorted(self._needed[node.id])

    def _mask_maker(self, node: Node) -> Derive | None:
        """What makes a mask that is not drawn with those of its portion; of what is drawn, nothing."""
        if node.op in GATES:
            return None
        if is_table(self._graph, node):
            return lambda masks, tables: full_mask(tables.streams[str(node.owner)], TABLE_EPOCH, node.id, node.shape)
        if node.op in DERIVED:
            return DERIVED[node.op](self._graph, node, self._device)
        return lambda masks, tables: masks.get(node.id)

    def _dealt(self, portion: _Portion, masks: dict[str, Masks], epoch: int, tables: TableMasks) -> Dealt:
        device = self._device
        made = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in portion.shapes]
        for stream, draws, into in portion.draws:
            draws.fill(stream, epoch, [made[i] for i in into])
        for without, node_id, i in portion.masks:
            masks[without][node_id] = made[i]
        first = {node.id: [made[i] for i in into] for node, into in portion.first}
        dealt: Dealt = []
        for node, derive, done in portion.steps:
            if derive is None:
                dealt.append((node.id, self._gate(node, masks, first.get(node.id, []))))
            elif FRESH.get(node.op) and FRESH[node.op].use is None:
                order = hidden_order(self._streams[str(node.owner)], epoch, node.id, node.attrs["size"])
                masks[ALL][node.id] = order
            else:
                for without in self._read(node):
                    masks[without][node.id] = derive(masks[without], tables)
            for value in done:
                for each in masks.values():
                    each.pop(value, None)
        values = [value for _, shares in dealt for value in shares]
        for stream, draws in portion.corrections:
            draws.fill(stream, epoch, values)
        sent = iter(packed(values, portion.parts))
        return [(node, [next(sent) for _ in shares]) for node, shares in dealt]

    def _gate(self, node: Node, masks: dict[str, Masks], first: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What is dealt for a gate; `first`, where it has a sign, are the first party's shares of that."""
        without = (self._known.get(node.id, ALL), *(ALL for _ in node.args[1:]))
        found = [masks[each].get(a) for each, a in zip(without, node.args, strict=True)]
        operands = [self._present(a) if mask is None else mask for mask, a in zip(found, node.args, strict=True)]
        attrs, parts = self._attrs[node.id], self._parts[node.id]
        if signed := SIGNED.get(node.op):
            named = {part.name: share for part, share in zip(parts, first, strict=True)}
            masks[ALL][node.id] = signed.sign(attrs, operands, named)
        dealt = GATES[node.op].deal(attrs, operands)
        if node.op in REMASKED:
            (mask,) = dealt.values()
            masks[ALL][node.id] = mask.clone()  # what is dealt is corrected in place
        return [dealt[part.name].contiguous() for part in parts]

    def _present(self, value: int) -> torch.Tensor:
        """The mask of a value that has none: zero, where the value is public. Of shares of bits nobody reads it."""
        if (node := self._graph[value]).form == "bits":
            return self._nothing
        return torch.zeros(node.shape, dtype=torch.int64, device=self._device)


class FamilyDealing:
    """Deals for programs that share one load, as for the sizes of a family; a session of one program is a family of one."""

    def __init__(self, each: Sequence[Dealing]) -> None:
        self._each = each

    def __len__(self) -> int:
        return len(self._each)

    def deal(self, epoch: int, phase: Phase, first: int = 0) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """As of one program; `first`: of a run, which of the programs it is of."""
        return chain.from_iterable(self.by_portion(epoch, phase, first))

    def by_portion(self, epoch: int, phase: Phase, first: int = 0) -> Iterator[Dealt]:
        """What `deal` makes, as it is made: several gates at a time."""
        if phase == "run":
            yield from self._each[first].by_portion(epoch, phase)
            return
        yield from self._each[0].by_portion(epoch, phase, first)
        for other in self._each[1:]:
            other.loads_like(self._each[0])
