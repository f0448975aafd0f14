"""Complex secrets as pairs of real ones: rules that make operators on complex numbers of those on their parts.

An operator that only moves, adds or chooses elements does the same to both parts. A product is made of four real ones.
Complex values that one party has, or everybody, stay with it as PyTorch has them, and are taken apart where they meet
secrets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from securemodel.compiler.builder import Builder, CannotLower, Complex, Value, mapped

aten = torch.ops.aten


@dataclass(frozen=True)
class Zeros:
    """The imaginary part of a real tensor."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Real:
    """`real(target, *args)`: an operator of PyTorch on parts, by their owner where one has all of them.

    `shape`: that of the operator's result which is made of them.
    """

    g: Builder
    shape: tuple[int, ...]
    run: Callable[[object, Any, Any], Any]

    def __call__(self, target: object, *args: Any, **kwargs: Any) -> Any:
        zeros = lambda z: self.g.float(torch.zeros, z.shape, shape=z.shape)
        return self.run(target, *mapped((args, kwargs), Zeros, zeros))

    def complex(self, re: Any, im: Any) -> Complex:
        """Two parts as values of this shape; None is 0."""
        return Complex(*(self(aten.expand.default, self._zeros if p is None else p, self.shape) for p in (re, im)))

    @property
    def _zeros(self) -> Zeros:
        return Zeros(self.shape)


MOVES: dict[object, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            aten.alias.default, aten.as_strided.default, aten.clone.default, aten.constant_pad_nd.default,
            aten.contiguous.default, aten.cumsum.default, aten.detach.default, aten.diag_embed.default,
            aten.diagonal.default, aten.dropout.default, aten.expand.default, aten.flip.default, aten.gather.default,
            aten.index.Tensor, aten.index_select.default, aten.lift_fresh_copy.default, aten.masked_select.default,
            aten.mean.default, aten.mean.dim, aten.narrow.default, aten.neg.default, aten.pad.default,
            aten.permute.default, aten.repeat.default, aten.reshape.default,
            aten.roll.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default,
            aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.sum.default, aten.sum.dim_IntList,
            aten.t.default, aten.transpose.int, aten.unbind.int,
            aten.unfold.default, aten.unsqueeze.default, aten.view.default, aten._unsafe_view.default,
        ),
        (0,),
    ),
    **dict.fromkeys(
        (
            aten.add.Scalar, aten.add.Tensor, aten.copy.default, aten.rsub.Scalar, aten.rsub.Tensor,
            aten.select_scatter.default, aten.slice_scatter.default, aten.sub.Scalar, aten.sub.Tensor,
        ),
        (0, 1),
    ),
    **dict.fromkeys((aten.cat.default, aten.stack.default), (0,)),
    **dict.fromkeys((aten.index_put.default, aten.masked_fill.Scalar, aten.masked_fill.Tensor), (0, 2)),
    **dict.fromkeys(
        (
            aten.index_add.default, aten.index_copy.default, aten.scatter.src, aten.scatter.value,
            aten.scatter_add.default,
        ),
        (0, 3),
    ),
    **dict.fromkeys((aten.where.self,), (1, 2)),
}  # fmt: skip
"""Operators that do the same to both parts, and which of their arguments are complex numbers."""

RULES: dict[object, Callable[..., Any]] = {}


