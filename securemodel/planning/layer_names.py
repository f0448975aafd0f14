"""Which layer of the model each node of a program belongs to, for people who read a plan."""

from __future__ import annotations

from securemodel.compiler.capture import Captured, layer_of, source_line
from securemodel.compiler.ir import Graph, Node, only_moves
from securemodel.compiler.ops import ROWS

INPUTS, OUTPUTS = "inputs", "outputs"


def recurrent_steps(captured: Captured | None) -> dict[str, int]:
    """How many steps each recurrent layer of a captured model takes one after the other, all its layers together."""
    steps: dict[str, int] = {}
    for node in captured.graph.nodes if captured else ():
        if str(node.target) in _RECURRENT:
            x, layers, batch_first = node.args[0].meta["val"], node.args[4], node.args[8]
            name = layer_of(source_line(node))
            steps[name] = steps.get(name, 0) + x.shape[1 if batch_first else 0] * layers
    return steps


_RECURRENT = frozenset({"aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input"})


def layer_names(graph: Graph) -> list[str]:
    """A name for each node: the module or line that made it, "inputs" or "outputs".

    Programs read from a file do not know the model; there a layer is a product or a comparison, named by its
    node, with all that follows up to the next one.
    """
    names: list[str] = []
    for node in graph.nodes:
        names.append(_name(graph, node, names))
    return names


def _name(graph: Graph, node: Node, names: list[str]) -> str:
    if node.op == "reveal":
        return OUTPUTS
    if node.op == "rows" or (node.op in ("input", "positions") and node.phase == "run"):
        return INPUTS
    if only_moves(node) and node.phase == "run":
        return names[node.args[0]]  # elements that only move stay where they were computed
    if node.source:
        return layer_of(node.source)
    if ROWS[node.op].products:
        return f"%{node.id} {node.attrs.get('kind', node.op)}"
    if node.op in ("digits", "top_bit"):
        return f"%{node.args[0]} comparison"
    followed = [a for a in node.args if graph[a].phase == "run"]
    return names[max(followed)] if followed else INPUTS
