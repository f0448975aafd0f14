"""The masks of a program's values: fresh ones from streams, the others from the masks of their operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from protocols import linear
from protocols.correlations import full_bit_mask, full_mask, hidden_order
from protocols.prg import Stream
from protocols.shares import part_of_bits
from securemodel.compiler.ir import Graph, Node
from securemodel.compiler.positions import is_table, take_rows
from securemodel.engines.masked.tables import NO_TABLES, TABLE_EPOCH, TableMasks

Masks = dict[int, torch.Tensor | None]
"""By node; None for zero."""


def has_mask(node: Node) -> bool:
    """Whether a node's value is masked."""
    return node.form in ("masked", "masked_bits", "order")


def mask_of(
    graph: Graph,
    node: Node,
    masks: Masks,
    streams: Mapping[str, Stream],
    epoch: int,
    tables: TableMasks = NO_TABLES,
) -> torch.Tensor | None:
    """The mask of a masked value. None: zero.

    `streams` are those of all parties, and all masks whole; or one party's, and all masks its shares. Masks of `tables`
    are whole.
    """
    if is_table(graph, node):
        return full_mask(tables.streams[str(node.owner)], TABLE_EPOCH, node.id, node.shape)
    if node.op in DERIVED:
        return DERIVED[node.op](graph, node, [masks[a] for a in node.args], tables)
    mine, fresh = FRESH[node.op]
    known = [stream for name, stream in streams.items() if mine(node, name)]
    return fresh(known, epoch, node) if known else None


def _rows(graph: Graph, node: Node, operands: list[torch.Tensor | None], tables: TableMasks) -> torch.Tensor | None:
    return None if operands[0] is None else take_rows(graph, node, operands[0], tables.step)


def _linear(graph: Graph, node: Node, operands: list[torch.Tensor | None], tables: TableMasks) -> torch.Tensor | None:
    shapes = [graph[a].shape for a in node.args]
    return linear.apply(node.attrs["kind"], operands, node.attrs["attrs"], shapes, node.shape)


_Fresh = Callable[[Sequence[Stream], int, Node], torch.Tensor]
_ring: _Fresh = lambda streams, epoch, node: full_mask(streams, epoch, node.id, node.shape)
_bits: _Fresh = lambda streams, epoch, node: full_bit_mask(streams, epoch, node.id, node.shape)
_order: _Fresh = lambda streams, epoch, node: hidden_order(streams[0], epoch, node.id, node.attrs["size"])

FRESH: dict[str, tuple[Callable[[Node, str], bool], _Fresh]] = {
    "input": (lambda node, name: name == node.owner, _ring),
    "positions": (lambda node, name: name == node.owner, _order),
    "mask": (lambda node, name: True, _ring),
    "mask_bits": (lambda node, name: True, _bits),
    "public_masked": (lambda node, name: False, _ring),
}
"""Operators that need no masks to make one: whose streams add up to it, and how."""
DERIVED: dict[str, Callable[..., torch.Tensor | None]] = {
    "rows": _rows,
    "linear": _linear,
    "xor": lambda graph, node, operands, tables: operands[0] ^ operands[1],
    "part": lambda graph, node, operands, tables: part_of_bits(operands[0], node.attrs, node.shape),
}
"""Operators whose results are masked by what masks their operands."""
