"""What each party and the dealer compute for a node, counted from shapes alone.

A share that is zero for a party (None in protocols.shares) is neither computed with nor stored, so counts
differ between parties: see `held`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols.gates import GATES, HALVED, dealt_bytes, numel
from protocols.linear import LAYOUT
from securemodel.compiler.ir import Graph, Node
from securemodel.compiler.ops import ROWS

VIEWS = LAYOUT - {"flip", "index", "pad"}
"""Linear operations whose result shares memory with the operand."""
ELEMENT_BYTES = 8


def multiply_adds(kind: str, shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> int:
    """Ring multiply-adds of one bilinear map by the textbook sum; products with padding are counted.

    `shapes` are the operands' shapes, `shape` the result's. Raises ValueError on an unknown kind.
    """
    x, y = shapes
    if kind == "mul":
        return numel(shape)
    if kind == "matmul":
        return numel(shape) * x[-1]
    if kind in ("conv1d", "conv2d"):
        return numel(shape) * numel(y[1:])
    if kind in ("conv_transpose1d", "conv_transpose2d"):
        return numel(x) * numel(y[1:])
    raise ValueError(f"no count of multiply-adds for the bilinear map {kind!r}: add it to securemodel.planning.work")


def gate_bytes(graph: Graph, node: Node) -> int:
    """Bytes of one party's share of what is dealt for a node; 0 for all but gates."""
    if node.op not in GATES:
        return 0
    return dealt_bytes(GATES[node.op], node.attrs, [graph[a].shape for a in node.args], node.shape)


def gate_memory(graph: Graph, node: Node) -> int:
    """Bytes of one party's share of what is dealt for a node, in memory: of ring elements that are sent in part, all."""
    if node.op not in GATES:
        return 0
    parts = GATES[node.op].parts(node.attrs, [graph[a].shape for a in node.args], node.shape)
    return sum(numel(part.shape) * part.dtype.itemsize for part in parts)


def held(graph: Graph, parties: Sequence[str], me: str) -> list[bool]:
    """For each node, whether `me` has a share of it: of the mask for masked values, of the value for additive ones."""
    out: list[bool] = []
    for node in graph.nodes:
        some = any(out[a] for a in node.args)
        rules = {"all": True, "owner": node.owner == me, "operands": some, "first": some or parties[0] == me}
        out.append(rules[ROWS[node.op].held])
    return out


@dataclass(frozen=True)
class Work:
    """What one party computes for one node: ring multiply-adds with the inputs and before them, bytes it touches."""

    multiply_adds: int = 0
    prepared_multiply_adds: int = 0
    moved_bytes: int = 0
    prepared_bytes: int = 0


def node_work(graph: Graph, node: Node, have: Sequence[bool], first: bool, knows: bool | None = None) -> Work:
    """The work of one node of the run phase for a party whose shares are `have`; `first` for rank 0.

    `knows`: of a product whose second operand one party knows, whether it is this one; else None.
    """
    if node.form == "float" and node.op != "reveal":
        return Work()
    online, prepared = _products(graph, node, have, first, knows)
    is_view = ROWS[node.op].kept or (node.op == "linear" and node.attrs["kind"] in VIEWS)
    read = [node] if node.op == "rows" else [graph[a] for a in node.args]  # of a table, no more than is taken
    moved = 0 if is_view else value_bytes(node, have) + sum(value_bytes(x, have) for x in read)
    dealt = gate_bytes(graph, node)
    mask = mask_bytes(node)
    return Work(online, prepared, moved + dealt + mask, dealt + mask)


def _products(graph: Graph, node: Node, have: Sequence[bool], first: bool, knows: bool | None) -> tuple[int, int]:
    """(online, prepared) multiply-adds of one party."""
    if knows:
        return _multiply_adds(graph, node), 0
    mine = {index for index, a in enumerate(node.args) if have[a]} | ({"first"} if first else set())
    products = ROWS[node.op].products if knows is None else ROWS[node.op].products[:1]
    counts = [_multiply_adds(graph, node) * bool(who & mine) for who in products]
    halved = node.op in HALVED and node.phase == "run" and graph[node.args[1]].phase == "load"
    return (sum(counts[1:]), counts[0]) if halved else (sum(counts), 0)


def _multiply_adds(graph: Graph, node: Node) -> int:
    shapes = [graph[a].shape for a in node.args] * (2 // len(node.args))
    return multiply_adds(
        node.attrs.get("kind", "mul"), shapes[::-1] if node.attrs.get("swapped") else shapes, node.shape
    )


def dealer_multiply_adds(graph: Graph, node: Node) -> int:
    """Ring multiply-adds the dealer makes for a gate: the same map on whole masks."""
    return _multiply_adds(graph, node) if ROWS[node.op].products else 0


def value_bytes(node: Node, have: Sequence[bool]) -> int:
    """Bytes of a party's form of a value: m and the mask's share, or the additive share; nothing for floats."""
    size = ELEMENT_BYTES * numel(node.shape)
    if node.form == "masked":
        return size * (1 + have[node.id])
    if node.form == "additive":
        return size * have[node.id]
    if node.form == "order":
        return size + ELEMENT_BYTES * node.attrs["size"] * have[node.id]
    return {"public": size, "window": size, "bits": size, "masked_bits": 2 * size}.get(node.form, 0)


def mask_bytes(node: Node) -> int:
    """Bytes of a party's share of the fresh mask that an opening uses."""
    return ELEMENT_BYTES * numel(node.shape) if ROWS[node.op].opens == "all to all" else 0
