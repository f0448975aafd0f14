"""From the trace of a step, which changes tensors in place, to a functional graph of ATen operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.func import functionalize
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from protocols.errors import explain
from securemodel.compiler.capture import decompositions, operand
from securemodel.errors import CompileError
from securemodel.training.notes import KEY, Note
from securemodel.training.tracing import GIVEN

aten = torch.ops.aten

KEPT = (
    "convolution", "convolution_backward", "max_pool2d_with_indices", "max_pool2d_with_indices_backward", "avg_pool2d",
    "avg_pool2d_backward", "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "threshold_backward",
    "hardtanh_backward", "leaky_relu_backward", "_prelu_kernel", "_prelu_kernel_backward", "elu_backward",
    "sigmoid_backward", "tanh_backward", "gelu_backward", "silu_backward", "mish_backward", "softplus_backward",
    "hardswish_backward", "hardsigmoid_backward", "log_sigmoid_forward", "log_sigmoid_backward", "_softmax",
    "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data", "nll_loss_forward", "nll_loss_backward",
    "nll_loss2d_forward", "nll_loss2d_backward", "binary_cross_entropy_with_logits", "native_layer_norm",
    "native_layer_norm_backward", "_native_batch_norm_legit_functional", "native_batch_norm_backward",
    "native_group_norm", "native_group_norm_backward", "embedding", "embedding_dense_backward",
    "upsample_nearest1d_backward", "upsample_nearest2d_backward", "upsample_bilinear2d_backward",
    "upsample_linear1d_backward", "upsample_bicubic2d_backward",
)  # fmt: skip
"""ATen operators of backward and of losses that are not written with simpler ones: they have secure versions of their own."""

_NOTHING = (
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
)
_FILLS = {aten.zero.default: 0, aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.full_like.default: None}
"""What looks at a shape only, and the number it fills with (None: given)."""
_LIBRARY = torch.library.Library("securemodel_training", "FRAGMENT")
_LIBRARY.define(f"bce_with_logits{str(aten.binary_cross_entropy_with_logits.default._schema).partition('logits')[2]}")
for _key in ("CPU", "Meta"):
    _LIBRARY.impl("bce_with_logits", aten.binary_cross_entropy_with_logits.default, _key)
_STANDS_FOR = {torch.ops.securemodel_training.bce_with_logits.default: aten.binary_cross_entropy_with_logits.default}
"""Operators that functionalization would take apart, as they are composite, and what stands for them meanwhile."""
_BATCH_NORM = aten.native_batch_norm.default


def table() -> dict[Any, Callable]:
    """The decompositions of a step: those of a model, but for the operators of training."""
    kept = {getattr(getattr(aten, name), overload) for name in KEPT for overload in getattr(aten, name).overloads()}
    return {op: steps for op, steps in decompositions().items() if op not in kept}


def prepare(traced: torch.fx.GraphModule) -> dict[str, torch.Tensor | None]:
    """Makes all that the step reads a placeholder: after its arguments, the inputs met on the way and the constants.

    Returns the new placeholders in order: inputs by the name they were given (None), constants by that of their
    attribute (the tensor). Raises CompileError where a step changes a constant.
    """
    graph = traced.graph
    _refuse_changes_of_constants(graph)
    meanwhile = {operator: name for name, operator in _STANDS_FOR.items()}
    for node in list(graph.nodes):
        node.target = meanwhile.get(node.target, node.target)
        if node.target is _BATCH_NORM:
            _show_what_it_changes(node)
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    new: dict[str, torch.fx.Node] = {}
    found: dict[str, torch.Tensor | None] = {}
    for node in list(graph.nodes):
        if node.target is GIVEN or node.op == "get_attr":
            constant = node.op == "get_attr"
            name = str(node.target if constant else node.args[1])
            if name not in new:
                with graph.inserting_after(last):
                    last = new[name] = graph.placeholder(name.translate(_LEGAL))
                found[name] = getattr(traced, name) if constant else None
                last.meta["val"] = node.meta.get("val", found[name])
            node.replace_all_uses_with(new[name])
            graph.erase_node(node)
    _tidy(graph)
    traced.recompile()
    return found


_LEGAL = str.maketrans(".:@", "___")


def _show_what_it_changes(node: torch.fx.Node) -> None:
    """native_batch_norm hides in its schema that it writes running statistics in training; functionalization must know."""
    x, weight, bias, mean, var, training, momentum, eps = node.args
    if not training:
        node.target = aten._native_batch_norm_legit_no_training.default
        node.args = (x, weight, bias, mean, var, momentum, eps)
    elif mean is None:
        node.target, node.args = aten._native_batch_norm_legit.no_stats, (x, weight, bias, training, momentum, eps)
    else:
        node.target = aten._native_batch_norm_legit.default


def _refuse_changes_of_constants(graph: torch.fx.Graph) -> None:
    """A tensor that is no state would keep what the first step wrote."""
    constant: set[torch.fx.Node] = {node for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        for argument, given in zip(schema.arguments, node.args, strict=False):
            if argument.alias_info is not None and given in constant:
                if argument.alias_info.is_write:
                    raise CompileError(
                        explain(
                            "the step changes a tensor that belongs to no model",
                            where=note_of(node).place(),
                            fix="return the values, or register the tensor as a buffer of a model",
                        )
                    )
                if node.target not in _NOTHING[2:]:
                    constant.add(node)


def functional(traced: torch.fx.GraphModule, values: Sequence[Any]) -> torch.fx.GraphModule:
    """The same without changes in place, decomposed; notes stay with what their operators become."""
    run = functionalize(torch.fx.Interpreter(traced).run, remove="mutations")
    with traceback.preserve_node_meta():
        result = make_fx(run, decomposition_table=table(), tracing_mode="fake")(*values)
    graph = result.graph
    for node in list(graph.nodes):
        if node.op == "call_function":
            node.target = _STANDS_FOR.get(node.target, node.target)
            _simplify(graph, node)
    _tidy(graph)
    for node in graph.nodes:
        note = note_of(node)
        if note.file:
            note.write(node.meta)
        node.meta.pop("custom", None)
    return result


def _simplify(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Drops copies, which are nothing among values that do not change, what is turned twice, and looks at a shape."""
    if node.target in _NOTHING and len(node.args) == 1 and not node.kwargs:
        node.replace_all_uses_with(operand(node))
    elif node.target is aten.t.default and operand(node).target is aten.t.default:
        node.replace_all_uses_with(operand(operand(node)))
    elif node.target is aten.copy.default and _alike(operand(node, 1).meta["val"], node.meta["val"]):
        node.replace_all_uses_with(operand(node, 1))
    elif node.target in _FILLS:
        example = node.meta["val"]
        number = _FILLS[node.target] if len(node.args) == 1 else node.args[1]
        with graph.inserting_before(node):
            new = graph.call_function(aten.full.default, (list(example.shape), number), {"dtype": example.dtype})
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)


def _alike(this: torch.Tensor, that: torch.Tensor) -> bool:
    return this.shape == that.shape and this.dtype == that.dtype


def _tidy(graph: torch.fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if "profiler" in str(node.target) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def note_of(node: torch.fx.Node) -> Note:
    """The note an operator was traced with."""
    return node.meta.get("custom", {}).get(KEY, Note())
