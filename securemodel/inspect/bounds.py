"""Between which numbers each element of an operator's result lies, from the intervals of its operands.

Most operators rise with each of their operands, so that their bounds are those of the bounds. What has no rule here is
bounded by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from securemodel.compiler.builder import mapped
from securemodel.inspect.intervals import (
    Interval,
    as_interval,
    between,
    either,
    hull,
    inverse,
    plus,
    power,
    product,
    scaled,
    times,
    unbounded,
    within,
)

Call = tuple[Callable[..., Any], Sequence[Any], dict[str, Any]]
"""An operator with its arguments."""
Rule = Callable[[Call, Any], Any]
"""The interval of a call's result, of which the second argument tells the shape; None where nothing is known."""


def name_of(target: Any) -> str:
    """An operator's name, without its library and overload."""
    return target._schema.name.partition("::")[2] if isinstance(target, torch._ops.OpOverload) else target.__name__


def of_operator(target: Any, args: Sequence[Any], kwargs: dict[str, Any], example: Any) -> Any:
    """The interval of a captured operator's result (of each, for several); args may hold Intervals.

    None where there is no rule for this operator or its arguments.
    """
    rule = RULES.get(name_of(target))
    return rule((target, args, kwargs), example) if rule else None


# ---- building blocks
def _at(call: Call, choose: Callable[[Interval], torch.Tensor]) -> Any:
    """An operator's result for one tensor out of each interval."""
    target, args, kwargs = call
    as_double = lambda x: as_interval(x).low if x.is_floating_point() else x
    args, kwargs = mapped((list(args), kwargs), torch.Tensor, as_double)
    args, kwargs = mapped((args, kwargs), Interval, choose)
    return target(*args, **kwargs)


def _zipped(low: Any, high: Any) -> Any:
    if isinstance(low, (tuple, list)):
        return tuple(_zipped(*both) for both in zip(low, high, strict=True))
    return between(low, high)


def _rising(call: Call, example: Any = None) -> Any:
    return _zipped(_at(call, lambda x: x.low), _at(call, lambda x: x.high))


def _falling(call: Call, example: Any = None) -> Any:
    return _zipped(_at(call, lambda x: x.high), _at(call, lambda x: x.low))


def _turning(*points: float) -> Rule:
    """A function of one variable that rises or falls between these points."""

    def rule(call: Call, example: Any) -> Interval:
        target, args, kwargs = call
        x, f = as_interval(args[0]), lambda at: target(at, *args[1:], **kwargs)
        values = [f(x.low), f(x.high), *(f(x.low.clamp_min(point).minimum(x.high)) for point in points)]
        return between(torch.stack(values).amin(0), torch.stack(values).amax(0))

    return rule


def _always(low: float, high: float) -> Rule:
    return lambda call, example: within(example.shape, low, high)


def _from_zero(call: Call, example: Any) -> Any:
    """Rises with its operand, which is not negative."""
    target, args, kwargs = call
    x = as_interval(args[0])
    return _rising((target, [Interval(x.low.clamp_min(0), x.high.clamp_min(0)), *args[1:]], kwargs))


# ---- sums and products
def _sum_of_two(sign: int, reverse: bool = False) -> Rule:
    def rule(call: Call, example: Any) -> Interval:
        _, (x, y, *rest), kwargs = call
        alpha = rest[0] if rest else kwargs.get("alpha", 1)
        x, y = (y, x) if reverse else (x, y)
        if example.dtype == torch.bool:
            return within(example.shape, 0, 1)
        return plus(as_interval(x), scaled(as_interval(y), sign * alpha))

    return rule


def _mul(call: Call, example: Any) -> Interval:
    _, (x, y, *_), _ = call
    return power(as_interval(x), 2) if x is y else times(as_interval(x), as_interval(y))


def _div(call: Call, example: Any) -> Interval:
    target, (x, y, *_), kwargs = call
    made = times(as_interval(x), inverse(as_interval(y)))
    mode = kwargs.get("rounding_mode") or ("floor" if "floor_divide" in str(target) else None)
    return Interval(*(getattr(torch, mode)(bound) for bound in (made.low, made.high))) if mode else made


