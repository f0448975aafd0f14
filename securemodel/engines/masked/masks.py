"""The masks of a program's values: fresh ones from streams, the others from the masks of their operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from protocols import linear
from protocols.gates import GATES, dealt_bytes, numel
from protocols.prg import Place, Use
from protocols.shares import part_of_bits, window
from securemodel.compiler.ir import Graph, Node, Phase
from securemodel.compiler.positions import is_table, take_rows
from securemodel.engines.masked.tables import TableMasks

Masks = dict[int, torch.Tensor | None]
"""By node; None for zero."""

PORTION_BYTES, FIRST_PORTION_BYTES = 1 << 18, 1 << 15


def has_mask(node: Node) -> bool:
    """Whether a node's value is masked."""
    return node.form in ("masked", "masked_bits", "order", "window")


def portions(graph: Graph, phase: Phase) -> list[list[Node]]:
    """The nodes of a phase that have masks or are dealt for, in their order, in portions that are made together: what is
    made of streams for one is drawn in one call. A portion has at most PORTION_BYTES, or one node; the first ones, for
    which a run may wait, have less."""
    made: list[list[Node]] = [[]]
    room, most = 0, min(FIRST_PORTION_BYTES, PORTION_BYTES)
    for node in graph.nodes:
        if node.phase != phase or not (node.op in GATES or has_mask(node)):
            continue
        size = _made_bytes(graph, node)
        if size > room:
            made.append([])
            room, most = most, min(2 * most, PORTION_BYTES)
        made[-1].append(node)
        room -= size
    return [nodes for nodes in made if nodes]


def _made_bytes(graph: Graph, node: Node) -> int:
    if node.op in GATES:
        return dealt_bytes(GATES[node.op], node.attrs, [graph[a].shape for a in node.args], node.shape)
    return 8 * numel(node.shape)


@dataclass(frozen=True)
class Fresh:
    """How the mask of an operator's value is made of streams: whose add up to it, and where in them it is (None: it is an
    order, see `protocols.correlations.hidden_order`)."""

    mine: Callable[[Node, str], bool]
    use: Use | None
    together: str = "add"

    def place(self, node: Node, mode: str = "set") -> Place:
        """Where the mask of a node is."""
        return Place(node.id, Use.MASK if self.use is None else self.use, node.shape, mode=mode)


FRESH: dict[str, Fresh] = {
    "input": Fresh(lambda node, name: name == node.owner, Use.MASK),
    "positions": Fresh(lambda node, name: name == node.owner, None),
    "mask": Fresh(lambda node, name: True, Use.MASK),
    "mask_bits": Fresh(lambda node, name: True, Use.BIT_MASK, "xor"),
    "public_masked": Fresh(lambda node, name: False, Use.MASK),
}
"""Operators that need no masks to make one."""

Derive = Callable[[Masks, TableMasks], torch.Tensor | None]
"""The mask of a node, from those of its operands: of all parties together, or one's shares. None: zero."""


def _rows(graph: Graph, node: Node, device: torch.device) -> Derive:
    def derive(masks: Masks, tables: TableMasks) -> torch.Tensor | None:
        table = masks[node.args[0]]
        return None if table is None else take_rows(graph, node, table, tables.step)

    return derive


def _linear(graph: Graph, node: Node, device: torch.device) -> Derive:
    kind, attrs, args, shape = node.attrs["kind"], node.attrs["attrs"], node.args, node.shape
    shapes = [graph[a].shape for a in args]
    made = linear.ready(kind, attrs, device)
    if len(args) == 1:
        (only,) = args
        return lambda masks, tables: None if (x := masks[only]) is None else made(x)

    def derive(masks: Masks, tables: TableMasks) -> torch.Tensor | None:
        operands = [masks[a] for a in args]
        if any(x is None for x in operands):
            return linear.apply(kind, operands, attrs, shapes, shape)
        return made(*operands)

    return derive


def _xor(graph: Graph, node: Node, device: torch.device) -> Derive:
    x, y = node.args
    return lambda masks, tables: masks[x] ^ masks[y]  # type: ignore[operator]  # masked bits have masks


def _part(graph: Graph, node: Node, device: torch.device) -> Derive:
    (x,), attrs, shape = node.args, node.attrs, node.shape
    return lambda masks, tables: part_of_bits(masks[x], attrs, shape)  # type: ignore[arg-type]


def _window(graph: Graph, node: Node, device: torch.device) -> Derive:
    """Of a whole mask alone: nobody has a share of some of its bits, and nobody needs one."""
    (x,), attrs = node.args, node.attrs
    return lambda masks, tables: None if (lam := masks[x]) is None else window(lam, attrs)


DERIVED: dict[str, Callable[[Graph, Node, torch.device], Derive]] = {
    "rows": _rows,
    "linear": _linear,
    "xor": _xor,
    "part": _part,
    "window": _window,
}
"""Operators whose results are masked by what masks their operands."""


def known_factors(graph: Graph, parties: Sequence[str]) -> dict[int, str]:
    """Products in a run whose second operand one party alone masks, and so knows, by node: that party.

    Of the first operand others have shares of the mask, and all of these are of the run.
    """
    alone, of_run, found = _maskers(graph, parties), list[bool](), {}
    for node in graph.nodes:
        of_run.append(node.phase == "run" and (node.op not in DERIVED or all(of_run[a] for a in node.args)))
        if node.op == "bilinear" and node.phase == "run":
            x, y = (alone[a] for a in node.args)
            if x is not None and y is not None and len(y) == 1 and x - y and of_run[node.args[0]]:
                (found[node.id],) = y
    return found


def _maskers(graph: Graph, parties: Sequence[str]) -> list[frozenset[str] | None]:
    """By node, whose shares its mask adds up from. None for what is no mask of ring elements, or follows from a table."""
    found: list[frozenset[str] | None] = []
    for node in graph.nodes:
        mine = None
        if node.op == "linear" and node.form == "masked":
            operands = [found[a] for a in node.args]
            mine = None if None in operands else frozenset().union(*operands)  # type: ignore[arg-type]
        elif node.form == "masked" and node.op in FRESH and not is_table(graph, node):
            mine = frozenset(name for name in parties if FRESH[node.op].mine(node, name))
        found.append(mine)
    return found
