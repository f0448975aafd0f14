"""What lowering functions build with: values of known secrecy and the secure operators on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import torch

from protocols.bilinear import real_bilinear
from protocols.linear import linear_shape
from protocols.names import PUBLIC
from securemodel.compiler.approximations import PARTS, Pieces
from securemodel.compiler.ir import AMONG, TABLED, WRAPS, Graph, Mark, Node, phase_of, plain_json

Real = float
"""In `Builder`, `float` is an operator."""
SPLINE_BITS = (8, 16)
"""The least and the most fractional bits that splines work with."""


class CannotLower(Exception):
    """Raised by a lowering function that meets a form it has no secure version of."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Value:
    """A tensor of the model during lowering. `owner` is a party or "public" for floats, None for secrets.

    integer: without fractional bits; boolean: 0 or 1, as the model's own operators made it. `sized`: its shape is known;
    that of a float may depend on its owner's values.
    """

    id: int
    shape: tuple[int, ...]
    owner: str | None = None
    integer: bool = False
    boolean: bool = False
    sized: bool = True

    @property
    def secret(self) -> bool:
        return self.owner is None

    @property
    def ndim(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Complex:
    """A complex tensor that is nobody's alone, as its real and imaginary part."""

    re: Any
    im: Any


def is_whole(dtype: torch.dtype) -> bool:
    """Whether a type has whole numbers alone, booleans among them."""
    return not (dtype.is_floating_point or dtype.is_complex)


@dataclass
class FloatCall:
    """A computation in the clear: a torch callable on earlier float nodes (Values in args and kwargs)."""

    target: Callable
    args: tuple
    kwargs: dict[str, Any]

    def __reduce__(self):
        """Operators of torch.ops cannot be pickled; their names stand for them."""
        target = str(self.target) if isinstance(self.target, torch._ops.OpOverload) else self.target
        return _float_call, (target, self.args, self.kwargs)


def _float_call(target: Callable | str, args: tuple, kwargs: dict[str, Any]) -> FloatCall:
    return FloatCall(attrgetter(target)(torch.ops) if isinstance(target, str) else target, args, kwargs)


def describe(arg: Any) -> Any:
    """Arguments as plain JSON values, with a Value as "%" and its node; a program's text has them so."""
    if isinstance(arg, Value):
        return f"%{arg.id}"
    if isinstance(arg, (list, tuple)):
        return [describe(a) for a in arg]
    if isinstance(arg, dict):
        return {k: describe(v) for k, v in arg.items()}
    if isinstance(arg, float) and not math.isfinite(arg):
        return str(arg)
    return arg if isinstance(arg, (int, float, bool, str, type(None))) else str(arg)


SMALLER = "use a smaller number; a mask is x.masked_fill(mask, -torch.inf) or torch.where(mask, x, -torch.inf)"
_NO_NAN = "choose with a mask, and divide by the count of what it keeps: (x * mask).sum() / mask.sum()"


def _finite(x: torch.Tensor, low: float, high: float, infinity: float) -> torch.Tensor:
    return torch.where(x <= low, -infinity, torch.where(x >= high, infinity, x))


def _bounded(x: torch.Tensor, most: float) -> torch.Tensor:
    return (x if x.dtype == torch.float64 else x.float()).clamp(-most, most)


def _key(op: str, operands: Sequence[Value], attrs: dict[str, Any]) -> tuple:
    return op, tuple(v.id for v in operands), plain_json(attrs)


def _is_repeatable(target: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call gives the same result again, and its few arguments tell which call it is."""
    if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
        return False
    leaves = list(islice(_leaves([args, kwargs]), _MANY))
    return len(leaves) < _MANY and all(isinstance(leaf, _PLAIN) for leaf in leaves)


_SMALL = 2.0**-8
_KEEPING = ("linear", "bilinear", "select", "rescale", "factor", "ldexp")
_PLAIN = (Value, bool, int, float, str, type(None), torch.dtype)
_MANY = 4096


def _leaves(arg: Any) -> Iterator[Any]:
    if isinstance(arg, dict):
        arg = list(arg.values())
    if isinstance(arg, Complex):
        arg = [arg.re, arg.im]
    if isinstance(arg, (list, tuple)):
        for part in arg:
            yield from _leaves(part)
    else:
        yield arg


def _whole(integer: bool) -> dict[str, bool]:
    """Marks floats that are whole numbers: they enter the ring without fractional bits, and exactly."""
    return {"integer": True} if integer else {}


def values_in(arg: Any) -> list[Value]:
    """All Values in a nest of lists, tuples and dicts, those of complex numbers among them."""
    return [leaf for leaf in _leaves(arg) if isinstance(leaf, Value)]


def mapped(arg: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A nest of lists, tuples and dicts with all that is of a kind changed."""
    if isinstance(arg, kind):
        return change(arg)
    if isinstance(arg, dict):
        return {name: mapped(value, kind, change) for name, value in arg.items()}
    return type(arg)(mapped(a, kind, change) for a in arg) if isinstance(arg, (list, tuple)) else arg


def common_owner(values: Sequence[Value]) -> str | None:
    """Who can compute a function of these floats alone: "public", one party, or None (nobody may)."""
    owners = {v.owner for v in values} - {PUBLIC}
    if None in owners or len(owners) > 1:
        return None
    return owners.pop() if owners else PUBLIC


@dataclass
class Builder:
    """Appends secure operators to a graph; shapes are computed with torch on the meta device.

    The same operator on the same values is made once: whoever needs a value that another lowering function made, as the
    gradient of an activation needs the forward's comparison, computes it again in the same way and gets that one.
    `notes`: what is known of a value by a name, beside what computes it, for the gradient.
    `returned` holds the nodes whose values the model returns. `exact`: truncations round to the nearest and comparisons
    see every digit; else truncations may be one too high, and comparisons see frac_bits fractional bits. `scores`: what is
    made goes to a softmax, so that minus infinity in an owner's mask is no mistake. `in_run`: public values that are made
    have the rows of a run, and are no part of the load. `whole_rows`: no mask that an owner gives forbids a whole row of
    scores. `halved`: tables, by their number, and how often they have half as many pieces; `tables`: how many there are.
    """

    graph: Graph = field(default_factory=Graph)
    calls: dict[int, FloatCall] = field(default_factory=dict)
    returned: frozenset[int] = frozenset()
    source: str = ""
    frac_bits: int = 16
    width: int = 64
    exact: bool = True
    scores: bool = False
    in_run: bool = False
    whole_rows: bool = False
    halved: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    tables: int = 0
    made: dict[tuple, int] = field(default_factory=dict)
    constants: dict[int, torch.Tensor | None] = field(default_factory=dict)
    notes: dict[tuple[str, int], Any] = field(default_factory=dict)

    def _value(self, node: Node, integer: bool = False) -> Value:
        node.source = node.source or self.source
        return Value(node.id, node.shape, node.owner if node.form == "float" else None, integer)

    def _secret(
        self, op: str, operands: Sequence[Value], shape: Sequence[int], form: str = "secret", /, **attrs
    ) -> Node:
        """The node of an operator on these values: an earlier one where there is one."""
        key = _key(op, operands, attrs)
        if key not in self.made:
            self.made[key] = self.graph.add(op, key[1], shape, form, attrs=attrs).id
        return self.graph[self.made[key]]

    @property
    def least(self) -> float:
        """From here down, a number stands for minus infinity: it has little or no room in the ring, or in what is compared.

        -1e9, as masks have it, is among them at 16 fractional bits.
        """
        bits = 61 - 2 * self.frac_bits
        return -(2.0 ** (bits if self.width == 64 else min(bits, self.width - 1 - self.frac_bits)))

    @property
    def forbidden(self) -> float:
        """What stands for minus infinity in masks: a number that no other goes below, that can be compared, and that leaves
        room for sums and products of it.
        """
        return max(-(2.0**24), self.least / 2)

    @property
    def most(self) -> Real:
        """The largest magnitude that a number may have to enter the ring (ops.encoding_limit)."""
        most = 2.0 ** (62 - 2 * self.frac_bits)
        return most if self.width == 64 else min(most, 2.0 ** (self.width - 1 - self.frac_bits))

    @property
    def edge(self) -> Real:
        """What stands for infinity in comparisons and bounds: above all values, and its difference to them has room."""
        return -self.least * (255 / 256 if self.width == 64 else 1 / 2)

    # ---- in the clear
    def placeholder(
        self, name: str, shape: Sequence[int], owner: str, integer: bool = False, small: bool = False
    ) -> Value:
        """A parameter, buffer or input of the model, as its owner has it. `small`: see Captured."""
        attrs = {"name": name, **_whole(integer), **({"small": True} if small else {})}
        phase = "run" if name.startswith("input:") else "load"
        node = self.graph.add("placeholder", shape=shape, form="float", owner=owner, attrs=attrs, phase=phase)
        return self._value(node, integer)

    def float(self, target: Callable, *args, shape: Sequence[int], integer: bool = False, **kwargs) -> Value:
        """A computation by the one party that owns all its operands (or by everybody)."""
        operands = values_in([args, kwargs])
        owner = common_owner(operands)
        if owner is None:
            raise CannotLower("operands belong to different parties")
        in_run = {"run": True} if self.in_run and owner == PUBLIC else {}
        whole = (target, repr((args, kwargs)), tuple(shape), integer, bool(in_run))
        key = whole if _is_repeatable(target, args, kwargs) else None
        if key in self.made:
            return self._value(self.graph[self.made[key]], integer)
        name = getattr(target, "__name__", "") if callable(target) and "::" not in str(target) else str(target)
        attrs = {"target": name or str(target), "args": describe(args), "kwargs": describe(kwargs), **_whole(integer)}
        attrs |= in_run
        phase = phase_of([self.graph[v.id] for v in operands], attrs)
        node = self.graph.add("float", [v.id for v in operands], shape, "float", owner=owner, attrs=attrs, phase=phase)
        self.calls[node.id] = FloatCall(target, args, kwargs)
        if key:
            self.made[key] = node.id
        return self._value(node, integer)

    def pointwise(self, target: Callable, *args) -> Value:
        """A float computation whose shape follows from broadcasting its operands."""
        shape = torch.broadcast_shapes(*[v.shape for v in values_in(args)])
        return self.float(target, *args, shape=shape)

    def constant(self, value: torch.Tensor) -> Value:
        """A public constant of the program; whole numbers have no fractional bits."""
        kept = {"dtype": value.dtype} if value.dtype == torch.float64 else {}
        return self.float(torch.tensor, value.tolist(), shape=value.shape, integer=is_whole(value.dtype), **kept)

    def known(self, arg: Any) -> Any:
        """The tensors of public values in a nest of lists, tuples and dicts, from constants of the program alone.

        Raises CannotLower for values that only inputs or weights give.
        """
        return mapped(arg, Value, self._known)

    def _known(self, value: Value) -> Any:
        if (known := self.constants.get(value.id)) is not None:
            return known
        if value.id not in self.calls:
            raise CannotLower(
                "values that are not known when the model is compiled",
                "write them as constants in the model's code, not as weights, buffers or inputs",
            )
        call = self.calls[value.id]
        return call.target(*self.known(call.args), **self.known(call.kwargs))

    def public(self, x: Value) -> torch.Tensor | None:
        """The tensor of a public constant of the program; None for everything else. Raises CannotLower for NaN in it."""
        if x.owner != PUBLIC or not x.sized:
            return None
        if x.id not in self.constants:
            try:
                self.constants[x.id] = torch.as_tensor(self._known(x))
            except (CannotLower, RuntimeError, IndexError):  # what cannot be computed is told when it runs
                self.constants[x.id] = None
        made = self.constants[x.id]
        if made is not None and made.is_floating_point() and bool(made.isnan().any()):
            raise CannotLower("NaN among secrets, which are all numbers", _NO_NAN)
        return made

    def is_placeholder(self, x: Value) -> bool:
        """Whether a value is a parameter, buffer or input itself."""
        return self.graph[x.id].op == "placeholder"

    def finite(self, x: Value, flipped: bool = False) -> Value:
        """A float to be added to secrets, or to stand beside them: an infinite or huge number means g.forbidden, or its
        opposite. `flipped`: what is subtracted.

        Numbers from `least` down count as minus infinity, as masks have them; others where the ring has no room.
        """
        if x.secret or x.integer:
            return x
        low, high = (-self.most, -self.least) if flipped else (self.least, self.most)
        known = self.public(x)
        if known is not None and bool(((known > low) & (known < high)).all()):
            return x
        return self.infinite(self.float(_finite, x, low, high, -self.forbidden, shape=x.shape))

    def infinite(self, x: Value) -> Value:
        """Notes that numbers of x, and of what is made of it, may stand for infinity: forbidden, or its opposite."""
        self.notes["infinite", x.id] = True
        return x

    def may_be_infinite(self, x: Value) -> bool:
        """Whether x is made of numbers that `infinite` noted."""
        open_, seen = [x.id], {x.id}
        while open_:
            node = self.graph[open_.pop()]
            if ("infinite", node.id) in self.notes:
                return True
            args = [a for a in node.args if node.op in _KEEPING and a not in seen]
            open_ += args
            seen.update(args)
        return False

    def bound(self, x: Value) -> Value:
        """A float to compare with: infinite and huge numbers become `edge`, which no value reaches."""
        known = self.public(x)
        if x.secret or x.integer or (known is not None and bool((known.double().abs() <= self.edge).all())):
            return x
        return self.float(_bounded, x, self.edge, shape=x.shape)

    def integers(self, value: torch.Tensor) -> Value:
        """A public constant of whole numbers."""
        return self.constant(value.to(torch.int64))

    def unknown(self, shape: Sequence[int], integer: bool = False) -> Value:
        """A secret that nothing computes: stands for the result of an operator without a secure version."""
        return self._value(self.graph.add("unknown", shape=shape), integer)

    # ---- for those who look at values in the clear (securemodel.compare); no part of the program
    def domain(self, x: Value, low: Real, high: Real, what: str, or_zero: bool = False) -> None:
        """Notes that the function `what` is meaningless unless x is in [low, high), or 0 with `or_zero`."""
        self._mark(x, Mark(what, self.source, low, high, or_zero))

    def wraps(self, x: Value) -> Value:
        """Notes that x, and what is made of it, may leave the ring: a `select` leaves it out where it does."""
        self._mark(x, Mark(WRAPS, self.source, -math.inf, math.inf))
        return x

    def among(self, x: Value) -> Value:
        """Notes that x, a sum, is one of the numbers that its first operand is some of: no larger than the largest of them."""
        self._mark(x, Mark(AMONG, self.source, -math.inf, math.inf))
        return x

    def tabled(self, x: Value, table: str) -> None:
        """Notes that x is read of the table of this number and function."""
        self._mark(x, Mark(TABLED, table, -math.inf, math.inf))

    def computes(self, x: Value, name: str) -> None:
        """Notes that x is the value of the captured operator `name`, if it is not that of an earlier one."""
        if all(mark.low is not None for mark in self.graph[x.id].marks):
            self._mark(x, Mark(name, self.source))

    def _mark(self, x: Value, mark: Mark) -> None:
        self.graph[x.id].marks += (mark,)

    def permute(self, x: Value, positions: Value) -> Value:
        """Rows of x at different positions that one other party gives."""
        node = self._secret("permute", [positions, x], (*positions.shape, *x.shape[1:]))
        return self._value(node, x.integer)

    def client_input(self, name: str, shape: Sequence[int], integer: bool = False) -> Value:
        """An input of the model that nobody has: each party gets a share of it from a client."""
        return self._value(
            self.graph.add("client_input", shape=shape, attrs={"name": name, **_whole(integer)}), integer
        )

    def clamped(self, x: Value, low: Real, high: Real) -> Value:
        """x within [low, high], for whole units of fixed point low < high and every element of the ring, also large ones.

        With y = x - low and w = high - low, of the ring, [y >= 0] y + [y >= 0 and w - y < 0] (w - y) is y where that is
        within 0 .. w, w where it is larger, and 0 where it is negative: where y >= 0, w - y does not wrap.
        """
        row = lambda value: self.reshape(value, (1, *value.shape))
        y = self.offset(x, -low)
        both = self.linear("cat", row(y), row(self.offset(self.scale(y, -1), high - low)), dim=0)
        not_below, above = ((0, True), (0, True)), ((0, True), (1, False))
        chosen = self.select(self.all_of(self.is_negative(both), [not_below, above]), both)
        return self.offset(self.linear("sum", chosen, dims=[0], keepdim=False), low)

    # ---- from one run to the next
    def state(self, name: str, start: Value, frac: int, large: bool = False) -> Value:
        """What the last run kept under a name, with `frac` fractional bits; in the first run, `start` (a float).

        `large`: see Kept.
        """
        frac = 0 if start.integer else frac
        attrs = {"name": name, "frac": frac, "start": True}
        self.graph.add("keep", [start.id], start.shape, attrs=attrs, phase="load")
        reads = {"name": name, "frac": frac, "large": large}
        return self._value(self.graph.add("state", shape=start.shape, attrs=reads), start.integer)

    def keep(self, name: str, state: Value, new: Value) -> None:
        """Hands a value to the next run, which reads it as the state of that name. Raises CannotLower for another shape."""
        if new.shape != state.shape or new.integer != state.integer:
            reason = f"the state {name!r} would change from {list(state.shape)} to {list(new.shape)}, or its type"
            raise CannotLower(reason, "keep a value of the same shape and type")
        attrs = {"name": name, "frac": self.graph[state.id].attrs["frac"], "start": False}
        self.graph.add("keep", [new.id], new.shape, attrs=attrs)

    # ---- linear
    def linear(self, kind: str, *operands: Value, **attrs) -> Value:
        """A linear operation of protocols.linear; infinite and huge constants are taken as `finite` says."""
        operands = tuple(v if self.public(v) is None else self.finite(v, kind == "sub" and at == 1)
                         for at, v in enumerate(operands))  # fmt: skip
        return self._linear(kind, *operands, **attrs)

    def _linear(self, kind: str, *operands: Value, **attrs) -> Value:
        shape = linear_shape(kind, [v.shape for v in operands], attrs)
        node = self._secret("linear", operands, shape, kind=kind, attrs=attrs)
        return self._value(node, all(v.integer for v in operands))

    def add(self, x: Value, y: Value) -> Value:
        return self.linear("add", x, y)

    def sub(self, x: Value, y: Value) -> Value:
        return self.linear("sub", x, y)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        return x if tuple(shape) == x.shape else self.linear("reshape", x, shape=[int(s) for s in shape])

    def slice(self, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
        return self.linear("slice", x, dim=dim, start=start, stop=stop, step=step)

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        return x if tuple(shape) == x.shape else self.linear("expand", x, shape=[int(s) for s in shape])

    def expanded(self, x: Value, shape: Sequence[int]) -> Value:
        """An owner's float, loaded once, with the rows of a run."""
        attrs = {"shape": [int(s) for s in shape]}
        return self._value(self._secret("linear", [x], shape, kind="expand", attrs=attrs, run=True), x.integer)

    # ---- products
    def bilinear(self, kind: str, x: Value, y: Value, **attrs) -> Value:
        """A product of protocols.bilinear; operands secret or owned. Raises CannotLower for infinite or huge constants."""
        for known in (self.public(x), self.public(y)):
            if known is not None and not bool((known.double().abs() <= self.most).all()):
                raise CannotLower("a product with an infinite or huge constant", SMALLER)
        first, second = (torch.empty(v.shape, dtype=torch.int64, device="meta") for v in (x, y))
        shape = bilinear_shape(kind, first, second, attrs)
        node = self._secret("bilinear", [x, y], shape, kind=kind, attrs=attrs)
        return self._value(node, x.integer and y.integer)

    def mul(self, x: Value, y: Value) -> Value:
        return self.bilinear("mul", x, y)

    def square(self, x: Value) -> Value:
        return self._value(self._secret("square", [x], x.shape), x.integer)

    def scale(self, x: Value, factor: Real | Value) -> Value:
        """Product with a number: that of an owner is a Value; with a public one exact for integers and powers of two, else
        rounded (passes.scales.dyadic). Raises CannotLower for one that is not finite.
        """
        if isinstance(factor, Value):
            return self.mul(x, factor)
        factor = float(factor)
        if not math.isfinite(factor):
            raise CannotLower(f"the factor {factor}", SMALLER)
        base, small, added = self.notes.get(("affine", x.id), (x, 1.0, 0.0))
        if small < _SMALL and abs(factor) > 1 and not added:  # what a small factor left out is needed
            return self.scale(base, small * factor)
        if factor == int(factor) and abs(factor) < 2**15:
            return x if factor == 1 else self.linear("scale", x, factor=int(factor))
        made = self._value(self._secret("factor", [x], x.shape, factor=factor), x.integer and factor.is_integer())
        if factor > 0 and not x.integer:
            self.notes["affine", made.id] = x, factor, 0.0
        return made

    def ldexp(self, x: Value, bits: int, most: Real | None = None) -> Value:
        """x 2^bits, free of error and of cost: the same number in the ring, with other fractional bits.

        `most`: what the magnitude of the result is at most, proven for all that a lowering function promises to be right for;
        a truncation of it then looks at no more bits.
        """
        attrs = {"bits": bits, **({} if most is None else {"most": most})}
        return self._value(self._secret("ldexp", [x], x.shape, **attrs)) if bits or most is not None else x

    def offset(self, x: Value, number: Real | Value) -> Value:
        """Sum with a public number; one that is infinite or too large for the ring means `forbidden`, or its opposite."""
        if isinstance(number, Value):
            return self.add(x, number)
        if number == 0:
            return x
        if not abs(number) <= self.most:
            number = math.nan if math.isnan(number) else math.copysign(self.forbidden, number)
        if x.integer and float(number).is_integer():
            return self.add(x, self.integers(torch.tensor(int(number))))
        made = self._linear("add", x, self.float(torch.tensor, float(number), dtype=torch.float64, shape=()))
        if x.secret and not x.integer:
            self.notes["affine", made.id] = x, 1.0, float(number)
        return made

    # ---- comparison
    def rescale(self, x: Value, double: bool = False, bounded: bool = False) -> Value:
        """The same value with at most the program's frac_bits, or twice as many: a truncation where products left more.

        `bounded`: truncated also where it has no more, so that it is below 2^(65 - frac_bits) in the ring whatever x is.
        """
        attrs = {name: True for name, wanted in (("double", double), ("bounded", bounded)) if wanted}
        return self._value(self._secret("rescale", [x], x.shape, **attrs), x.integer)

    def is_negative(self, x: Value, below: int | None = None, grid_bits: int | None = None) -> Value:
        """The secret bit x < 0 of each element; where -2^below <= x < 2^below is known, of as many bits as that needs.

        With fast rounding and `grid_bits`, x may count as not negative if it is above -2^-grid_bits.
        """
        attrs = {} if below is None else {"below": below}
        if grid_bits is not None and not self.exact:
            attrs["grid_bits"] = grid_bits
        return self._value(self._secret("is_negative", [x], x.shape, "bit", **attrs))

    def floor_or_above(self, x: Value, step_bits: int = 0) -> Value:
        """A whole number next to x 2^step_bits: its floor or, where it is not whole itself, one more.

        The nearest one where rounding is exact, else either at random.
        """
        return self._value(self._secret("index", [x], x.shape, step_bits=step_bits), integer=True)

    def floor(self, x: Value, step_bits: int = 0) -> Value:
        """The floor of x 2^step_bits for x rounded to frac_bits, where rounding is exact."""
        return self._value(self._secret("index", [x], x.shape, step_bits=step_bits, floor=True), integer=True)

    def either(self, x: Value, y: Value) -> Value:
        """The exclusive or of two secret bits; local."""
        return self._value(self._secret("either", [x, y], x.shape, "bit"))

    def all_of(self, bits: Value, terms: Sequence[Sequence[tuple[int, bool]]]) -> Value:
        """For each term, the secret bit that all its bits are set; one opening.

        A term names 2 to 7 positions of the first axis of `bits`, each with whether the opposite is meant.
        """
        attrs = {"size": math.prod(bits.shape[1:]), "terms": [[list(factor) for factor in term] for term in terms]}
        return self._value(self._secret("all_of", [bits], (len(terms), *bits.shape[1:]), "bit", **attrs))

    def select(self, bit: Value, x: Value, invert: bool = False) -> Value:
        """bit * x, or (1 - bit) * x with `invert`."""
        return self._value(self._secret("select", [bit, x], x.shape, invert=invert), x.integer)

    def bit_to_ring(self, bit: Value, invert: bool = False) -> Value:
        """The bit as an integer 0 or 1."""
        node = self._secret("bit_to_ring", [bit], bit.shape, invert=invert, shape=list(bit.shape))
        return self._value(node, integer=True)

    def sign(self, x: Value, or_zero: bool = False) -> Value:
        """The secret bit x < 0, or x <= 0, for x rounded as `rescale` does; a truncation of x shares its digits."""
        node = self.graph[x.id]
        source = Value(node.args[0], x.shape) if node.op == "rescale" else x
        return self._value(self._secret("is_negative", [source], x.shape, "bit", rounded=True, or_zero=or_zero))

    def relu(self, x: Value, or_zero: bool = True) -> Value:
        """max(x, 0): one sign, one select of the truncated value; both use the same opening.

        The sign is `sign(x, or_zero)`, of which the gradient is made: 0 at 0 or, without `or_zero`, 1. The result is zero
        where x is not above zero.
        """
        bit = self.sign(x, or_zero)
        made = self.select(bit, self.rescale(x), invert=True)
        if or_zero:
            self.made[_key("is_negative", [made], {"rounded": True, "or_zero": True})] = bit.id
        return made

    def unit(self, index: Value, size: int) -> Value:
        """[index = v] for v = 0 .. size - 1 in a new last axis; size is a power of two, the index is a whole number."""
        return self._value(self._secret("unit", [index], (*index.shape, size), size=size), integer=True)

    def spline(self, z: Value, made: Pieces, step_bits: int) -> Value:
        """A piecewise polynomial of z, periodic: the value has `made.frac` fractional bits.

        With h = 2^-step_bits and exact rounding, piece j is for z in [2 j h, 2 (j + 1) h) and reads t = z - (2 j + 1) h.
        Else the pieces stand around PARTS times as many centers; which of them is read, and t, are in the opening of z.
        """
        attrs: dict[str, Any] = {"table": [list(row) for row in made.rows]}
        if self.exact:
            step = 2.0**-step_bits
            index = self.floor(z, step_bits - 1)
            t = self.offset(self.sub(self.rescale(z), self.scale(index, 2 * step)), -step)
            operands = [index, t]
        else:
            size = len(made.rows[0]) // PARTS
            t = self._value(self._secret("window", [z], z.shape, step_bits=step_bits, size=size))
            operands, attrs["cuts"] = [t], list(made.cuts or ())
        coefficients = self._value(self._secret("lookup", operands, (3, *z.shape), **attrs))
        rows = [self.slice(coefficients, 0, i, i + 1) for i in range(3)]
        rest = {"frac": made.frac, "shifts": list(made.shifts), "drop": made.drop, "step_bits": step_bits}
        return self._value(self._secret("spline", [*rows, t, coefficients], z.shape, **rest))

    def maximum(self, x: Value, y: Value) -> Value:
        """max(x, y) = y + [x - y >= 0] (x - y)."""
        difference = self.sub(x, y)
        return self.add(y, self.select(self.is_negative(difference), difference, invert=True))

    def minimum(self, x: Value, y: Value) -> Value:
        """min(x, y) = y + [x - y < 0] (x - y)."""
        difference = self.sub(x, y)
        return self.add(y, self.select(self.is_negative(difference), difference))


def bilinear_shape(kind: str, x: torch.Tensor, y: torch.Tensor, attrs: dict) -> torch.Size:
    """Shape of a product, from torch's own operators on the meta device."""
    if kind == "mul":
        return torch.broadcast_shapes(x.shape, y.shape)
    return real_bilinear(kind, x.float(), y.float(), attrs).shape
