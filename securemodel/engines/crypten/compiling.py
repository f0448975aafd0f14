"""From a captured model to a program of CrypTen calls: the owner computes first, the rest is called on shares."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from protocols.names import PUBLIC
from securemodel.compiler.builder import Builder, CannotLower, Value, describe, is_whole, mapped, values_in
from securemodel.compiler.capture import Captured
from securemodel.compiler.ir import Header, Rounding
from securemodel.compiler.lowering import Lowered, check_arguments, lower_model
from securemodel.compiler.owners import Weights
from securemodel.compiler.postprocess import Source
from securemodel.engines.crypten.operators import OPERATORS
from securemodel.engines.crypten.operators.arithmetic import FORBIDDEN
from securemodel.engines.crypten.program import CryptenProgram, trust
from securemodel.errors import CompileError, InsecureBackendWarning

aten = torch.ops.aten


@dataclass
class Calls:
    """Records calls in a graph, and shares what one owner holds before the first call that needs it shared."""

    shared: dict[int, Value] = field(default_factory=dict)

    def __call__(self, g: Builder, node: torch.fx.Node, args: list, kwargs: dict[str, Any]) -> Any:
        """The secure version of a captured operator. Raises CannotLower."""
        example = node.meta.get("val")
        if special := SPECIAL.get(node.target):
            return special(partial(self.call, g), g, example, *args, **kwargs)
        return self.call(g, node.target, args, kwargs, example)

    def call(self, g: Builder, target: Any, args: Sequence[Any], kwargs: dict[str, Any], example: Any) -> Any:
        """An operator in the table, with every tensor shared; `example` has the shapes and types of what it makes."""
        operator = OPERATORS.get(str(target))
        if operator is None:
            raise CannotLower("CrypTen has no such operator", "replace it, or compile with protocol='masked'")
        for function in filter(None, (operator.check, operator.run)):
            check_arguments(function, *args, **kwargs)
        if operator.check:
            operator.check(*args, **kwargs)
        args, kwargs = mapped((args, kwargs), Value, partial(self.share, g))
        attrs = {"target": str(target), "args": describe(args), "kwargs": describe(kwargs)}
        operands = [v.id for v in values_in([args, kwargs])]
        several = isinstance(example, (list, tuple))
        whole = g.graph.add("call", operands, () if several else example.shape, attrs=attrs, source=g.source)
        if not several:
            return Value(whole.id, whole.shape, None, is_whole(example.dtype))
        return tuple(_item(g, whole.id, index, part) for index, part in enumerate(example))

    def share(self, g: Builder, x: Value) -> Value:
        """The secret of a value that one owner, or everybody, has in the clear; secrets stay what they are."""
        if x.secret:
            return x
        if x.id not in self.shared:
            node = g.graph.add("input", [x.id], x.shape, owner=x.owner, source=g.source, phase=g.graph[x.id].phase)
            self.shared[x.id] = Value(node.id, x.shape, None, x.integer)
        return self.shared[x.id]


def _item(g: Builder, whole: int, index: int, example: torch.Tensor) -> Value:
    node = g.graph.add("item", [whole], example.shape, attrs={"index": index}, source=g.source)
    return Value(node.id, node.shape, None, is_whole(example.dtype))


def _batch_norm(call: Callable, g: Builder, example, x, weight, bias, mean, var, momentum, eps):
    """Normalization by known statistics: scale and shift are computed by their owner in the clear."""
    if any(v.secret for v in (weight, bias, mean, var) if v is not None):
        raise CannotLower("batch norm with secret statistics", "its weights and statistics must have one owner")
    scale = g.pointwise(torch.rsqrt, g.pointwise(torch.add, var, eps))
    scale = scale if weight is None else g.pointwise(torch.mul, scale, weight)
    shift = g.pointwise(torch.neg, g.pointwise(torch.mul, mean, scale))
    shift = shift if bias is None else g.pointwise(torch.add, shift, bias)
    shape = (x.shape[1],) + (1,) * (x.ndim - 2)
    scale, shift = (g.float(torch.reshape, v, shape, shape=shape) for v in (scale, shift))
    scaled = call(aten.mul.Tensor, [x, scale], {}, example[0])
    return (call(aten.add.Tensor, [scaled, shift], {}, example[0]),)


def _divide(call: Callable, g: Builder, example, x, y):
    """Quotient; a divisor that one party owns is inverted by that party in the clear."""
    if isinstance(y, Value) and not y.secret:
        return call(aten.mul.Tensor, [x, g.pointwise(torch.reciprocal, y)], {}, example)
    return call(aten.div.Tensor, [x, y], {}, example)


def _attention(call: Callable, g: Builder, example, q, k, v, attn_mask=None, *rest, **kwargs):
    """Attention; a known mask of booleans, or with minus infinity, becomes one of numbers to add."""
    if attn_mask is not None and not attn_mask.secret:
        shape = attn_mask.shape
        if attn_mask.integer:
            attn_mask = g.float(torch.where, attn_mask, 0.0, FORBIDDEN, shape=shape)
        else:
            attn_mask = g.float(torch.clamp, attn_mask, FORBIDDEN, -FORBIDDEN, shape=shape)
    return call(aten.scaled_dot_product_attention.default, [q, k, v, attn_mask, *rest], kwargs, example)


SPECIAL: dict[Any, Callable] = {
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.div.Tensor: _divide,
    aten.scaled_dot_product_attention.default: _attention,
}
"""Operators of which an owner computes a part before it is shared."""


def lower(
    captured: Captured, weights: Weights, owners: Sequence[str], frac_bits: int = 16, width: int = 64,
    rounding: Rounding = "fast",
) -> Lowered:  # fmt: skip
    """Records every operator; collects what CrypTen lacks instead of stopping at the first."""
    calls = Calls()
    lowered = lower_model(captured, weights, owners, frac_bits, calls, rounding=rounding)
    if not lowered.problems:
        outputs = tuple(calls.share(lowered.builder, v) for v in lowered.outputs)
        lowered = replace(lowered, outputs=outputs)
    return lowered


def assemble(header: Header, lowered: Lowered, source: Source, truncate_outputs: bool = False) -> CryptenProgram:
    """The program of a lowered model; warns of what CrypTen does not protect.

    `truncate_outputs` changes nothing: CrypTen truncates after every product.
    """
    if header.width != 64:
        raise CompileError(f"CrypTen compares numbers of 64 bits, not {header.width}: leave out width")
    if header.rounding != "fast":
        raise CompileError("CrypTen truncates shares and may be off by one at random: leave out rounding")
    graph = lowered.builder.graph
    for index, (value, to, dtype) in enumerate(zip(lowered.outputs, header.outputs, lowered.dtypes, strict=True)):
        graph.add("reveal", [value.id], value.shape, attrs={"index": index, "to": to, "dtype": dtype})
    for node in graph.nodes:
        if node.op == "input" and node.owner == PUBLIC:
            node.owner = header.parties[0]
    program = CryptenProgram(header, graph, lowered.builder.calls, source.model, source.examples)
    warning = f"program {program.digest[:12]} for CrypTen: {trust(header.parties[0])} (docs/crypten.md)"
    warnings.warn(warning, InsecureBackendWarning, stacklevel=4)
    return program
