"""Equality, logic on secret booleans, which are the whole numbers 0 and 1, and bits of whole numbers."""

from __future__ import annotations

import math

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.arithmetic import axes
from securemodel.compiler.lower.comparison import difference, ge, gt, infinity, le, lt
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.rounding import quotient, remainder

aten = torch.ops.aten


def not_(g: Builder, x: Value) -> Value:
    """1 - x."""
    return g.offset(g.linear("neg", x), 1)


def both(g: Builder, x: Value, y: Value) -> Value:
    """x and y, as a product; what one party owns may be either operand."""
    return g.mul(x, y) if x.secret else g.mul(y, x)


def either(g: Builder, x: Value, y: Value) -> Value:
    """x or y: x + y - x y."""
    return g.sub(g.add(x, y), both(g, x, y))


def differ(g: Builder, x: Value, y: Value) -> Value:
    """Exclusive or: x + y - 2 x y."""
    return g.sub(g.add(x, y), g.scale(both(g, x, y), 2))


def nonzero(g: Builder, x: Value) -> Value:
    """[x != 0]: both signs, from one opening."""
    below, above = g.is_negative(x), g.is_negative(g.linear("neg", x))
    return g.add(g.bit_to_ring(below), g.bit_to_ring(above))


def truth(g: Builder, x: Value) -> Value:
    """What counts as true: a boolean itself, other numbers where they are not zero."""
    if x.boolean:
        return x
    return nonzero(g, x) if x.secret else g.float(torch.Tensor.bool, x, shape=x.shape, integer=True)


@lowers(aten.ne.Scalar, aten.ne.Tensor)
def ne(g: Builder, x, y):
    """x != y, on the grid of the ring."""
    if all(isinstance(v, Value) and v.boolean for v in (x, y)):
        return differ(g, x, y)
    if side := infinity(g, y):
        if isinstance(x, Value) and x.secret and g.may_be_infinite(x):
            return (lt if side > 0 else gt)(g, x, y)
        return g.float(torch.ones, x.shape, dtype=torch.bool, shape=x.shape, integer=True)
    return nonzero(g, difference(g, x, y))


@lowers(aten.eq.Scalar, aten.eq.Tensor)
def eq(g: Builder, x, y):
    """x = y, on the grid of the ring."""
    return not_(g, ne(g, x, y))


def _booleans(g: Builder, *values) -> None:
    if not all(isinstance(v, Value) and v.boolean for v in values):
        raise CannotLower("bitwise operations on whole numbers", "only booleans have them")


@lowers(aten.bitwise_and.Tensor)
def bitwise_and(g: Builder, x, y):
    """x & y of booleans."""
    _booleans(g, x, y)
    return both(g, x, y)


@lowers(aten.bitwise_or.Tensor)
def bitwise_or(g: Builder, x, y):
    """x | y of booleans."""
    _booleans(g, x, y)
    return either(g, x, y)


@lowers(aten.bitwise_xor.Tensor)
def bitwise_xor(g: Builder, x, y):
    """x ^ y of booleans."""
    _booleans(g, x, y)
    return differ(g, x, y)


@lowers(aten.bitwise_not.default)
def bitwise_not(g: Builder, x):
    """~x: the opposite of a boolean, and -1 - x of a whole number."""
    return not_(g, x) if x.boolean else g.offset(g.linear("neg", x), -1)


@lowers(aten.bitwise_and.Scalar)
def bitwise_and_number(g: Builder, x, number):
    """x & number: of booleans, and the last bits of whole numbers, for a number 2^n - 1."""
    if x.boolean:
        return x if number & 1 else g.scale(x, 0)
    if number < 1 or number & (number + 1):
        raise CannotLower(f"whole numbers & {number}", "use a number 2^n - 1, or compare")
    return remainder(g, x, number + 1)


@lowers(aten.bitwise_or.Scalar)
def bitwise_or_number(g: Builder, x, number):
    """x | number of booleans."""
    _booleans(g, x)
    return g.offset(g.scale(x, 0), 1) if number else x


@lowers(aten.bitwise_xor.Scalar)
def bitwise_xor_number(g: Builder, x, number):
    """x ^ number of booleans."""
    _booleans(g, x)
    return not_(g, x) if number else x


@lowers(aten.__lshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar)
def left_shift(g: Builder, x, bits):
    """x 2^bits of whole numbers, for a public number of bits."""
    return g.scale(x, 2**bits)


@lowers(aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar)
def right_shift(g: Builder, x, bits):
    """floor(x / 2^bits) of whole numbers, for a public number of bits."""
    return quotient(g, x, 2.0**bits)[0]


@lowers(aten.logical_and.default)
def logical_and(g: Builder, x, y):
    """x and y; numbers count as true where they are not zero."""
    return both(g, truth(g, x), truth(g, y))


@lowers(aten.logical_or.default)
def logical_or(g: Builder, x, y):
    """x or y; numbers count as true where they are not zero."""
    return either(g, truth(g, x), truth(g, y))


@lowers(aten.logical_xor.default)
def logical_xor(g: Builder, x, y):
    """Either x or y; numbers count as true where they are not zero."""
    return differ(g, truth(g, x), truth(g, y))


@lowers(aten.logical_not.default)
def logical_not(g: Builder, x):
    """not x; numbers count as true where they are not zero."""
    return not_(g, truth(g, x))


@lowers(aten.any.default, aten.any.dim, aten.any.dims)
def any_(g: Builder, x, dim=None, keepdim=False):
    """Whether anything along axes is true: the sum of booleans is above zero."""
    dims = axes(x, dim)
    count = g.linear("sum", truth(g, x), dims=dims, keepdim=keepdim)
    most = math.prod(x.shape[d] for d in dims)
    return g.bit_to_ring(g.is_negative(g.linear("neg", count), most.bit_length()))


@lowers(aten.all.default, aten.all.dim, aten.all.dims)
def all_(g: Builder, x, dim=None, keepdim=False):
    """Whether everything along axes is true."""
    return not_(g, any_(g, not_(g, truth(g, x)), dim, keepdim))


@lowers(aten.isinf.default)
def isinf(g: Builder, x):
    """Whether a number stands for infinity, as in what a mask was filled with."""
    return g.add(ge(g, x, math.inf), le(g, x, -math.inf)) if g.may_be_infinite(x) else never(g, x)


@lowers(aten.isnan.default)
def never(g: Builder, x):
    """Fixed-point numbers are no NaN: false everywhere."""
    return g.float(torch.zeros, x.shape, dtype=torch.bool, shape=x.shape, integer=True)
