"""Losses with their gradients: of a loss whose value nobody reads, only the gradient is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value, common_owner
from securemodel.compiler.lower.activation import clipped
from securemodel.compiler.lower.arithmetic import mul, sub, uniform
from securemodel.compiler.lower.choosing import unit_vectors
from securemodel.compiler.lower.logic import both, ne
from securemodel.compiler.lower.normalization import softmax
from securemodel.compiler.lower.positive import reciprocal
from securemodel.compiler.lower.registry import decomposes, lowers
from securemodel.compiler.lower.smooth import smooth

aten = torch.ops.aten
_NONE, _MEAN, _SUM = 0, 1, 2


# ---- softmax
@lowers(aten._softmax_backward_data.default)
def softmax_backward(g: Builder, dy, p, dim, dtype):
    """p (dy - sum of p dy)."""
    dy = g.rescale(dy)
    total = g.linear("sum", mul(g, dy, p), dims=[dim % p.ndim], keepdim=True)
    return g.mul(g.rescale(g.sub(dy, g.expand(g.rescale(total), dy.shape))), p)


@lowers(aten._log_softmax_backward_data.default)
def log_softmax_backward(g: Builder, dy, out, dim, dtype):
    """dy - softmax times the sum of dy; for the gradient of a class, (softmax - its unit vector) times a number."""
    dim %= out.ndim
    x = g.notes.get(("log_softmax of", out.id))
    p = softmax(g, x, dim) if x else smooth(g, "exp_below_zero", out)
    if ("target", dy.id) in g.notes:
        target, rows, factor = g.notes["target", dy.id]
        return g.scale(g.sub(p if rows is None else g.mul(p, rows), target), factor)
    if dy.secret:
        rows = g.linear("sum", dy, dims=[dim], keepdim=True)
    else:
        rows = g.float(torch.sum, dy, dim, True, shape=(*dy.shape[:dim], 1, *dy.shape[dim + 1 :]))
    return g.sub(dy, g.mul(p, rows))


# ---- classes
_BY_DEFAULT = -100  # what losses ignore unless they are told something else
_RELATIVE = 3  # in the place of a reduction: weights over the largest


def _weighted(
    target: torch.Tensor, weight: torch.Tensor | None, classes: int, ignored: int, reduction: int
) -> torch.Tensor:
    """Unit vectors of classes times their weights, with zeros for an ignored class; for means, scaled to a mean of one."""
    inside = torch.where(target == ignored, 0, target)
    weights = torch.ones(classes, dtype=torch.float64) if weight is None else weight.double()
    if reduction == _RELATIVE:
        weights = weights / weights.max()
    rows = weights[inside] * (target != ignored)
    if reduction == _MEAN:
        rows = rows * (rows.numel() / rows.sum())
    vectors = torch.nn.functional.one_hot(inside, classes) * rows.unsqueeze(-1)
    return vectors.movedim(-1, 1 if target.ndim else 0)


def _along(weight: torch.Tensor, ignored: int, relative: bool, shape: Sequence[int]) -> torch.Tensor:
    """Weights of classes, none for an ignored one; over the largest if only their ratios count."""
    weights = (weight / weight.max() if relative else weight).clone()
    if 0 <= ignored < len(weights):
        weights[ignored] = 0
    return weights.reshape(shape)


def _targets(g: Builder, target: Value, weight: Value | None, classes: int, ignored: int, reduction: int):
    """(vectors of classes as `_weighted` has them, their sums along that axis or None where these are one).

    Sums are one where there are no weights and nothing is ignored. That is taken for granted of labels that their owner
    has in the clear and `ignored` as PyTorch has it by default: the owner refuses others.
    """
    known = [] if weight is None else [weight]
    parts = g.notes.get(("parts", target.id), ())
    in_the_clear = not target.secret or bool(parts) and not any(part.secret for part in parts)
    weighted = bool(known) or ignored != _BY_DEFAULT or not in_the_clear
    if common_owner([target, *known]) is not None and weighted:
        return _in_the_clear(g, target, weight, classes, ignored, reduction)
    if reduction == _MEAN and weighted:
        vectors, rows = _targets(g, target, weight, classes, ignored, _RELATIVE)
        whole = g.linear("sum", rows, dims=list(range(rows.ndim)), keepdim=False)
        factor = reciprocal(g, g.scale(whole, 1.0 / math.prod(target.shape)))
        return tuple(g.rescale(mul(g, x, g.expand(g.reshape(factor, [1] * x.ndim), x.shape))) for x in (vectors, rows))
    if parts and weighted and all(common_owner([part, *known]) is not None for part in parts):
        made = [_in_the_clear(g, part, weight, classes, ignored, reduction) for part in parts]
        return tuple(g.linear("cat", *pieces, dim=0) for pieces in zip(*made, strict=True))
    axis = 1 if target.ndim else 0
    if not target.secret and weighted:  # of another owner than its weights
        vectors = g.float(_of_classes, target, classes, ignored, shape=(*target.shape, classes), integer=True)
    else:
        vectors = _units(g, target, classes, ignored if weighted else _BY_DEFAULT, in_the_clear)
    if axis < target.ndim:
        vectors = g.linear("permute", vectors, dims=[*range(axis), target.ndim, *range(axis, target.ndim)])
    if not weighted:
        return vectors, None
    along = (classes,) + (1,) * (target.ndim - axis)
    public = g.constant(torch.ones(classes)) if weight is None or weight.secret else weight
    vectors = g.mul(vectors, g.float(_along, public, ignored, reduction == _RELATIVE, along, shape=along))
    if weight is not None and weight.secret:
        vectors = mul(g, vectors, g.reshape(weight, along))
    return vectors, g.linear("sum", vectors, dims=[axis], keepdim=True)


def _of_classes(target: torch.Tensor, classes: int, ignored: int) -> torch.Tensor:
    """Unit vectors of classes, with zeros for an ignored one."""
    kept = target != ignored
    return torch.nn.functional.one_hot(torch.where(kept, target, 0), classes) * kept.unsqueeze(-1)


def _units(g: Builder, target: Value, classes: int, ignored: int, in_the_clear: bool) -> Value:
    """The same of secret classes; one among these that is ignored has its vector, as weights take it away."""
    if in_the_clear or 0 <= ignored < classes:
        return unit_vectors(g, target, classes)
    kept = ne(g, target, ignored)
    vectors = unit_vectors(g, both(g, target, kept), classes)
    return g.mul(vectors, g.expand(g.reshape(kept, [*target.shape, 1]), vectors.shape))


def _in_the_clear(g: Builder, target: Value, weight: Value | None, classes: int, ignored: int, reduction: int):
    """The same at whoever has both."""
    axis = 1 if target.ndim else 0
    shape = (*target.shape[:axis], classes, *target.shape[axis:])
    vectors = g.float(_weighted, target, weight, classes, ignored, reduction, shape=shape)
    return vectors, g.float(torch.sum, vectors, axis, True, shape=(*shape[:axis], 1, *shape[axis + 1 :]))


def _per_row(reduction: int, count: int) -> float:
    return 1.0 / count if reduction == _MEAN else 1.0


@lowers(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def nll_loss(g: Builder, logs, target, weight, reduction, ignore_index):
    """Minus the logarithm of each row's class; its further result, the sum of weights, is not for reading."""
    axis, count = 1 if target.ndim else 0, math.prod(target.shape)
    vectors, _ = _targets(g, target, weight, logs.shape[axis], ignore_index, reduction)
    dims = [axis] if reduction == _NONE else list(range(logs.ndim))
    total = g.linear("sum", mul(g, g.rescale(logs), vectors), dims=dims, keepdim=False)
    return g.scale(total, -_per_row(reduction, count)), g.constant(torch.tensor(float(count)))


