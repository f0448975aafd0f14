"""A truncated value that is read in few bits is not opened: the opening of what is truncated hides it, too.

With fast rounding, x 2^-k modulo 2^(64-k) follows from the opening of x without its low k bits, masked by the mask of x without
them (docs/protocol.md, section 3). Where no more of it is read, as where numbers are compared, that is the masked form.
"""

from __future__ import annotations

from securemodel.compiler.ir import Graph, Header, Node
from securemodel.compiler.ops import opened_widths, read_bits
from securemodel.compiler.passes.fit import forget_truncation


def reuse_openings(graph: Graph, header: Header) -> Graph:
    """The graph with `shift` of an opening in place of what is truncated of it and then opened, where of neither more is
    opened than before."""
    if header.rounding == "exact":  # a carry is taken away, and what is left has no mask that the dealer knows
        return graph
    read, opened = read_bits(graph), opened_widths(graph)
    masks = {node.args[0] for node in graph.nodes if node.op == "mask"}
    made, ids, shifts = Graph(), dict[int, int](), dict[int, int]()
    for node in graph.nodes:
        if node.op == "mask" and node.args[0] in shifts:
            ids[node.id] = shifts[node.args[0]]
            made[ids[node.id]].marks += node.marks
        elif node.op == "truncate" and node.id in masks and node.attrs["bits"] + read[node.id] <= opened[node.args[0]]:
            shifts[node.id] = _shift(made, node, ids[node.args[0]])
            ids[node.id] = made.add("to_additive", [shifts[node.id]], node.shape, "additive", frac=node.frac).id
            made[ids[node.id]].phase, made[ids[node.id]].source = node.phase, node.source
        else:
            ids[node.id] = made.again(node, [ids[a] for a in node.args]).id
    return made


def _shift(graph: Graph, truncation: Node, opened: int) -> int:
    """What is truncated, in a masked form that its opening gives."""
    if "modulo" in truncation.attrs:
        forget_truncation(graph[opened], truncation.attrs["modulo"])
    shift = graph.again(truncation, [opened])
    shift.op, shift.form, shift.attrs = "shift", "masked", {"bits": truncation.attrs["bits"]}
    return shift.id
