"""Folds a factor into the weights before it where both have one owner.

s * (B(x, W) + b) becomes B(x, s W) + s b, computed by the owner in the clear: batch norm after a
convolution costs nothing online.
"""

from __future__ import annotations

import math

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
