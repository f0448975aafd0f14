"""Functions of positive numbers over all orders of magnitude that the format has: reciprocal, roots, logarithm.

x is a multiple of 2^-frac_bits or, where it is made of products, of 2^(-2 frac_bits), up to 2^30. It is first brought
into a window below 2^14 by a power of two that is free, the same ring element read with other fractional bits: numbers
of 2^14 or more are divided by 2^16, and small ones that are made of products are multiplied by 2^frac_bits. One or two
comparisons choose. Then it is scaled by a power of 16 into y in [1, 16): comparisons with public thresholds say which.
The function of y is a spline; that of the scale is a choice by the same bits. Outside of the domain the result is
meaningless, and nobody can see that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import cast

import torch

from securemodel.compiler.approximations import BEYOND_16, SMOOTH
from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.smooth import spline, table_of

aten = torch.ops.aten

HIGHEST = 2.0**30
_MIDDLE, _SHIFT = 14, 16  # from 2^14 on, x is divided by 2^16
_WIDTH = 12  # beside frac_bits
_LAST, _STEP = -10, 4  # the scale of [2^10, 2^14), and the steps to those of smaller numbers; thresholds are 16 / scale
_NARROW = 10  # the first one where a width promises that nothing is above 2^15
_MOST_INTEGER_BITS = 40
_BESIDE_NUMBERS = 40  # fractional bits that a value keeps beside a public number (passes.scales)
_TRUNCATED = 62  # ring elements that a truncation takes are below 2^62
_MANY = 8
_FELT = 2.0**-6  # a smaller number that is added to x counts with all of its digits


@dataclass(frozen=True)
class Argument:
    """The argument of a function, x = factor value, with all digits that are left of it.

    `fine`: value has twice frac_bits fractional bits, else frac_bits. `lowest`: the smallest one that is right.
    `sum`: where value is a sum of many numbers and of a public one, that of the many, and the public one.
    """

    value: Value
    factor: float
    fine: bool
    lowest: float
    sum: tuple[Value, float] | None = None


def has_products(g: Builder, x: Value) -> bool:
    """Whether a value may have more than frac_bits fractional bits."""
    open_, seen = [x.id], set()
    while open_:
        node = g.graph[open_.pop()]
        seen.add(node.id)
        if node.op in ("bilinear", "square", "factor") or node.op == "state" and node.attrs["frac"] > g.frac_bits:
            return True
        if node.op == "ldexp" and node.attrs["bits"] < 0 or node.op == "rescale" and "double" in node.attrs:
            return True
        if node.op in ("linear", "select", "ldexp"):
            open_ += [arg for arg in node.args if g.graph[arg].form == "secret" and arg not in seen]
    return False


def argument(g: Builder, x: Value) -> Argument:
    """x, before what it was multiplied by and what was added to it cost it digits: both are public numbers."""
    if highest(g) <= 2.0**_MIDDLE:
        return Argument(x, 1.0, False, 2.0**-_NARROW)
    base, factor, added = _taken_apart(g, x)
    on_grid = (added * 2.0**g.frac_bits).is_integer()
    if has_products(g, base) or not on_grid and abs(added) < _FELT:
        value = g.offset(_with_all_digits(g, base), added)
        return Argument(
            value, factor, True, 2.0 ** (2 - 2 * g.frac_bits), (base, added) if _is_of_many(g, base) else None
        )
    value, factor = (g.offset(base, added), factor) if on_grid else (x, 1.0)
    return Argument(value, factor, False, 2.0**-g.frac_bits)


def _taken_apart(g: Builder, x: Value) -> tuple[Value, float, float]:
    """(v, factor, added) with x = factor (v + added)."""
    value, factor, offset = x, 1.0, 0.0
    while known := g.notes.get(("affine", value.id)):
        value, times_, more = known
        offset, factor = offset + factor * more, factor * times_
    return (value, factor, offset / factor) if 1 / HIGHEST < factor > abs(offset) / HIGHEST else (x, 1.0, 0.0)


def _is_of_many(g: Builder, x: Value) -> bool:
    """Whether each element is a sum of so many that it may cost more than one of them."""
    node = g.graph[x.id]
    if node.op != "linear" or node.attrs["kind"] != "sum":
        return False
    return math.prod(g.graph[node.args[0]].shape) >= _MANY * math.prod(x.shape)


def _with_all_digits(g: Builder, x: Value) -> Value:
    """x with at least 2 frac_bits fractional bits."""
    return g.ldexp(g.ldexp(x, 2 * g.frac_bits), -2 * g.frac_bits)


@dataclass(frozen=True)
class Scaled:
    """A positive number x as y 2^-e, with y in [1, 16).

    `bits` say which of the `exponents` e x has, or what it became in its window. `windows`: (the bit that x is below its
    end, the power of two x was multiplied by), for each but the largest numbers', the smallest last.
    """

    y: Value
    bits: tuple[Value, ...]
    exponents: tuple[int, ...]
    windows: tuple[tuple[Value, int], ...]

    def of_scale(self, g: Builder, function: Callable[[int], float]) -> Value:
        """A public function of the secret exponent; exact where its values are whole multiples of a power of two."""
        return self.of_window(g, lambda shift: self.chosen(g, lambda e: function(e + shift)))

    def chosen(self, g: Builder, function: Callable[[int], float]) -> Value:
        """A public function of the secret exponent that x has in its window."""
        return _chosen(g, self.bits, [function(e) for e in self.exponents])

    def of_window(self, g: Builder, made: Callable[[int], Value]) -> Value:
        """What is made for the power of two that x was multiplied by."""
        if not self.windows:
            return made(0)
        last = out = made(-_SHIFT)
        for bit, shift in self.windows:
            last, before = made(shift), last
            out = g.add(out, g.select(bit, g.sub(last, before)))
        return out


def _chosen(g: Builder, bits: Sequence[Value], values: Sequence[float]) -> Value:
    """The secret choice among public values: the first, and the next one for each bit that is set."""
    unit = min((math.frexp(v)[1] - 1 for v in values if v), default=0)
    whole = [v * 2.0**-unit for v in values]
    if not all(v.is_integer() and abs(v) < 2.0**_MOST_INTEGER_BITS for v in whole):
        unit, whole = 0, list(values)
    total: Value | None = None
    for bit, (before, after) in zip(bits, pairwise(whole), strict=True):
        change = after - before
        step = g.linear("scale", bit, factor=int(change)) if change.is_integer() else g.scale(bit, change)
        total = step if total is None else g.add(total, step)
    return g.offset(g.ldexp(cast(Value, total), unit), values[0])


def highest(g: Builder) -> float:
    """The end of the domain: where the width promises that no number is above 2^15, nothing is spent on others."""
    most = g.width - 1 - g.frac_bits
    return 2.0**_MIDDLE if most <= _MIDDLE + 1 else min(HIGHEST, 2.0**most)


def scaled(g: Builder, x: Argument) -> Scaled:
    """Brings a positive number into [1, 16) by a secret power of two.

    Raises CannotLower where the width has no room for the largest scale and threshold, 1024.
    """
    if g.width < g.frac_bits + _WIDTH:
        reason = f"a function of positive numbers, with width = {g.width}"
        raise CannotLower(reason, f"compile with a width of at least {g.frac_bits + _WIDTH}")
    value, most = x.value, round(math.log2(highest(g)))
    windows: list[tuple[Value, int]] = []
    if most > _MIDDLE:
        value = g.rescale(value, double=x.fine)
        windows.append((g.is_negative(g.offset(value, -(2.0**_MIDDLE)), most), 0))
        if x.fine:
            up = g.frac_bits // 2 * 2
            windows.append((g.is_negative(g.offset(value, -(2.0 ** (_MIDDLE - up))), most), up))
    smallest = math.log2(x.lowest) + windows[-1][1] if windows else -_NARROW
    first = _LAST + _STEP * math.ceil((-smallest - _LAST) / _STEP)
    exponents = tuple(range(first, _LAST - 1, -_STEP))
    made = Scaled(value, (), exponents, tuple(windows))
    window = g.rescale(made.of_window(g, lambda shift: g.rescale(g.ldexp(value, shift))))
    thresholds = [16.0 / 2.0**e for e in exponents[:-1]]
    bits = tuple(g.bit_to_ring(g.is_negative(g.offset(window, -t), _MIDDLE), invert=True) for t in thresholds)
    return Scaled(g.mul(window, _chosen(g, bits, [2.0**e for e in exponents])), bits, exponents, tuple(windows))


def _on_1_16(g: Builder, name: str, y: Value, factor: float = 1.0) -> Value:
    return spline(g, table_of(g, SMOOTH[name]), g.rescale(y), factor)


def by_powers(g: Builder, name: str, x: Value, powers: Sequence[int], pieces: Sequence[tuple[float, float]]) -> Value:
    """factor f(x / 16^i) + shift for 16^i <= x < 16^(i + 1), f of [1, 16), with (factor, shift) for each i of `powers`.

    x is below 2^14. f is looked up for all i at once, from one opening of x, while comparisons find out which one
    holds. So it takes few rounds, and many lookups: for few numbers. With fast rounding tables go on a little beyond 16,
    and comparisons see no more digits than that needs.
    """
    smaller = [_is_smaller(g, x, 4 * i, _MIDDLE + 1, 4 * i) for i in powers[1:]]
    table = table_of(g, SMOOTH[name])
    values = [
        spline(g, table, g.ldexp(x, -4 * i), factor, shift) for i, (factor, shift) in zip(powers, pieces, strict=True)
    ]
    return _first_above(g, smaller, values, [1.0] * len(values))


def _first_above(g: Builder, smaller: Sequence[Value], values: Sequence[Value], scales: Sequence[float]) -> Value:
    """The value of the first of growing thresholds that x is below, or else the last, times its scale; bits say whether x is.

    One value less than that: the first is 0. With fast rounding what is scaled is what was selected: so values are
    truncated while they are, and opened once. With exact rounding they would be dealt more then.
    """
    if g.exact:
        values = [g.scale(value, scale) for value, scale in zip(values, scales, strict=True)]
        scales = [1.0] * len(values)
    if not smaller:
        return g.scale(values[0], scales[0])
    chosen = [
        g.select(g.either(*pair), value)
        for pair, value in zip(pairwise(smaller), values[-len(smaller) :], strict=False)
    ]
    chosen.append(g.select(smaller[-1], values[-1], invert=True))
    if len(values) > len(smaller):
        chosen.insert(0, g.select(smaller[0], values[0]))
    first, *others = (g.scale(value, scale) for value, scale in zip(chosen, scales, strict=True))
    return reduce(g.add, others, first)


def powers_of_16(count: int) -> range:
    """The powers of 16 from 1 on that are below `count`."""
    return range(max(1, math.ceil(math.log2(max(count, 2)) / 4)))


def root_of_few(g: Builder, x: Value, growth: int, factor: float = 1.0, least: float = 0.0) -> tuple[Value, int]:
    """(w, b) with factor x^(growth / 2) = w 2^-b, for growth 1 or -1 and x of 2 frac_bits fractional bits, at least `least`.

    w has frac_bits fractional bits and, however small the result is, its significant digits. As in `by_powers`, all
    powers are looked up at once: few rounds, for few numbers. A `least` of 0 is the smallest product.
    """
    x, most = g.rescale(x, double=True), highest(g)
    first = max(2 - 2 * g.frac_bits, 2 * math.floor(math.log2(least) / 2) if least else -math.inf)
    exponents = range(int(first), math.ceil(math.log2(most)), 4)
    g.domain(x, 2.0 ** exponents[0], most, "sqrt" if growth > 0 else "rsqrt", or_zero=growth > 0)
    bits = max(-growth * e // 2 for e in exponents)
    rest, exponent = math.frexp(factor)
    table = table_of(g, SMOOTH["sqrt_1_16" if growth > 0 else "rsqrt_1_16"])
    values = [spline(g, table, _times_power(g, x, -e), 2 * rest) for e in exponents]
    scales = [2.0 ** (growth * e // 2 + bits) for e in exponents]
    down = [max(0, min(e, _BESIDE_NUMBERS - 2 * g.frac_bits)) for e in exponents]
    smaller = [_is_smaller(g, x, e, math.ceil(math.log2(most)), n) for e, n in zip(exponents, down, strict=True)]
    smaller = smaller if growth > 0 and not least else smaller[1:]  # the root of 0
    return _first_above(g, smaller, values, scales), bits - exponent + 1


def _is_smaller(g: Builder, x: Value, exponent: int, most: int, down: int) -> Value:
    """Whether x < 2^exponent, for x from 0 to 2^most, compared as x 2^-down.

    With fast rounding also where x is above by less than `BEYOND_16` says of the functions of [1, 16), perhaps: no digits
    below are looked at.
    """
    more = 0.0 if g.exact else BEYOND_16 / 16
    grid_bits = round(-math.log2(BEYOND_16 / 16)) - (exponent - down)
    bound = 2.0 ** (exponent - down) * (1 + more)
    return g.is_negative(g.offset(g.ldexp(x, -down), -bound), most - down, grid_bits)


def _times_power(g: Builder, x: Value, bits: int) -> Value:
    """x 2^bits for x with 2 frac_bits fractional bits: with frac_bits at least, a large x leaves the ring."""
    more = max(0, bits - g.frac_bits)
    if 2 * g.frac_bits + more + math.log2(highest(g)) <= _TRUNCATED:
        return g.ldexp(x, bits)
    return g.wraps(g.linear("scale", g.ldexp(x, bits - more), factor=2**more))


def rsqrt_of_few(g: Builder, x: Value, factor: float = 1.0) -> Value:
    """factor x^(-1/2) for x in [2^-20, 2^14), which may have more than frac_bits fractional bits."""
    powers = range(-5, 4)
    g.domain(x, 2.0**-20, 2.0**_MIDDLE, "rsqrt")
    return by_powers(g, "rsqrt_1_16", x, powers, [(factor * 4.0**-i, 0.0) for i in powers])


# ---- roots
@dataclass(frozen=True)
class Factors:
    """A value as value scale coarse 2^bits: a number near 1 and secret powers of two; None is 1."""

    value: Value
    scale: Value | None
    coarse: Value | None
    bits: int


def _few(g: Builder, x: Argument, growth: int) -> tuple[Value, int] | None:
    """The root, or its inverse, of what `argument` found to be a sum of many numbers, as `root_of_few` has it."""
    if x.sum is None:
        return None
    total, added = x.sum
    squares = g.graph[g.graph[total.id].args[0]].op == "square"
    return root_of_few(g, x.value, growth, x.factor ** (growth / 2), max(added, 0.0) if squares else 0.0)


def _halved(factor: float, growth: int) -> tuple[float, int]:
    """(rest, exponent) with factor^(growth / 2) = rest 2^exponent and 1 <= rest < 2."""
    rest, exponent = math.frexp(factor ** (growth / 2))
    return 2 * rest, exponent - 1


@lowers(aten.rsqrt.default)
def rsqrt(g: Builder, x):
    """x^(-1/2) for positive x below 2^30; `times` takes it apart where it is a factor."""
    of = argument(g, x)
    if few := _few(g, of, -1):
        made = g.ldexp(few[0], -few[1])
        g.notes["factors", made.id] = Factors(few[0], None, None, -few[1])
        return made
    g.domain(of.value, of.lowest, highest(g), "rsqrt")
    parts, (rest, more) = scaled(g, of), _halved(of.factor, -1)
    value, scale = _on_1_16(g, "rsqrt_1_16", parts.y, rest), parts.of_scale(g, lambda e: 2.0 ** (e // 2))
    made = g.ldexp(g.mul(value, scale), more)
    g.notes["factors", made.id] = Factors(value, scale, None, more)
    return made


@lowers(aten.sqrt.default)
def sqrt(g: Builder, x):
    """Square root for positive x below 2^30, and of 0: y y^(-1/2) times the root of the scale."""
    of = argument(g, x)
    if few := _few(g, of, 1):
        made = g.ldexp(few[0], -few[1])
    else:
        g.domain(of.value, of.lowest, highest(g), "sqrt", or_zero=True)
        parts, (rest, more) = scaled(g, of), _halved(of.factor, 1)
        y = g.rescale(parts.y)
        root = g.rescale(g.mul(y, _on_1_16(g, "rsqrt_1_16", y, rest)))
        made = g.ldexp(g.mul(root, parts.of_scale(g, lambda e: 2.0 ** (-e // 2))), more)
    g.notes["root of", made.id] = x
    return made


# ---- inverses and quotients
def times(g: Builder, x: Value, y: Value) -> Value | None:
    """x y for a y that was made as a product of a number near 1 and a power of two; None for another y.

    The power goes to x first: a small y alone has few digits. Where y is an inverse root of a sum of many numbers, the
    result is below 2^17.
    """
    factors = g.notes.get(("factors", y.id))
    if factors is None:
        return None
    x = g.rescale(x) if x.secret else x
    for scale in (factors.coarse, factors.scale):
        x = x if scale is None else g.rescale(g.mul(scale, x))
    return g.ldexp(g.mul(factors.value, x), factors.bits)


def signed(g: Builder, x: Value, double: bool = False) -> tuple[Value, Value]:
    """(|x|, sign of x as -1 or 1), x with frac_bits fractional bits or twice as many."""
    negative, x = g.is_negative(x), g.rescale(x, double=double)
    return g.sub(x, g.scale(g.select(negative, x), 2.0)), g.offset(g.scale(g.bit_to_ring(negative), -2.0), 1.0)


_COARSE = -10  # of the largest divisors' powers of two, which have more fractional bits than there are


def _inverse(g: Builder, x: Value, positive: bool) -> tuple[Value, Scaled, int]:
    """(a number from 1/16 to 2 with the sign of x, the scale, bits): 1 / x is their product, times 2^bits."""
    of, sign = argument(g, x), None
    if not positive:
        magnitude, sign = signed(g, of.value, of.fine)
        of = replace(of, value=magnitude)
    g.domain(of.value, of.lowest, highest(g), "reciprocal")
    parts, (rest, exponent) = scaled(g, of), math.frexp(1 / of.factor)
    value = _on_1_16(g, "reciprocal_1_16", parts.y, 2 * rest)
    return value if sign is None else g.mul(value, sign), parts, exponent - 1


def reciprocal_positive(g: Builder, x: Value, positive: bool = True) -> Value:
    """1 / x for positive x below 2^30; half a unit and less is 0."""
    if ("root of", x.id) in g.notes:
        return rsqrt(g, g.notes["root of", x.id])
    value, parts, bits = _inverse(g, x, positive)
    return g.ldexp(g.mul(value, parts.of_scale(g, lambda e: 2.0**e if e >= -g.frac_bits else 0.0)), bits)


@lowers(aten.reciprocal.default)
def reciprocal(g: Builder, x):
    """1 / x for |x| < 2^30, x not 0."""
    return reciprocal_positive(g, x, positive=False)


def divide(g: Builder, x, y: Value, positive: bool = False) -> Value:
    """x / y for a secret y with |y| < 2^30, not 0: x times the power of two in 1 / y, then times the rest of it.

    `positive`: y is known to be.
    """
    if not isinstance(x, Value):
        return g.scale(reciprocal(g, y), x)
    shape = torch.broadcast_shapes(x.shape, y.shape)
    while g.graph[y.id].op == "linear" and g.graph[y.id].attrs["kind"] == "expand":
        arg = g.graph[g.graph[y.id].args[0]]
        if arg.form != "secret":
            break
        y = replace(y, id=arg.id, shape=arg.shape)
    if ("root of", y.id) in g.notes:
        inverse = rsqrt(g, g.notes["root of", y.id])
    else:
        value, parts, bits = _inverse(g, y, positive)
        coarse, last = None, 0
        if parts.windows:
            small, last = g.bit_to_ring(parts.windows[0][0]), _COARSE
            coarse = g.offset(g.scale(small, 1 - 2.0**_COARSE), 2.0**_COARSE)
        scale = parts.of_window(
            g, lambda shift: parts.chosen(g, lambda e: 2.0 ** (e + shift - (last if shift == -_SHIFT else 0)))
        )
        inverse = value
        g.notes["factors", inverse.id] = Factors(value, scale, coarse, bits)
    return g.expand(cast(Value, times(g, x, inverse)), shape)


@lowers(aten.log.default)
def log(g: Builder, x):
    """Natural logarithm for positive x below 2^30."""
    of = argument(g, x)
    g.domain(of.value, of.lowest, highest(g), "log")
    parts, more = scaled(g, of), math.log(of.factor)
    return g.add(_on_1_16(g, "log_1_16", parts.y), parts.of_scale(g, lambda e: more - e * math.log(2.0)))


@lowers(aten.log1p.default)
def log1p(g: Builder, x):
    """log(1 + x), on the domain of log."""
    return log(g, g.offset(x, 1.0))


@lowers(aten.log2.default)
def log2(g: Builder, x):
    """Logarithm to base 2, on the domain of log."""
    return g.scale(log(g, x), 1.0 / math.log(2.0))


@lowers(aten.sign.default, aten.sgn.default)
def sign(g: Builder, x):
    """-1, 0 or 1."""
    positive = g.bit_to_ring(g.is_negative(g.linear("neg", x)))
    return g.sub(positive, g.bit_to_ring(g.is_negative(x)))


@lowers(aten.abs.default)
def absolute(g: Builder, x):
    """|x| = 2 max(x, 0) - x."""
    return g.sub(g.scale(g.relu(x), 2.0), g.rescale(x))


def _less_extreme(g: Builder, pick: Callable[[Value, Value], Value], x: Value, y: Value, no_bound: int) -> Value:
    """pick(x, y), where infinite or huge constants of the sign `no_bound` leave the other one as it is."""
    for bound, other in ((x, y), (y, x)):
        known = g.public(bound)
        if known is not None and bool((known.double() * no_bound > g.most).all()):
            return g.linear("expand", other, shape=list(torch.broadcast_shapes(x.shape, y.shape)))
    return pick(*(v if v.secret or not _is_bound(g, v) else g.bound(v) for v in (x, y)))


def _is_bound(g: Builder, x: Value) -> bool:
    """Inputs stay as they are: they may be shared already."""
    return not g.is_placeholder(x) or g.graph[x.id].phase == "load"


@lowers(aten.maximum.default)
def maximum(g: Builder, x, y):
    """The larger of two values; an infinite or huge constant is no bound."""
    return _less_extreme(g, g.maximum, x, y, -1)


@lowers(aten.minimum.default)
def minimum(g: Builder, x, y):
    """The smaller of two values; an infinite or huge constant is no bound."""
    return _less_extreme(g, g.minimum, x, y, 1)