def _pow(call: Call, example: Any) -> Interval | None:
    _, (x, y, *_), _ = call
    if not isinstance(y, (Interval, torch.Tensor)):
        return power(as_interval(x), y)
    base = as_interval(x)
    if bool((base.low <= 0).any()):
        return None
    exponent = times(as_interval(y), Interval(base.low.log(), base.high.log()))
    return between(exponent.low.exp(), exponent.high.exp())


def _matrix_product(call: Call, example: Any) -> Interval:
    target, (x, y, *_), _ = call
    return product(target, as_interval(x), as_interval(y))


def _layer(call: Call, example: Any) -> Interval:
    """x, weights and a bias or none, with the channels in the second axis of a batch."""
    target, (x, weights, *rest), kwargs = call
    bias, *rest = rest or [kwargs.get("bias")]
    kwargs = {name: value for name, value in kwargs.items() if name != "bias"}
    made = product(lambda a, b: target(a, b, None, *rest, **kwargs), as_interval(x), as_interval(weights))
    if bias is None:
        return made
    axes = 0 if "linear" in str(target) else as_interval(weights).low.ndim - 2
    at = as_interval(bias)
    return plus(made, Interval(*(b.reshape(-1, *[1] * axes) if axes else b for b in (at.low, at.high))))


_ADDED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "addmm": torch.mm,
    "baddbmm": torch.bmm,
    "addmv": torch.mv,
    "addbmm": lambda x, y: torch.bmm(x, y).sum(0),
}


def _added_product(call: Call, example: Any) -> Interval:
    target, (bias, x, y, *_), kwargs = call
    added = scaled(product(_ADDED[name_of(target)], as_interval(x), as_interval(y)), kwargs.get("alpha", 1))
    return plus(added, scaled(as_interval(bias), kwargs.get("beta", 1)))


def _addc(divided: bool) -> Rule:
    def rule(call: Call, example: Any) -> Interval:
        _, (x, y, z, *_), kwargs = call
        last = inverse(as_interval(z)) if divided else as_interval(z)
        return plus(as_interval(x), scaled(times(as_interval(y), last), kwargs.get("value", 1)))

    return rule


def _by_magnitudes(call: Call, example: Any) -> Interval:
    """Sums of products: no more than those of the magnitudes."""
    target, args, kwargs = call
    given = mapped(list(args), torch.Tensor, as_interval)
    most = _at((target, given, kwargs), lambda x: x.magnitudes)
    return between(-most, most)


def _prod(call: Call, example: Any) -> Any:
    return _rising(call) if bool((as_interval(call[1][0]).low >= 0).all()) else _by_magnitudes(call, example)


# ---- comparisons and choices
def _greater(swapped: bool, equal: bool) -> Rule:
    compared = torch.ge if equal else torch.gt

    def rule(call: Call, example: Any) -> Interval:
        x, y = (as_interval(a) for a in call[1][:2])
        x, y = (y, x) if swapped else (x, y)
        return Interval(compared(x.low, y.high).double(), compared(x.high, y.low).double())

    return rule


def _bits(call: Call, example: Any) -> Interval | None:
    return within(example.shape, 0, 1) if example.dtype == torch.bool else None


def _chosen(mask: Any, x: Any, y: Any) -> Interval:
    chosen, x, y = as_interval(mask), as_interval(x), as_interval(y)
    both = either(x, y)
    yes, no = chosen.low >= 1, chosen.high <= 0
    pick = lambda a, b, rest: torch.where(yes, a, torch.where(no, b, rest))
    return Interval(pick(x.low, y.low, both.low), pick(x.high, y.high, both.high))


def _where(call: Call, example: Any) -> Interval:
    return _chosen(*call[1])


def _masked_fill(call: Call, example: Any) -> Interval:
    x, mask, value = call[1]
    return _chosen(mask, value, x)


def _lerp(call: Call, example: Any) -> Interval | None:
    x, y, weight = map(as_interval, call[1])
    if bool((weight.low < 0).any()) or bool((weight.high > 1).any()):
        return None
    made = either(x, y)
    return Interval(*(bound.expand(example.shape) for bound in (made.low, made.high)))


def _to_copy(call: Call, example: Any) -> Any:
    return within(example.shape, 0, 1) if example.dtype == torch.bool else _rising(call)


