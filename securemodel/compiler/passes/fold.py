"""Folds a factor into the weights before or after it where both have one owner.

s * (B(x, W) + b) becomes B(x, s W) + s b, computed by the owner in the clear: batch norm after a
convolution costs nothing online. (s * x + t) W + b becomes x (s W) + (t W + b): a linear layer reads what layer norm
scales before it is scaled, and the scaled value, which a residual sum may need, is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from securemodel.compiler.builder import Builder, Value, common_owner
from securemodel.compiler.ir import Node

_LEAST = 2.0**-4  # a smaller public factor would cost the weights their last digits
_CHANNEL_AXIS = {"conv1d": 0, "conv2d": 0, "conv_transpose1d": 1, "conv_transpose2d": 1, "matmul": -1}


def fold_owner_scales(g: Builder) -> dict[int, int]:
    """Rewrites the builder's graph in place; returns {folded node: the node that replaces it}.

    Nothing is folded into a value that the model returns or that something else reads.
    """
    users = g.graph.users()
    replaced: dict[int, int] = {}
    for node in list(g.graph.nodes):
        if not _is_factor(g, node):
            continue
        base = _resolve(g, replaced, node.args[0])
        product, added = (g.graph[base.args[0]], base) if _is_biased(g, base) else (base, None)
        if product.op != "bilinear" or product.attrs["kind"] not in _CHANNEL_AXIS:
            continue
        changed = {node.args[0], product.id, base.id}
        if any(len(users[i]) != 1 or i in g.returned for i in changed) or node.shape != base.shape:
            continue
        if _fold(g, product, added, _factor(g, node)):
            replaced[node.id] = base.id
            for i in changed:
                g.graph[i].marks = ()  # their values are others now
    return replaced


def fold_into_layers_after(g: Builder, replaced: Collection[int] = ()) -> None:
    """Lets linear layers read x of s * x + t, in place, where nothing that opens it reads the latter."""
    live = _live(g)
    users = [[u for u in readers if u in live] for readers in g.graph.users()]
    for node in g.graph.nodes:
        affine = _affine(g, node) if node.id in live else None
        if affine is None or affine[0].id in g.returned or {node.id, node.args[0]} & set(replaced):
            continue
        x, scale, shift = affine
        found = _layers_after(g, users, node, [v for v in (scale, shift) if v is not None])
        if not found:
            continue
        entries, layers = found
        for entry in entries:
            entry.args = tuple(x.id if a == node.id else a for a in entry.args)
        for layer, biased in layers:
            weight = _value(g.graph[layer.args[1]])
            column = g.float(torch.reshape, _value(scale), (-1, 1), shape=(scale.shape[0], 1))
            layer.args = (layer.args[0], g.pointwise(torch.mul, weight, column).id)
            if shift is not None and biased is not None:
                moved = g.float(torch.matmul, _value(shift), weight, shape=(weight.shape[1],))
                biased.args = (layer.id, g.pointwise(torch.add, _value(g.graph[biased.args[1]]), moved).id)
                layer.marks = ()


def _live(g: Builder) -> set[int]:
    live = {node.id for node in g.graph.nodes if node.id in g.returned or node.op == "keep"}
    for node in reversed(g.graph.nodes):
        if node.id in live:
            live.update(node.args)
    return live


def _affine(g: Builder, node: Node) -> tuple[Node, Node, Node | None] | None:
    """(x, s, t) of s * x + t with one number for each place of the last axis; t may be missing."""
    shift = None
    product = node
    if node.op == "linear" and node.attrs["kind"] == "add" and g.graph[node.args[1]].form == "float":
        product, shift = g.graph[node.args[0]], g.graph[node.args[1]]
    if product.op != "bilinear" or product.attrs["kind"] != "mul":
        return None
    x, scale = (g.graph[a] for a in product.args)
    if x.form == "float" or any(v is not None and v.shape != x.shape[-1:] for v in (scale, shift)):
        return None
    return (x, scale, shift) if scale.form == "float" and node.shape == x.shape else None


def _layers_after(
    g: Builder, users: list[list[int]], node: Node, parts: list[Node]
) -> tuple[list[Node], list[tuple[Node, Node | None]]] | None:
    """(what reads a value on the way to linear layers, these with their sums with a bias): None where something else
    opens it, or a layer is another owner's or has no bias that could take a shift in."""
    entries: list[Node] = []
    layers: list[tuple[Node, Node | None]] = []
    open_ = [(g.graph[u], True) for u in users[node.id]]
    while open_:
        user, first = open_.pop()
        if first and user.op == "linear" and user.attrs["kind"] in ("add", "sub"):
            continue
        if _keeps_last_axis(g, user):
            open_ += [(g.graph[u], False) for u in users[user.id]]
        elif layer := _layer(g, users, user, parts):
            layers.append(layer)
        else:
            return None
        if first:
            entries.append(user)
        if user.id in g.returned:
            return None
    return (entries, layers) if layers else None