@lowers(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def nll_loss_backward(g: Builder, dy, logs, target, weight, reduction, ignore_index, total_weight):
    """-dy times the unit vector of each row's class."""
    axis, count = 1 if target.ndim else 0, math.prod(target.shape)
    vectors, rows = _targets(g, target, weight, logs.shape[axis], ignore_index, reduction)
    number = uniform(g, dy)
    if number is not None:
        made = g.scale(vectors, -number * _per_row(reduction, count))
        g.notes["target", made.id] = vectors, rows, number * _per_row(reduction, count)
        return made
    along = dy.shape if reduction != _NONE or not axis else (dy.shape[0], 1, *dy.shape[1:])
    spread = g.reshape(dy, along) if dy.secret else g.float(torch.reshape, dy, along, shape=along)
    return g.scale(g.mul(vectors, spread), -_per_row(reduction, count))


# ---- reals
def _reduced(g: Builder, x: Value, reduction: int) -> Value:
    if reduction == _NONE:
        return x
    total = g.linear("sum", x, dims=list(range(x.ndim)), keepdim=False)
    return g.scale(total, _per_row(reduction, math.prod(x.shape)))


def _with_log_weight(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return 1 + (weight - 1) * y


@lowers(aten.binary_cross_entropy_with_logits.default)
def binary_cross_entropy_with_logits(g: Builder, x, y, weight=None, pos_weight=None, reduction=_MEAN):
    """softplus(x) - x y; with weights of positives w, (1 - y) x + (1 + (w - 1) y) softplus(-x)."""
    logs = smooth(g, "softplus", x)
    if pos_weight is None:
        loss = g.sub(logs, mul(g, g.rescale(x), y))
    else:
        if common_owner([y, pos_weight]) is not None:
            factor = g.pointwise(_with_log_weight, y, pos_weight)
        else:
            factor = g.offset(
                mul(g, y, sub(g, pos_weight, 1.0) if pos_weight.secret else g.pointwise(torch.sub, pos_weight, 1.0)),
                1.0,
            )
        x = g.rescale(x)
        loss = g.add(g.sub(x, mul(g, x, y)), mul(g, g.rescale(g.sub(logs, x)), factor))
    return _reduced(g, loss if weight is None else mul(g, g.rescale(loss), weight), reduction)


def _difference(g: Builder, x: Value, y: Value) -> Value:
    return g.rescale(g.sub(x, y))


@lowers(aten.huber_loss.default)
def huber_loss(g: Builder, x, y, reduction=_MEAN, delta=1.0):
    """c (d - c / 2) for the difference d and d clipped to [-delta, delta], c."""
    d = _difference(g, x, y)
    c = g.rescale(clipped(g, d, -delta, delta))
    return _reduced(g, g.mul(c, g.rescale(g.sub(d, g.scale(c, 0.5)))), reduction)


@lowers(aten.huber_loss_backward.default)
def huber_loss_backward(g: Builder, dy, x, y, reduction, delta):
    """The clipped difference, times dy."""
    d = _difference(g, x, y)
    return g.scale(mul(g, g.rescale(clipped(g, d, -delta, delta)), dy), _per_row(reduction, math.prod(d.shape)))


@lowers(aten.smooth_l1_loss.default)
def smooth_l1_loss(g: Builder, x, y, reduction=_MEAN, beta=1.0):
    """Huber's loss over beta."""
    _positive(beta)
    return g.scale(huber_loss(g, x, y, reduction, beta), 1.0 / beta)


@lowers(aten.smooth_l1_loss_backward.default)
def smooth_l1_loss_backward(g: Builder, dy, x, y, reduction, beta):
    """The gradient of Huber's loss over beta."""
    _positive(beta)
    return g.scale(huber_loss_backward(g, dy, x, y, reduction, beta), 1.0 / beta)


def _positive(beta: float) -> None:
    if beta <= 0:
        raise CannotLower(f"a beta of {beta}", "use l1_loss")


@decomposes(aten.multilabel_margin_loss_forward.default)
def multilabel_margin_loss(x, target, reduction):
    """max(0, 1 - (x of a target - x of another class)) / classes, summed over both; targets end at the first -1.

    PyTorch's own decomposition counts what stands after that, too.
    """
    counts = (target >= 0).long().cumprod(-1).bool()
    places = torch.where(counts, target, 0)
    units = torch.nn.functional.one_hot(places, x.shape[-1]).bool() & counts.unsqueeze(-1)
    is_target = units.any(-2)
    short = (1 - x.gather(-1, places).unsqueeze(-1) + x.unsqueeze(-2)).relu()
    each = (short * (counts.unsqueeze(-1) & ~is_target.unsqueeze(-2))).sum((-2, -1)) / x.shape[-1]
    made = {0: each, 1: each.mean(), 2: each.sum()}[reduction]
    return made, is_target.to(x.dtype)


@decomposes(aten.multi_margin_loss_backward.default)
def multi_margin_loss_backward(dy, x, target, p, margin, weight=None, reduction=_MEAN):
    """Of each row, p max(0, margin - x[class] + x[j])^(p - 1) by every other class j, and minus their sum by the class."""
    rows = x if x.ndim == 2 else x.unsqueeze(0)
    count, classes = rows.shape
    units = (target.reshape(-1, 1) == torch.arange(classes)).to(x.dtype)
    room = margin - (rows * units).sum(1, keepdim=True) + rows
    slope = ((room > 0).to(x.dtype) if p == 1 else 2 * room.clamp(min=0)) * (1 - units)
    if weight is not None:
        slope = slope * (units * weight).sum(1, keepdim=True)
    made = (slope - units * slope.sum(1, keepdim=True)) * (_per_row(reduction, count) / classes)
    return (made * dy.reshape(-1, 1)).reshape(x.shape)