# ---- positions
def _values_and_places(call: Call, example: Any) -> Any:
    """Values that rise with the operand's, and where they were."""
    low, high = _at(call, lambda x: x.low), _at(call, lambda x: x.high)
    most = max(as_interval(call[1][0]).low.numel() - 1, 0)
    return between(low[0], high[0]), *(within(part.shape, 0, most) for part in example[1:])


def _one_or_more(call: Call, example: Any) -> Any:
    """max and min, with and without an axis."""
    return _values_and_places(call, example) if isinstance(example, (tuple, list)) else _rising(call)


def _places(call: Call, example: Any) -> Interval:
    return within(example.shape, 0, max(as_interval(call[1][0]).low.numel() - 1, 0))


def _taken(call: Call, example: Any) -> Interval:
    """Elements at positions: known ones, or any along the axis."""
    target, args, _ = call
    name = name_of(target)
    if not any(isinstance(x, Interval) for x in _flat(args[1:])):
        return _rising(call)
    if name == "index":
        return hull(as_interval(args[0]), shape=example.shape)
    x = as_interval(args[0])
    if name == "embedding":
        return hull(x, 0, example.shape)
    found = hull(x, args[1])
    return (
        hull(x, shape=example.shape)
        if name == "gather" and x.low.ndim != len(example.shape)
        else _spread(found, example)
    )


def _spread(x: Interval, example: Any) -> Interval:
    """To a shape that is smaller or larger along each axis: the hull of all, unless it expands."""
    try:
        return Interval(x.low.expand(tuple(example.shape)), x.high.expand(tuple(example.shape)))
    except RuntimeError:
        return hull(x, shape=example.shape)


def _put(call: Call, example: Any) -> Any:
    """Elements put or added at positions: where these are not known, each may be anywhere, and all in one place."""
    target, (x, *rest), kwargs = call
    if kwargs.get("reduce", "add") != "add" or kwargs.get("alpha", 1) != 1:
        return None
    added = "add" in str(target) or "reduce" in kwargs or (len(rest) > 2 and rest[2] is True)
    if "index_put" in str(target):
        places, value = rest[0], as_interval(rest[1])
    else:
        places, value = rest[1], as_interval(rest[2])
    if not any(isinstance(p, Interval) for p in _flat([places])):
        return _rising(call)
    x = as_interval(x)
    if not added:
        return either(x, hull(value))
    total = (value.low.clamp_max(0).sum(), value.high.clamp_min(0).sum())
    return between(x.low + total[0], x.high + total[1])


def _sampled(call: Call, example: Any) -> Interval | None:
    """Means of pixels, or nothing: 0 outside of the image. Cubic ones go beyond."""
    _, (x, _, mode, *_), _ = call
    return None if mode == 2 else either(hull(as_interval(x), shape=example.shape), within(example.shape, 0, 0))


def _orthogonal(call: Call, example: Any) -> tuple[Interval, ...]:
    """Factors of a matrix: one of length 1, and one as long as the matrix."""
    most = as_interval(call[1][0]).magnitudes.square().sum((-2, -1), keepdim=True).sqrt()
    q, r = example
    return within(q.shape, -1, 1), between(-most.expand(tuple(r.shape)), most.expand(tuple(r.shape)))


def _any_of(call: Call, example: Any) -> Any:
    """Elements of the operand, wherever they come from."""
    x = as_interval(call[1][0])
    if isinstance(example, (tuple, list)):
        return hull(x, shape=example[0].shape), *(within(part.shape, 0, x.low.numel()) for part in example[1:])
    return hull(x, shape=example.shape)


def _among(call: Call, example: Any) -> Interval:
    """Those of the first operand, some of which are replaced by those of the last."""
    _, (x, *_, other), _ = call
    return either(as_interval(x), hull(as_interval(other)))


def _reduced(call: Call, example: Any) -> Interval | None:
    """What is at a position with what comes to it: an element of either or a mean of some, or their sum."""
    _, (x, _, _, source, how, *_), _ = call
    x, source = as_interval(x), as_interval(source)
    if how in ("amax", "amin", "mean"):
        return either(x, hull(source))
    if how != "sum":
        return None
    least = x.low.clamp_max(0) + source.low.clamp_max(0).sum()
    return between(least, x.high.clamp_min(0) + source.high.clamp_min(0).sum())


def _unpooled(call: Call, example: Any) -> Interval:
    x = hull(as_interval(call[1][0]), shape=example.shape)
    return Interval(x.low.clamp_max(0), x.high.clamp_min(0))


