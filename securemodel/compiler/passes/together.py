"""Makes comparisons that are ready at the same time together: one opening a layer for all of them.

A comparison is a chain: digits, then an opening and a `combine` a layer, then (for signs) the exclusive or with the top
bits, and a last opening. Chains of one source line and depth that have as many layers become one chain over all their
values; `part` takes each value's bits from an opening. What is saved is what a node costs, which only few elements feel; of many,
those are made together that compare one value with several numbers: its mask's digits are dealt once for all of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from protocols.gates.sign import digit_count, groups, layer_of, leaf_planes, opened_planes
from securemodel.compiler.ir import Graph, Node
from securemodel.compiler.ops import mask_origin
from securemodel.compiler.passes.schedule import depths

_FEW = 1 << 16


@dataclass(frozen=True)
class _Chain:
    """A comparison: ids of its nodes. Each layer is (opening, combine); `sign` is (top bits, exclusive or) or empty."""

    digits: int
    layers: tuple[tuple[int, int], ...]
    sign: tuple[int, ...]
    opened: int


def _chain(graph: Graph, users: list[list[int]], digits: int) -> _Chain | None:
    """The comparison that begins at a node; None where it is read in the middle."""
    at = digits
    layers: list[tuple[int, int]] = []
    while len(openings := [u for u in users[at] if graph[u].op == "mask_bits"]) == 1:
        (opened,) = openings
        following = [u for u in users[opened] if graph[u].op == "combine"]
        if users[at] != [opened, *following]:
            return None
        if not following:
            return _Chain(digits, tuple(layers), (), opened)
        layers.append((opened, following[0]))
        at = following[0]
    if len(users[at]) != 1 or graph[users[at][0]].op != "xor":
        return None
    xor = users[at][0]
    top = next(a for a in graph[xor].args if a != at)
    if graph[top].op != "top_bit" or len(users[xor]) != 1:
        return None
    return _Chain(digits, tuple(layers), (top, xor), users[xor][0])


def _alike(graph: Graph, users: list[list[int]], depth: list[int], chain: _Chain) -> tuple | None:
    """What chains that can be made together have in common.

    Digits from which a carry is taken stay where they are.
    """
    node = graph[chain.digits]
    large = node.shape[1] * 64 > _FEW
    apart = [graph[c].attrs for _, c in chain.layers]
    carried = any(graph[u].op == "part" for opened, _ in chain.layers for u in users[opened])
    carried = carried or any("apart" in attrs for attrs in apart)
    fixed = (node.attrs["low_bits"], node.attrs["shift"]) if carried or large else ()
    count = -(-digit_count(node.attrs["low_bits"]) // 4)
    layers = len(chain.layers), bool(chain.sign), json.dumps([fixed, apart if fixed else []])
    whose = mask_origin(graph, node.args[0]) if large else node.source  # of many, those whose digits are dealt once
    return depth[node.id], node.phase, whose, count, *layers


class _Together:
    """Writes the graph anew, operands first, with chains that belong together as one."""

    def __init__(self, graph: Graph, companies: list[list[_Chain]]) -> None:
        self.old, self.new = graph, Graph()
        self.ids: dict[int, int] = {}
        self.company = {chain.opened: chains for chains in companies for chain in chains}
        self.within: dict[int, tuple[int, int]] = {}  # an opening of a chain: (opening of all, first word)
        self.inside = {m: c.opened for chains in companies for c in chains for m, _ in c.layers}

    def needs(self, node: Node) -> tuple[int, ...]:
        """What must be there before a node is written; for an opening of a chain, what all its company reads."""
        opened = self.inside.get(node.id, node.id)
        if opened in self.company:
            return tuple(a for chain in self.company[opened] for a in self.old[chain.digits].args)
        return node.args

    def write(self, node: Node) -> None:
        """Writes a node whose needs are there."""
        opened = self.inside.get(node.id, node.id)
        if opened in self.company:
            if opened not in self.within:
                self._chains(self.company[opened])
            if node.id == opened:
                self.ids[node.id] = self._part(node, 0)
            return
        if node.op == "part" and node.args[0] in self.within:
            self.ids[node.id] = self._part(self.old[node.args[0]], node.attrs["row"], node)
            return
        self.ids[node.id] = self.new.again(node, [self.ids[a] for a in node.args]).id

    def _part(self, opened: Node, row: int, like: Node | None = None) -> int:
        whole, start = self.within[opened.id]
        shape = (1, (like or opened).shape[1])
        attrs = {"row": row, "start": start}
        return self._add(opened, "part", [whole], "masked_bits", shape, attrs)

    def _add(self, like: Node, op: str, args: list[int], form: str, shape: tuple[int, ...], attrs: dict) -> int:
        return self.new.add(op, args, shape, form, attrs=attrs, phase=like.phase, source=like.source).id

    def _chains(self, chains: list[_Chain]) -> None:
        old, like = self.old, self.old[chains[0].digits]
        low_bits = max(old[c.digits].attrs["low_bits"] for c in chains)
        parts = [old[c.digits] for c in chains]
        shifts = [n.attrs["shift"][0] + n.attrs["low_bits"] - low_bits for n in parts]
        offsets = [n.attrs["offset"][0] for n in parts]
        starts = [0]
        for n in parts:
            starts.append(starts[-1] + n.shape[1])
        values, count, digits = [self.ids[n.args[0]] for n in parts], starts[-1], digit_count(low_bits)
        window: dict[str, Any] = {"low_bits": low_bits, "shift": shifts, "offset": offsets}
        seen_from = list(zip((mask_origin(old, n.args[0]) for n in parts), shifts, strict=True))
        of = [seen_from.index(mine) for mine in seen_from]
        if len(set(of)) < len(of):
            window["of"] = of
        bits = self._add(like, "digits", values, "bits", (leaf_planes(digits), count), window)
        for openings in zip(*(c.layers for c in chains), strict=True):
            attrs = {**old[openings[0][1]].attrs, "digits": digits}
            opened = self._open(like, bits, [m for m, _ in openings], starts, attrs)
            digits = len(groups(*layer_of(attrs)))
            bits = self._add(like, "combine", [opened, bits], "bits", (leaf_planes(digits), count), attrs)
        if chains[0].sign:
            tops = [old[c.sign[0]].attrs for c in chains]
            seen = {"bit": [t["bit"][0] for t in tops], "offset": [t["offset"][0] for t in tops]}
            top = self._add(like, "top_bit", values, "bits", (1, count), seen)
            bits = self._add(like, "xor", [bits, top], "bits", (1, count), {})
        self._open(like, bits, [c.opened for c in chains], starts)

    def _open(
        self, like: Node, bits: int, openings: list[int], starts: list[int], layer: dict[str, Any] | None = None
    ) -> int:
        planes, count = self.new[bits].shape
        planes = len(opened_planes(*layer_of(layer))) if layer else planes
        opened = self._add(like, "mask_bits", [bits], "masked_bits", (planes, count), layer or {})
        self.within.update({m: (opened, start) for m, start in zip(openings, starts, strict=False)})
        return opened


def compare_together(graph: Graph) -> Graph:
    """The graph with comparisons that are ready at the same time made together."""
    users, depth = graph.users(), depths(graph)
    alike: dict[tuple, list[_Chain]] = {}
    for node in graph.nodes:
        chain = _chain(graph, users, node.id) if node.op == "digits" else None
        key = _alike(graph, users, depth, chain) if chain else None
        if chain and key is not None:
            alike.setdefault(key, []).append(chain)
    companies = [chains for chains in alike.values() if len(chains) > 1]
    if not companies:
        return graph
    together, done = _Together(graph, companies), set()
    skipped = {i for chains in companies for c in chains for i in (c.digits, *(x for _, x in c.layers), *c.sign)}
    for node in graph.nodes:
        stack = [] if node.id in skipped else [node.id]
        while stack:
            at = graph[stack[-1]]
            waiting = [a for a in together.needs(at) if a not in done]
            if at.id not in done and waiting:
                stack += waiting
                continue
            stack.pop()
            if at.id not in done:
                together.write(at)
                done.add(at.id)
    return together.new
