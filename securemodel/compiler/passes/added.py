"""A number that is added to a truncated value before it is selected: the selection of the truncated value adds it.

So the sum is not opened, as the truncated value alone would not be (docs/protocol.md, section 5).
"""

from __future__ import annotations

from protocols.gates import numel
from protocols.names import PUBLIC
from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.ir import Graph, Header, Node


def add_in_selections(graph: Graph, header: Header, constants: Builder) -> None:
    """Selections of a truncated value plus a number, where nobody else reads either, read the value and add the number.
    `constants` knows the public floats."""
    if header.rounding == "exact":
        return
    users = graph.users()
    for node in graph.nodes:
        if node.op != "select" or len(users[node.args[1]]) > 1:
            continue
        total = graph[node.args[1]]
        if total.op != "linear" or total.attrs["kind"] != "add":
            continue
        x, y = (graph[a] for a in total.args)
        number = _number(y, constants)
        if x.op == "truncate" and x.shape == node.shape and len(users[x.id]) == 1 and number is not None:
            node.args, node.attrs = (node.args[0], x.id), {**node.attrs, "added": number}


def _number(share: Node, constants: Builder) -> int | None:
    """A public number in units of the ring; None for everything else."""
    if share.op != "share" or share.owner != PUBLIC or numel(share.shape) != 1:
        return None
    at = constants.graph[share.attrs["float"]]
    known = constants.public(Value(at.id, at.shape, PUBLIC))
    return None if known is None else round(float(known) * 2.0 ** (share.frac or 0))