def _counted(call: Call, example: Any) -> Interval | None:
    """How many there are, or the place among the boundaries."""
    if len(call[1]) > 1 and "bincount" in str(call[0]) and call[1][1] is not None:
        return None
    return within(example.shape, 0, max(as_interval(x).low.numel() for x in call[1][:2] if isinstance(x, _TENSORS)))


_TENSORS = (Interval, torch.Tensor)


def _flat(nest: Any) -> list[Any]:
    return [leaf for part in nest for leaf in _flat(part)] if isinstance(nest, (list, tuple)) else [nest]


# ---- norms and attention
def _normal(n: int, shape: Sequence[int], weights: Any, bias: Any, centered: bool = True) -> Interval:
    """Of n numbers with mean 0 and mean square 1 none is larger than the root of n - 1, or n; times weights, plus bias."""
    most = math.sqrt(max(n - 1, 0) if centered else n)
    made = within(shape, -most, most)
    made = made if weights is None else times(made, weights)
    return made if bias is None else plus(made, bias)


def _optional(x: Any) -> Interval | None:
    return None if x is None else as_interval(x)


def _channels(x: Any, ndim: int) -> Any:
    """Of one number a channel, the second axis of `ndim`; None as it is."""
    at = _optional(x)
    return at and Interval(*(bound.reshape(1, -1, *[1] * (ndim - 2)) for bound in (at.low, at.high)))


def _layer_norm(call: Call, example: Any) -> Any:
    _, (_, shape, *rest), _ = call
    weights, bias = ([*rest, None, None])[:2]
    several = isinstance(example, (tuple, list))
    first = example[0] if several else example
    made = _normal(math.prod(shape), first.shape, _optional(weights), _optional(bias))
    return (made, *(unbounded(part.shape) for part in example[1:])) if several else made


def _rms_norm(call: Call, example: Any) -> Interval:
    _, (_, shape, *rest), _ = call
    weights = None if not rest or rest[0] is None else as_interval(rest[0])
    return _normal(math.prod(shape), example.shape, weights, None, centered=False)


def _group_norm(call: Call, example: Any) -> Any:
    _, (_, *rest), _ = call
    first = example[0] if isinstance(example, (tuple, list)) else example
    if first is example:
        groups, weights, bias = ([*rest, None, None])[:3]
    else:
        weights, bias, *_, groups, _ = rest
    n = first.numel() // (first.shape[0] * groups)
    made = _normal(n, first.shape, _channels(weights, first.ndim), _channels(bias, first.ndim))
    return made if first is example else (made, *(unbounded(part.shape) for part in example[1:]))


def _instance_norm(call: Call, example: Any) -> Interval | None:
    _, (_, weights, bias, _, _, own, *_), _ = call
    n = math.prod(example.shape[2:])
    return _normal(n, example.shape, *(_channels(p, example.ndim) for p in (weights, bias))) if own else None


def _batch_norm(call: Call, example: Any) -> Any:
    """By statistics that are given."""
    _, (x, weights, bias, mean, variance, _, eps), _ = call
    ndim = example[0].ndim
    spread = _channels(variance, ndim)
    if spread is None or bool((spread.low + eps <= 0).any()):
        return None
    inverse = between(torch.rsqrt(spread.high + eps), torch.rsqrt(spread.low + eps))
    made = times(plus(as_interval(x), scaled(_channels(mean, ndim), -1)), inverse)
    made = made if weights is None else times(made, _channels(weights, ndim))
    made = made if bias is None else plus(made, _channels(bias, ndim))
    return (made, *(unbounded(part.shape) for part in example[1:]))


def _log_softmax(call: Call, example: Any) -> Interval:
    _, (x, dim, *_), _ = call
    x = as_interval(x)
    top = (x.high.logsumexp(dim, keepdim=True), x.low.logsumexp(dim, keepdim=True))
    return between(x.low - top[0], (x.high - top[1]).clamp_max(0))


def _attention(call: Call, example: Any) -> Interval:
    """Means of values; what no key may be seen for is zero."""
    made = hull(as_interval(call[1][2]), -2)
    made = Interval(made.low.clamp_max(0), made.high.clamp_min(0))
    return _spread(made, example)


