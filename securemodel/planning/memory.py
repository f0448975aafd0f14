"""How much memory a party needs for the ring tensors of a run, simulated over the schedule from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.gates import HALVED, numel
from securemodel.compiler.ir import Graph, Node
from securemodel.compiler.ops import ROWS
from securemodel.compiler.positions import is_table
from securemodel.compiler.wire import steps
from securemodel.planning.work import ELEMENT_BYTES, VIEWS, gate_bytes, gate_memory, held, mask_bytes, value_bytes

Parts = list[tuple[object, int]]
"""A value as the storages it is made of: (key, bytes)."""


class _Storages:
    """Counts bytes of values that may share storage with others."""

    def __init__(self) -> None:
        self.live = 0
        self._parts: dict[int, Parts] = {}
        self._users: dict[object, int] = {}

    def put(self, value: int, parts: Parts) -> None:
        """A value made of (storage, bytes) parts; storages already known cost nothing more."""
        self._parts[value] = parts
        for key, nbytes in parts:
            self._users[key] = self._users.get(key, 0) + 1
            self.live += nbytes if self._users[key] == 1 else 0

    def of(self, value: int) -> Parts:
        """The storages of a value that is live, or nothing."""
        return self._parts.get(value, [])

    def drop(self, value: int) -> None:
        """Forgets a value, and storages nobody else uses."""
        for key, nbytes in self._parts.pop(value, ()):
            self._users[key] -= 1
            self.live -= nbytes if self._users[key] == 0 else 0


def peak_bytes(graph: Graph, parties: Sequence[str], me: str, ahead_bytes: int) -> int:
    """Most bytes of ring tensors that `me` holds at once during a run, the loaded weights included.

    `ahead_bytes` bounds what is prepared before it is needed. Float values (the model and the inputs in the
    clear), messages on their way and what a kernel needs while it works are not counted.
    """
    have, first = held(graph, parties, me), parties[0] == me
    storages, contiguous = _Storages(), [True] * len(graph.nodes)
    for node in graph.nodes:
        if node.phase == "load":
            storages.put(node.id, _parts_of(graph, node, storages, have, first, contiguous))
            if (
                node.form == "masked" and have[node.id] and not is_table(graph, node)
            ):  # its additive share, made once for all products
                storages.put(-1 - node.id, [((node.id, "share"), ELEMENT_BYTES * numel(node.shape))])
    ends = _ends(graph)
    waiting = sum(gate_bytes(graph, n) + mask_bytes(n) for n in graph.nodes if n.phase == "run")
    peak = storages.live + min(waiting, ahead_bytes)
    for step in steps(graph, "run"):
        for together in (*((node,) for node in step.local), step.talk):  # a round's openings are all held at its end
            beside = 0
            for node in together:
                dealt = gate_bytes(graph, node)
                waiting -= dealt + mask_bytes(node)
                beside += (
                    0 if node.op in HALVED else gate_memory(graph, node)
                )  # a product is made in place of its dealt share
                storages.put(node.id, _parts_of(graph, node, storages, have, first, contiguous))
            peak = max(peak, storages.live + min(waiting, ahead_bytes) + beside)
            for value in (value for node in together for value in ends.get(node.id, ())):
                storages.drop(value)
    return peak


def _ends(graph: Graph) -> dict[int, list[int]]:
    """For each node of the run phase, the values of that phase that nothing reads after it."""
    last: dict[int, int] = {}
    for node in graph.nodes:
        if node.phase == "run":
            last[node.id] = node.id
            last.update({a: node.id for a in node.args if graph[a].phase == "run"})
    last = {value: user for value, user in last.items() if not ROWS[graph[value].op].kept}
    ends: dict[int, list[int]] = {}
    for value, user in last.items():
        ends.setdefault(user, []).append(value)
    return ends


def _parts_of(
    graph: Graph, node: Node, storages: _Storages, have: Sequence[bool], first: bool, contiguous: list[bool]
) -> Parts:
    """The storages of a value: those of its operand for a view, else new ones."""
    shared = _shared_with(graph, node, have, first, contiguous)
    if shared is not None:
        return storages.of(shared)
    size = ELEMENT_BYTES * numel(node.shape)
    if node.form == "masked_bits" or (node.form == "masked" and have[node.id]):
        return [((node.id, "m"), size), ((node.id, "lam"), size)]
    total = value_bytes(node, have)
    return [((node.id, "m"), total)] if total else []


def _shared_with(graph: Graph, node: Node, have: Sequence[bool], first: bool, contiguous: list[bool]) -> int | None:
    """The operand whose memory a value shares, if any; notes in `contiguous` what a later reshape has to copy."""
    if ROWS[node.op].held == "first":  # without a mask, all of the value is at the first party
        return node.args[0] if first and not have[node.args[0]] else None
    if ROWS[node.op].view:
        return node.args[0]
    if node.op != "linear":
        return None
    kind, attrs, x = node.attrs["kind"], node.attrs["attrs"], node.args[0]
    if kind in ("add", "sub") and node.form == "additive":  # a share of nothing is not added
        present = [a for a in node.args if have[a]]
        return present[0] if len(present) == 1 and (kind == "add" or present[0] == x) else None
    if kind not in VIEWS or (kind == "reshape" and not contiguous[x]):
        return None
    if kind not in ("reshape", "ldexp"):
        outer = kind == "slice" and attrs["step"] == 1 and numel(graph[x].shape[: attrs["dim"]]) == 1
        contiguous[node.id] = outer and contiguous[x]
    return x