def _keeps_last_axis(g: Builder, node: Node) -> bool:
    if node.op != "linear" or node.attrs["kind"] not in ("permute", "reshape"):
        return False
    before = g.graph[node.args[0]].shape
    if node.attrs["kind"] == "permute":
        return list(node.attrs["attrs"]["dims"])[-1] == len(before) - 1
    return node.shape[-1:] == before[-1:]


def _layer(g: Builder, users: list[list[int]], node: Node, parts: list[Node]) -> tuple[Node, Node | None] | None:
    """A linear layer into whose weights these floats may go, with its sum with a bias."""
    if node.op != "bilinear" or node.attrs["kind"] != "matmul" or node.args[0] == node.args[1]:
        return None
    weight, biased = g.graph[node.args[1]], None
    if weight.form != "float" or len(weight.shape) != 2:
        return None
    floats = [weight, *parts]
    if len(parts) > 1:
        if len(users[node.id]) != 1 or node.id in g.returned or not _is_biased(g, g.graph[users[node.id][0]]):
            return None
        biased = g.graph[users[node.id][0]]
        bias = g.graph[biased.args[1]]
        if biased.args[0] != node.id or bias.shape != weight.shape[1:]:
            return None
        floats.append(bias)
    return (node, biased) if common_owner([_value(n) for n in floats]) is not None else None


def _is_factor(g: Builder, node: Node) -> bool:
    if node.op == "factor":
        return abs(node.attrs["factor"]) >= _LEAST
    return node.op == "bilinear" and node.attrs["kind"] == "mul" and g.graph[node.args[1]].form == "float"


def _factor(g: Builder, node: Node) -> Node:
    if node.op == "factor":
        return g.graph[g.constant(torch.tensor(node.attrs["factor"], dtype=torch.float64)).id]
    return g.graph[node.args[1]]


def _resolve(g: Builder, replaced: dict[int, int], node_id: int) -> Node:
    return g.graph[replaced.get(node_id, node_id)]


def _is_biased(g: Builder, node: Node) -> bool:
    if node.op != "linear" or node.attrs["kind"] != "add" or node.args[0] == node.args[1]:
        return False
    return g.graph[node.args[0]].op == "bilinear" and g.graph[node.args[1]].form == "float"


def _value(node: Node) -> Value:
    return Value(node.id, node.shape, node.owner)


def _fold(g: Builder, product: Node, added: Node | None, factor: Node) -> bool:
    kind, weight = product.attrs["kind"], g.graph[product.args[1]]
    bias = g.graph[added.args[1]] if added else None
    floats = [n for n in (weight, factor, bias) if n is not None]
    if weight.form != "float" or common_owner([_value(n) for n in floats]) is None:
        return False
    axis = _CHANNEL_AXIS[kind]
    if axis == 1 and product.attrs["attrs"]["groups"] != 1:
        return False
    channel = len(product.shape) - 1 if kind == "matmul" else 1
    padded = (1,) * (len(product.shape) - len(factor.shape)) + factor.shape
    channels = math.prod(padded)
    if channels != padded[channel] or channels not in (1, product.shape[channel]):
        return False
    shape = [1] * len(weight.shape)
    shape[axis] = channels
    s = g.float(torch.reshape, _value(factor), tuple(shape), shape=shape)
    weight_value = g.pointwise(torch.mul, _value(weight), s)
    product.args = (product.args[0], weight_value.id)
    if added is not None and bias is not None:
        added.args = (added.args[0], g.pointwise(torch.mul, _value(bias), _value(factor)).id)
    return True