def rule(*targets: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function of `Real` and an operator's arguments, complex tensors among them as Complex."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def complex_version(real: Real, target: object, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What an operator on complex numbers makes. Raises CannotLower for one without a rule."""
    if target in MOVES:
        if isinstance(kwargs.get("alpha"), complex):
            args, kwargs = _with_alpha(real, target, args, **kwargs)
        return _moved(real, target, args, kwargs)
    if target not in RULES:
        raise CannotLower(
            "no secure version exists for complex numbers",
            "compute with the real and the imaginary part (torch.view_as_real), or where one party owns its inputs",
        )
    return RULES[target](real, *args, **kwargs)


def _with_alpha(real: Real, target: object, args: Sequence[Any], alpha: complex) -> tuple[list[Any], dict[str, Any]]:
    """The operands of a sum or difference with the factor multiplied into the one that it is for."""
    scaled = 0 if target in (aten.rsub.Scalar, aten.rsub.Tensor) else 1
    return [_mul(real, a, alpha) if at == scaled else a for at, a in enumerate(args)], {}


def part(value: Any, which: str) -> Any:
    """The real or the imaginary part ("re", "im") of complex and real numbers and tensors, and of lists of them."""
    if isinstance(value, Complex):
        return getattr(value, which)
    if isinstance(value, (list, tuple)):
        return [part(v, which) for v in value]
    if isinstance(value, Value):
        return value if which == "re" else Zeros(value.shape)
    return (value.real if which == "re" else value.imag) if isinstance(value, (int, float, complex)) else value


def _moved(real: Real, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    def of(which: str) -> Any:
        changed = [part(a, which) if at in MOVES[target] else a for at, a in enumerate(args)]
        return real(target, *changed, **kwargs)

    re, im = of("re"), of("im")
    return tuple(map(Complex, re, im)) if isinstance(re, tuple) else Complex(re, im)


def _parts(value: Any) -> tuple[Any, Any]:
    """(real, imaginary) part of a factor; None is 0."""
    if isinstance(value, complex):
        return value.real or None, value.imag or None
    return (value.re, value.im) if isinstance(value, Complex) else (value, None)


def _product(real: Real, target: object, x: Any, y: Any, *rest: Any) -> Complex:
    """(a + b i) (c + d i) for a bilinear operator with further arguments; an operand may be real."""
    (a, b), (c, d) = _parts(x), _parts(y)

    def made(first: Any, second: Any) -> Any:
        return None if first is None or second is None else real(target, first, second, *rest)

    def total(first: Any, second: Any) -> Any:
        return first if second is None else second if first is None else real(aten.add.Tensor, first, second)

    twice = made(b, d)
    return real.complex(
        total(made(a, c), None if twice is None else real(aten.neg.default, twice)), total(made(a, d), made(b, c))
    )


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(real, x, y):
    return _product(real, aten.mul.Tensor, x, y)


@rule(aten.mm.default)
def _mm(real, x, y):
    return _product(real, aten.mm.default, x, y)


@rule(aten.bmm.default)
def _bmm(real, x, y):
    return _product(real, aten.bmm.default, x, y)


@rule(aten.matmul.default)
def _matmul(real, x, y):
    return _product(real, aten.matmul.default, x, y)


@rule(aten.addmm.default)
def _addmm(real, bias, x, y, beta=1, alpha=1):
    product = _mul(real, _mm(real, x, y), alpha)
    return _moved(real, aten.add.Tensor, (product, _mul(real, bias, beta)), {})


@rule(aten.baddbmm.default)
def _baddbmm(real, bias, x, y, beta=1, alpha=1):
    product = _mul(real, _bmm(real, x, y), alpha)
    return _moved(real, aten.add.Tensor, (product, _mul(real, bias, beta)), {})


@rule(aten.addcmul.default)
def _addcmul(real, x, y, z, value=1):
    return _moved(real, aten.add.Tensor, (x, _mul(real, _mul(real, y, z), value)), {})


def _convolution(target: object) -> Callable[..., Any]:
    def convolution(real: Real, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Any:
        out = _product(real, target, x, weight, None, *rest)
        if bias is None:
            return out
        each = (part(bias, "re").shape[0], *[1] * (len(real.shape) - 2))
        return _moved(real, aten.add.Tensor, (out, _moved(real, aten.reshape.default, (bias, each), {})), {})

    return convolution


for _target in (aten.conv1d.default, aten.conv2d.default):
    rule(_target)(_convolution(_target))


@rule(aten.linear.default)
def _linear(real, x, weight, bias=None):
    out = _product(real, aten.linear.default, x, weight)
    return out if bias is None else _moved(real, aten.add.Tensor, (out, bias), {})


def _squares(real: Real, x: Complex) -> Any:
    return real(aten.add.Tensor, real(aten.square.default, x.re), real(aten.square.default, x.im))


@rule(aten.div.Tensor, aten.div.Scalar)
def _div(real, x, y):
    if isinstance(y, complex):
        return _mul(real, x, 1 / y)
    if not isinstance(y, Complex):
        return Complex(*(real(aten.div.Tensor, p, y) for p in _parts(x)))
    product, size = _mul(real, x, _conj(real, y)), _squares(real, y)
    return Complex(*(real(aten.div.Tensor, p, size) for p in (product.re, product.im)))


@rule(aten.reciprocal.default)
def _reciprocal(real, x):
    size = _squares(real, x)
    return Complex(real(aten.div.Tensor, x.re, size), real(aten.neg.default, real(aten.div.Tensor, x.im, size)))


@rule(aten.square.default)
def _square(real, x):
    return _mul(real, x, x)


@rule(aten.pow.Tensor_Scalar)
def _pow(real, x, exponent):
    """Whole powers are products; others exp(p log x), with the logarithm that has its angle in (-pi, pi]."""
    if isinstance(exponent, complex) and exponent.imag == 0:
        exponent = exponent.real
    if isinstance(exponent, complex) or exponent != int(exponent):
        return _exp(real, _mul(real, _log(real, x), exponent))
    made, square, left = None, x, abs(int(exponent))
    while left:
        if left % 2:
            made = square if made is None else _mul(real, made, square)
        left //= 2
        square = _mul(real, square, square) if left else square
    if made is None:
        return real.complex(real.g.constant(torch.ones(real.shape)), None)
    return _reciprocal(real, made) if exponent < 0 else made


@rule(aten.sqrt.default)
def _sqrt(real, x):
    """sqrt |x| at half of the angle."""
    half = real(aten.mul.Scalar, _angle(real, x), 0.5)
    return _polar(real, real(aten.sqrt.default, _abs(real, x)), half)


@rule(aten.rsqrt.default)
def _rsqrt(real, x):
    half = real(aten.mul.Scalar, _angle(real, x), -0.5)
    return _polar(real, real(aten.rsqrt.default, _abs(real, x)), half)


@rule(aten.log.default)
def _log(real, x):
    return Complex(real(aten.log.default, _abs(real, x)), _angle(real, x))


@rule(aten.log2.default)
def _log2(real, x):
    return _mul(real, _log(real, x), 1 / math.log(2.0))


@rule(aten.log10.default)
def _log10(real, x):
    return _mul(real, _log(real, x), 1 / math.log(10.0))


@rule(aten.sgn.default)
def _sgn(real, x):
    """x / |x|, and 0 for 0."""
    return _div(real, x, _abs(real, x))


def _waves(real: Real, x: Complex, first: object, second: object, sign: float) -> Complex:
    """first(a) cosh(b) + sign second(a) sinh(b) i, for x = a + b i."""
    re = real(aten.mul.Tensor, real(first, x.re), real(aten.cosh.default, x.im))
    im = real(aten.mul.Tensor, real(second, x.re), real(aten.sinh.default, x.im))
    return Complex(re, real(aten.mul.Scalar, im, sign))


@rule(aten.sin.default)
def _sin(real, x):
    return _waves(real, x, aten.sin.default, aten.cos.default, 1.0)


@rule(aten.cos.default)
def _cos(real, x):
    return _waves(real, x, aten.cos.default, aten.sin.default, -1.0)


@rule(aten.sinh.default)
def _sinh(real, x):
    made = _sin(real, _mul(real, x, 1j))  # sinh(x) = -i sin(i x)
    return _mul(real, made, -1j)


@rule(aten.cosh.default)
def _cosh(real, x):
    return _cos(real, _mul(real, x, 1j))


@rule(aten.tanh.default)
def _tanh(real, x):
    return _div(real, _sinh(real, x), _cosh(real, x))


@rule(aten.linalg_vector_norm.default)
def _norm(real, x, order=2, dim=None, keepdim=False, dtype=None):
    """Of the magnitudes; that of order 2 without their roots."""
    if order != 2:
        return real(aten.linalg_vector_norm.default, _abs(real, x), order, dim, keepdim)
    dims = list(range(len(x.re.shape))) if dim is None else dim
    return real(aten.sqrt.default, real(aten.sum.dim_IntList, _squares(real, x), dims, keepdim))


def _pieces(real: Real, x: Complex, dim: int, start: int, end: int) -> Complex:
    return _moved(real, aten.slice.Tensor, (x, dim, start, end), {})


def _times(real: Real, x: Complex, y: Complex) -> Complex:
    """A product in between, whose shape is not the result's."""
    return _mul(replace(real, shape=tuple(x.re.shape)), x, y)


@rule(aten.prod.dim_int)
def _prod(real, x, dim, keepdim=False, dtype=None):
    """Products of halves, again and again."""
    dim %= len(x.re.shape)
    while (size := x.re.shape[dim]) > 1:
        half = size // 2
        made = _times(real, _pieces(real, x, dim, 0, half), _pieces(real, x, dim, half, 2 * half))
        x = (
            _moved(real, aten.cat.default, ([made, _pieces(real, x, dim, 2 * half, size)], dim), {})
            if size % 2
            else made
        )
    return x if keepdim else _moved(real, aten.squeeze.dim, (x, dim), {})


@rule(aten.prod.default)
def _prod_of_all(real, x, dtype=None):
    return _prod(real, _moved(real, aten.reshape.default, (x, [math.prod(x.re.shape)]), {}), 0)


@rule(aten.cumprod.default)
def _cumprod(real, x, dim, dtype=None):
    """Each element with all before it: after step k, it has the last 2^k."""
    dim, done = dim % len(x.re.shape), 1
    while done < (size := x.re.shape[dim]):
        new = _times(real, _pieces(real, x, dim, done, size), _pieces(real, x, dim, 0, size - done))
        x, done = _moved(real, aten.cat.default, ([_pieces(real, x, dim, 0, done), new], dim), {}), 2 * done
    return x


@rule(aten.eq.Tensor, aten.eq.Scalar)
def _eq(real, x, y):
    same = [real(aten.eq.Tensor if isinstance(b, Value | Zeros) else aten.eq.Scalar, a, b)
            for a, b in zip(_both(x), _both(y), strict=True)]  # fmt: skip
    return real(aten.logical_and.default, *same)


@rule(aten.ne.Tensor, aten.ne.Scalar)
def _ne(real, x, y):
    return real(aten.logical_not.default, _eq(real, x, y))


@rule(aten.var.dim)
def _var_of_axes(real, x, dim, unbiased=True, keepdim=False):
    return _var(real, x, dim, float(unbiased), keepdim)


def _both(value: Any) -> tuple[Any, Any]:
    return part(value, "re"), part(value, "im")


@rule(aten.var.correction)
def _var(real, x, dim=None, correction=None, keepdim=False):
    """The sum of the parts' variances."""
    return real(aten.add.Tensor, *(real(aten.var.correction, p, dim, correction=correction, keepdim=keepdim)
                                   for p in _both(x)))  # fmt: skip


@rule(aten._conj.default, aten._conj_physical.default, aten.conj_physical.default)
def _conj(real, x):
    return Complex(x.re, real(aten.neg.default, x.im))


@rule(aten.abs.default)
def _abs(real, x):
    return real(aten.hypot.default, x.re, x.im)


@rule(aten.angle.default)
def _angle(real, x):
    return real(aten.atan2.default, x.im, x.re)


@rule(aten.exp.default)
def _exp(real, x):
    return _polar(real, real(aten.exp.default, x.re), x.im)


@rule(aten.polar.default)
def _polar(real, size, angle):
    return Complex(*(real(aten.mul.Tensor, size, real(f, angle)) for f in (aten.cos.default, aten.sin.default)))


@rule(aten.complex.default)
def _complex(real, re, im):
    return real.complex(re, im)


@rule(aten.view_as_complex.default)
def _view_as_complex(real, x):
    return Complex(*(real(aten.select.int, x, -1, at) for at in (0, 1)))


@rule(aten.view_as_real.default)
def _view_as_real(real, x):
    return real(aten.stack.default, [x.re, x.im], -1)


@rule(aten._to_copy.default)
def _to_copy(real, x, dtype=None, **kwargs):
    if dtype is not None and not dtype.is_complex:
        return real(aten._to_copy.default, part(x, "re"), dtype=dtype)
    return x if isinstance(x, Complex) else real.complex(x, None)