def _norm(call: Call, example: Any) -> Any:
    target, (x, *rest), kwargs = call
    if rest and rest[0] <= 0:
        return None
    x = as_interval(x)
    least = x.low.clamp_min(0).maximum(-x.high)
    return _rising((target, [Interval(least, x.magnitudes), *rest], kwargs))


def _distance(call: Call, example: Any) -> Interval:
    _, (x, y, *rest), _ = call
    x, y = as_interval(x), as_interval(y)
    apart = torch.maximum(x.high.unsqueeze(-2) - y.low.unsqueeze(-3), y.high.unsqueeze(-3) - x.low.unsqueeze(-2))
    most = torch.linalg.vector_norm(apart.clamp_min(0), rest[0] if rest else 2, dim=-1)
    return between(torch.zeros_like(most), most)


def _variance(call: Call, example: Any) -> Any:
    """At most a quarter of the square of the range [Popoviciu 1935], and twice that without bias."""
    several = isinstance(example, (tuple, list))
    x = hull(as_interval(call[1][0]))
    most = float((x.high - x.low) ** 2 / 2)
    first = example[0] if several else example
    made = between(torch.zeros(first.shape), torch.full(first.shape, most))
    return (made, hull(x, shape=example[1].shape)) if several else made


def _recurrent(call: Call, example: Any) -> Any:
    """Of LSTM, GRU and tanh: hidden values below 1, or below what they start with; cells grow by 1 a step."""
    _, (x, start, *_), _ = call
    starts = list(start) if isinstance(start, (tuple, list)) else [start]
    hidden = max(1.0, as_interval(starts[0]).largest)
    if len(starts) > 1 and example[1].shape[-1] != example[2].shape[-1]:
        return None
    made = [within(part.shape, -hidden, hidden) for part in example[:2]]
    if len(starts) > 1:
        most = as_interval(starts[1]).largest + max(as_interval(x).low.shape[:2])
        made.append(within(example[2].shape, -most, most))
    return tuple(made)


def _wave(call: Call, example: Any) -> Interval:
    """sin and cos change no faster than their argument."""
    x = as_interval(call[1][0])
    middle = call[0](x.middle)
    return between((middle - x.radius).clamp_min(-1), (middle + x.radius).clamp_max(1))


def _bicubic(call: Call, example: Any) -> Interval:
    """The magnitudes of its weights sum to less than 2 in both directions together."""
    most = 2 * as_interval(call[1][0]).largest
    return within(example.shape, -most, most)


def _remainder(call: Call, example: Any) -> Interval:
    """Of a division by a number: smaller than it, and of its sign or, for fmod, that of what is divided."""
    target, (x, y, *_), _ = call
    most = as_interval(y).magnitudes
    sign = as_interval(x) if "fmod" in str(target) else as_interval(y)
    low, high = torch.where(sign.low >= 0, 0.0, -most), torch.where(sign.high <= 0, 0.0, most)
    return between(low.expand(example.shape), high.expand(example.shape))


def _softplus(call: Call, example: Any) -> Interval:
    """Above its threshold it is its argument, and a bit less than below."""
    target, (x, *rest), _ = call
    beta = rest[0] if rest else 1
    return either(_rising((target, (x, beta, math.inf), {})), as_interval(x))


def _sloped(call: Call, example: Any) -> Interval:
    """x, times another number where it is below 0."""
    target, (x, weights, *_), _ = call
    x = as_interval(x)
    slopes = _channels(weights, x.low.ndim) if "kernel" not in str(target) else as_interval(weights)
    below = times(Interval(x.low.clamp_max(0), x.high.clamp_max(0)), slopes)
    return plus(Interval(x.low.clamp_min(0), x.high.clamp_min(0)), below)


def _of_batch(call: Call, example: Any) -> Any:
    """A batch norm by the statistics of its own batch."""
    _, (_, weights, bias, *_), _ = call
    n, ndim = example[0].numel() // example[0].shape[1], example[0].ndim
    made = _normal(n, example[0].shape, _channels(weights, ndim), _channels(bias, ndim))
    return (made, *(unbounded(part.shape) for part in example[1:]))


def _between_poles(call: Call, example: Any) -> Any:
    """The tangent, where its argument meets no pole."""
    x = as_interval(call[1][0])
    return _rising(call) if float(x.magnitudes.max()) < math.pi / 2 else None


