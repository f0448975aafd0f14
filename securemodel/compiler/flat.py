"""Makes what torch.export nests a flat list: a choice after both branches of torch.cond, operators out of wrappers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten
_COND = torch.ops.higher_order.cond
_IN_ORDER = torch.ops.higher_order.with_effects


def flatten(module: GraphModule, results: list[Any]) -> None:
    """Changes a captured module in place; it returns only `results` then, of what its graph returned.

    Both branches of torch.cond are computed, and torch.where chooses. Operators with effects, which are checks of values,
    stand alone, without the tokens that give their order.
    """
    graph = module.graph
    graph.output_node().args = (tuple(results),)
    for node in list(graph.nodes):
        if node.target is _COND:
            _both_branches(module, node)
        elif node.target is _IN_ORDER:
            _alone(graph, node)
    for node in reversed(graph.nodes):
        unused = node.op == "get_attr" or (node.op == "placeholder" and node.name.startswith("token"))
        if unused and not node.users:
            graph.erase_node(node)


def _both_branches(module: GraphModule, node: Node) -> None:
    graph, (condition, *branches, operands) = module.graph, cast(Any, node.args)
    made = []
    for branch in branches:
        inner = getattr(module, branch.target)
        flatten(inner, list(cast(Any, inner.graph.output_node().args)[0]))
        places = [n for n in inner.graph.nodes if n.op == "placeholder"]
        known, before = dict(zip(places, operands, strict=True)), set(graph.nodes)
        with graph.inserting_before(node):
            for attribute in [n for n in inner.graph.nodes if n.op == "get_attr"]:
                name = f"{branch.target}_{attribute.target}"
                setattr(module, name, getattr(inner, attribute.target))
                known[attribute] = graph.get_attr(name)
            made.append(list(cast(Any, graph.graph_copy(inner.graph, known))))
        for new in set(graph.nodes) - before:
            new.meta |= {name: node.meta[name] for name in ("stack_trace", "nn_module_stack") if name in node.meta}
    with graph.inserting_before(node):
        condition = _as_tensor(graph, condition)
        chosen = [_choice(graph, condition, *pair) for pair in zip(*made, strict=True)]
    for new in (condition, *chosen):
        if isinstance(new, Node) and "stack_trace" not in new.meta:
            new.meta["stack_trace"] = node.meta.get("stack_trace", "")
    _replace_parts(graph, node, chosen)


def _as_tensor(graph: Graph, condition: Any) -> Any:
    """A condition as a tensor without axes."""
    if not isinstance(condition, Node):
        condition = graph.call_function(aten.full.default, ([], bool(condition)), {"dtype": torch.bool})
        condition.meta["val"] = torch.empty((), dtype=torch.bool, device="meta")
        return condition
    value = condition.meta["val"]
    if isinstance(value, torch.Tensor) and not value.ndim:
        return condition
    if isinstance(value, torch.Tensor):
        made = graph.call_function(aten.view.default, (condition, []))
    else:
        made = graph.call_function(aten.full.default, ([], condition), {"dtype": torch.bool})
    made.meta["val"] = torch.empty((), dtype=torch.bool, device="meta")
    return made


def _choice(graph: Graph, condition: Node, this: Any, that: Any) -> Any:
    if this is that or not (isinstance(this, Node) and isinstance(that, Node)):
        return this
    made = graph.call_function(aten.where.self, (condition, this, that))
    made.meta["val"] = this.meta["val"]
    return made


def _alone(graph: Graph, node: Node) -> None:
    _, target, *args = cast(Any, node.args)
    with graph.inserting_before(node):
        made = graph.call_function(target, tuple(args), dict(node.kwargs))
    made.meta = {name: node.meta[name] for name in ("stack_trace", "nn_module_stack") if name in node.meta}
    parts = node.meta.get("val", (None,))[1:]
    made.meta["val"] = parts[0] if len(parts) == 1 else tuple(parts) or None
    _replace_parts(graph, node, [node.args[0], made])


def _replace_parts(graph: Graph, node: Node, parts: list[Any]) -> None:
    """Puts values in the place of the results of an operator that returns several."""
    for user in list(node.users):
        user.replace_all_uses_with(parts[cast(int, user.args[1])])
        graph.erase_node(user)
    graph.erase_node(node)
