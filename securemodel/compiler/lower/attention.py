"""Attention, and choices by known conditions."""

from __future__ import annotations

import math

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.arithmetic import finite, uniform
from securemodel.compiler.lower.masks import note_masked_rows
from securemodel.compiler.lower.normalization import exponentials, softmax
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def _bias(g: Builder, mask: Value) -> Value:
    """A mask as something to add to the scores: booleans forbid, minus infinity becomes a number."""
    if mask.secret:
        return g.scale(g.offset(mask, -1.0), -g.forbidden) if mask.integer else mask
    if mask.integer:
        return g.float(torch.where, mask, 0.0, g.forbidden, shape=mask.shape)
    return g.float(torch.clamp, mask, g.forbidden, -g.forbidden, shape=mask.shape)


def _additive(g: Builder, mask: Value) -> Value:
    """A mask of booleans as numbers to add."""
    if mask.secret or not mask.integer:
        return mask
    return g.float(torch.where, mask, 0.0, -torch.inf, shape=mask.shape)


def _repeated(g: Builder, x: Value, times: int) -> Value:
    """Each head of keys or values for as many heads of queries (Ainslie et al. 2023)."""
    return g.linear("index", x, dim=x.ndim - 3, index=[head // times for head in range(times * x.shape[-3])])


@lowers(aten.scaled_dot_product_attention.default)
def scaled_dot_product_attention(
    g: Builder, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    """softmax(q k^T scale + mask) v (Vaswani et al. 2017); with enable_gqa, several heads of q read one of k and v."""
    if dropout_p:
        raise CannotLower("dropout in attention", "call model.eval()")
    if enable_gqa:
        k, v = (_repeated(g, x, q.shape[-3] // x.shape[-3]) for x in (k, v))
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    turned = g.linear("permute", k, dims=[*range(k.ndim - 2), k.ndim - 1, k.ndim - 2])
    scores = g.scale(g.bilinear("matmul", q, turned), scale)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:]).tril() == 1
        scores = g.add(scores, g.constant(torch.where(allowed, 0.0, g.forbidden)))
    if attn_mask is not None:
        scores = g.add(scores, _bias(g, attn_mask))
        note_masked_rows(g, scores, _additive(g, attn_mask))
    secret_mask = attn_mask is not None and attn_mask.secret and attn_mask.integer
    if v.shape[-1] <= scores.shape[-1] and not secret_mask and ("masked rows", scores.id) not in g.notes:
        return _divided_last(g, scores, v)
    shares = g.rescale(softmax(g, scores, -1))
    if secret_mask:
        shares = g.mul(shares, attn_mask)  # nobody knows which rows it forbids altogether: they are 0
    return g.bilinear("matmul", shares, v)


def _divided_last(g: Builder, scores: Value, v: Value) -> Value:
    """softmax(scores) v as exp(scores - max) v, divided by the sums of exponentials: of a row of n scores, as many products
    as v has columns in place of n, for products of n |v| with room in the ring."""
    powers, inverse, bits = exponentials(g, scores, scores.ndim - 1)
    mixed = g.rescale(g.bilinear("matmul", powers, v))
    return g.ldexp(g.mul(mixed, g.expand(inverse, mixed.shape)), -bits)


@lowers(aten.masked_fill.Scalar)
def masked_fill(g: Builder, x, mask, value):
    """x, with a public number, or one of an owner, where a mask is set."""
    if isinstance(value, Value):
        return where(g, mask, value, x)
    keep = g.offset(g.linear("neg", mask), 1.0) if mask.secret else _whole(g, torch.logical_not, mask)
    infinite = abs(value) >= -g.least
    value = math.copysign(g.forbidden, value) if infinite else float(value)
    there = mask if mask.secret else _whole(g, torch.clone, mask)
    made = g.add(g.mul(x, keep), g.scale(there, value))
    return g.infinite(made) if infinite else made


def _whole(g: Builder, target, x: Value) -> Value:
    return g.float(target, x, shape=x.shape, integer=True)


@lowers(aten.masked_fill.Tensor)
def masked_fill_tensor(g: Builder, x, mask, value):
    """x, with a number that is a tensor where a mask is set."""
    return where(g, mask, value, x)


@lowers(aten.where.self)
def where(g: Builder, condition, x, y):
    """x where a condition holds, else y."""
    holds = uniform(g, condition)
    if holds is not None:
        chosen, shape = x if holds else y, torch.broadcast_shapes(condition.shape, x.shape, y.shape)
        return g.linear("expand", chosen, shape=list(shape))
    x, y = (finite(g, v) for v in (x, y))
    return g.add(y, g.mul(g.sub(x, y), condition))