def _in_domain(low: float, high: float, rule: Rule) -> Rule:
    """A function that means nothing outside of [low, high]."""

    def inside(call: Call, example: Any) -> Any:
        target, (x, *rest), kwargs = call
        x = as_interval(x)
        kept = Interval(x.low.clamp(low, high), x.high.clamp(low, high))
        return rule((target, [kept, *rest], kwargs), example)

    return inside


def _with_sign(call: Call, example: Any) -> Interval:
    most = as_interval(call[1][0]).magnitudes.expand(example.shape)
    return between(-most, most)


def _x_log_y(call: Call, example: Any) -> Interval:
    x, y = (as_interval(a) for a in call[1])
    return either(times(x, between(y.low.log(), y.high.log())), as_interval(0))


def _hypot(call: Call, example: Any) -> Interval:
    x, y = (as_interval(a) for a in call[1])
    least = [a.low.clamp_min(0).maximum(-a.high) for a in (x, y)]
    return between(torch.hypot(*least), torch.hypot(x.magnitudes, y.magnitudes))


def _difference(call: Call, example: Any) -> Interval:
    """A loss that grows with the magnitude of the difference, whatever the reduction."""
    target, (x, y, *rest), kwargs = call
    x, y = as_interval(x), as_interval(y)
    most = torch.maximum((x.high - y.low).abs(), (y.high - x.low).abs())
    made = target(most, torch.zeros_like(most), *rest, **kwargs)
    return between(torch.zeros_like(made), made)


def _entropy_of_logits(call: Call, example: Any) -> Interval | None:
    """max(x, 0) - x y + log(1 + exp(-|x|)), for targets between 0 and 1, whatever the reduction."""
    _, (x, y, *rest), _ = call
    weight, positive, *_ = [*rest, None, None]
    x, y = as_interval(x), as_interval(y)
    if weight is not None or positive is not None or bool((y.low < 0).any()) or bool((y.high > 1).any()):
        return None
    most = torch.nn.functional.softplus(x.magnitudes)
    return within(example.shape, 0.0, float(most.sum()))


def _steep(rule_of: Callable[[Sequence[Any]], float]) -> Rule:
    """Rises where the number that these arguments give is not negative."""
    return lambda call, example: _rising(call) if rule_of(call[1]) >= 0 else None


_RISING = (
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_unsafe_view", "_upsample_bilinear2d_aa",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "alias", "amax", "amin", "as_strided", "asinh", "atan",
    "atanh", "avg_pool1d", "avg_pool2d", "avg_pool3d", "cat", "ceil", "celu", "clamp", "clamp_max", "clamp_min",
    "clone", "col2im", "constant_pad_nd", "contiguous", "copy", "cumsum", "detach", "diagonal", "dropout",
    "elu", "erf", "erfinv", "exp", "exp2", "expand", "expm1", "feature_dropout", "flip", "floor", "fmax",
    "fmin", "frexp", "full_like", "hardsigmoid", "hardtanh", "im2col", "lift_fresh_copy", "log", "log10",
    "log1p", "log2", "log_sigmoid", "logaddexp", "logcumsumexp", "logit", "logsumexp", "max_pool1d",
    "max_pool2d", "max_pool3d", "maximum", "mean", "minimum", "nan_to_num", "narrow", "new_full", "new_ones",
    "new_zeros", "ones_like", "pad", "permute", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "relu", "relu6", "repeat", "repeat_interleave", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "reshape", "roll", "round", "select", "select_scatter", "selu", "sgn", "sigmoid",
    "sign", "sinh", "slice", "slice_scatter", "split", "split_with_sizes", "squeeze", "stack", "sum", "t",
    "tanh", "transpose", "tril", "triu", "trunc", "unbind", "unfold", "unsqueeze", "upsample_bilinear2d",
    "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "upsample_trilinear3d", "view", "zeros_like",
)  # fmt: skip


