"""Orders a program: what loads with the weights first, then round by round; drops dead nodes."""

from __future__ import annotations

from securemodel.compiler.ir import Graph, Node, Phase, is_check
from securemodel.compiler.ops import FINAL, TALK


def depths(graph: Graph) -> list[int]:
    """For each node, the number of rounds of its phase that must be over before it can be read."""
    out: list[int] = []
    for node in graph.nodes:
        ready = max((out[a] for a in node.args if graph[a].phase == node.phase), default=0)
        out.append(ready + 1 if node.op in TALK else ready)
    return out


def order_nodes(graph: Graph) -> tuple[Graph, dict[int, int]]:
    """The live nodes in the order they run, and {old id: new id}.

    The load phase comes first. Within a phase, local nodes precede the opening that first needs a round
    they are ready for, and openings of one round stand together: they share a message.
    """
    live = {node.id for node in graph.nodes if node.op in FINAL or is_check(node)}
    for node in reversed(graph.nodes):
        if node.id in live:
            live.update(node.args)
    depth = depths(graph)

    def key(node: Node) -> tuple:
        talks = node.op in TALK
        return (node.phase == "run", node.form != "float" or talks, depth[node.id] - talks, talks, node.id)

    order = sorted((n for n in graph.nodes if n.id in live), key=key)
    ids = {node.id: position for position, node in enumerate(order)}
    scheduled = Graph()
    for node in order:
        scheduled.again(node, [ids[a] for a in node.args])
    return scheduled, ids


def rounds(graph: Graph, phase: Phase) -> list[tuple[list[Node], list[Node]]]:
    """One phase of an ordered graph as rounds: local nodes, then the talking nodes that share one message."""
    depth = depths(graph)
    out: list[tuple[list[Node], list[Node]]] = [([], [])]
    for node in graph.nodes:
        if node.phase != phase:
            continue
        local, talk = out[-1]
        if talk and (node.op not in TALK or depth[node.id] != depth[talk[-1].id]):
            out.append(([], []))
            local, talk = out[-1]
        (talk if node.op in TALK else local).append(node)
    return out