RULES: dict[str, Rule] = {
    **dict.fromkeys(_RISING, _rising),
    **dict.fromkeys(("neg", "erfc", "_neg_view"), _falling),
    "getitem": lambda call, example: call[1][0][call[1][1]],
    "add": _sum_of_two(1),
    "sub": _sum_of_two(-1),
    "rsub": _sum_of_two(-1, reverse=True),
    "mul": _mul,
    "div": _div,
    "floor_divide": _div,
    "reciprocal": lambda call, example: inverse(as_interval(call[1][0])),
    "rsqrt": lambda call, example: inverse(power(as_interval(call[1][0]), 0.5)),
    "sqrt": _from_zero,
    "square": lambda call, example: power(as_interval(call[1][0]), 2),
    "pow": _pow,
    "abs": _turning(0.0),
    "cosh": _turning(0.0),
    "gelu": _turning(-0.75, -0.7517916),
    "silu": _turning(-1.2784645),
    "mish": _turning(-1.1924313),
    "hardswish": _turning(-3.0, -1.5),
    **dict.fromkeys(("sin", "cos"), _wave),
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot"), _matrix_product),
    **dict.fromkeys(
        ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "convolution"), _layer
    ),
    **dict.fromkeys(_ADDED, _added_product),
    "addcmul": _addc(divided=False),
    "addcdiv": _addc(divided=True),
    "bilinear": _by_magnitudes,
    **dict.fromkeys(("prod", "cumprod"), _prod),
    "gt": _greater(swapped=False, equal=False),
    "ge": _greater(swapped=False, equal=True),
    "lt": _greater(swapped=True, equal=False),
    "le": _greater(swapped=True, equal=True),
    **dict.fromkeys(("eq", "ne", "any", "all", "isnan", "isinf", "isfinite", "one_hot"), _always(0, 1)),
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax"), _always(0, 1)),
    "cosine_similarity": _always(-1, 1),
    **dict.fromkeys(("logical_not", "logical_and", "logical_or", "logical_xor"), _always(0, 1)),
    **dict.fromkeys(("bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor"), _bits),
    "where": _where,
    "masked_fill": _masked_fill,
    "lerp": _lerp,
    "_to_copy": _to_copy,
    **dict.fromkeys(("max", "min", "median", "nanmedian"), _one_or_more),
    **dict.fromkeys(
        ("sort", "topk", "kthvalue", "cummax", "cummin", "max_pool2d_with_indices", "adaptive_max_pool2d"),
        _values_and_places,
    ),
    **dict.fromkeys(("max_pool3d_with_indices", "adaptive_max_pool3d"), _values_and_places),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpooled),
    **dict.fromkeys(("argmax", "argmin", "argsort"), _places),
    **dict.fromkeys(("take", "mode"), _any_of),
    "masked_scatter": _among,
    **dict.fromkeys(("scatter_reduce", "index_reduce"), _reduced),
    **dict.fromkeys(("bucketize", "searchsorted", "histc", "bincount"), _counted),
    **dict.fromkeys(("gather", "index", "index_select", "embedding"), _taken),
    **dict.fromkeys(("scatter", "scatter_add", "index_put", "index_add", "index_copy"), _put),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    "rms_norm": _rms_norm,
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
    "instance_norm": _instance_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    **dict.fromkeys(("log_softmax", "_log_softmax"), _log_softmax),
    "scaled_dot_product_attention": _attention,
    "linalg_vector_norm": _norm,
    "linalg_qr": _orthogonal,
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), _sampled),
    "cdist": _distance,
    **dict.fromkeys(("var", "var_mean"), _variance),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh"), _recurrent),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), _bicubic),
    **dict.fromkeys(("remainder", "fmod"), _remainder),
    "softplus": _softplus,
    **dict.fromkeys(("prelu", "_prelu_kernel"), _sloped),
    **dict.fromkeys(("_native_batch_norm_legit", "_native_batch_norm_legit_functional"), _of_batch),
    "hypot": _hypot,
    "tan": _between_poles,
    "asin": _in_domain(-1, 1, _rising),
    "acos": _in_domain(-1, 1, _falling),
    "acosh": _in_domain(1, math.inf, _rising),
    **dict.fromkeys(("atan2", "angle"), _always(-math.pi, math.pi)),
    "signbit": _always(0, 1),
    "copysign": _with_sign,
    "xlogy": _x_log_y,
    "binary_cross_entropy_with_logits": _entropy_of_logits,
    **dict.fromkeys(("smooth_l1_loss", "huber_loss", "mse_loss"), _difference),
    "leaky_relu": _steep(lambda args: args[1] if len(args) > 1 else 0.01),
}
"""By the name of an operator. Those in which each operand may only raise the result are in one list."""
