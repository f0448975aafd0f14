"""The operators of a program as one table, and the check of a program against it.

A row says what an operator reads, what attributes it has, and how the shape and the fractional bits of its result
follow from its operands; `verify` derives them for every node and compares. So a text from outside (a file, a party) can
state nothing that the compiler would not have made: what runs it later, down to the kernels, gets sizes that fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch

from protocols import linear
from protocols.errors import explain
from protocols.gates import GATES, dealt_bytes, numel
from protocols.gates.beyond import BITS as BEYOND_BITS
from protocols.gates.beyond import MAX_CHECKS
from protocols.gates.conjunction import MAX_FAN_IN
from protocols.gates.sign import digit_count, groups, layer_of, leaf_planes, opened_planes
from protocols.gates.unit import MAX_BITS
from protocols.kernels import PARTS
from protocols.kernels.checks import TABLE_SIZES
from protocols.names import EVERYBODY, NAME_RULE, PUBLIC, is_name
from protocols.shares import RING_BITS, words
from securemodel.compiler.builder import bilinear_shape
from securemodel.compiler.ir import ROUNDINGS, Graph, Header, Node, Phase, phase_of
from securemodel.compiler.owners import owner_of, weight_owners
from securemodel.compiler.positions import TABLE
from securemodel.errors import ProgramError

ELEMENT_BYTES = 8
MAX_PROGRAM_BYTES = 64 << 30
"""What the values of a program, and what is dealt for them, may take by default."""
_MAX_NUMEL = ((1 << 63) - 1) // ELEMENT_BYTES
_MAX_STEP = (1 << 31) - 1
_MAX_AXES = 16
_MAX_FRAC = 128
_DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    "complex64", "complex128",
)  # fmt: skip

Shape = tuple[int, ...]


class Wrong(Exception):
    """What is wrong with a node; `verify` adds where."""


@dataclass(frozen=True)
class Made:
    """What follows from the operands: shape, fractional bits (None: it has none), bytes of memory used beside the result."""

    shape: Shape
    frac: int | None = None
    beside: int = 0


@dataclass(frozen=True)
class Case:
    """A node in its program."""

    node: Node
    xs: tuple[Node, ...]
    header: Header

    @property
    def attrs(self) -> dict[str, Any]:
        return self.node.attrs


# ---- attributes
Check = Callable[[Any], bool]


def whole(low: int, high: int) -> Check:
    """An integer from low to high."""
    return lambda value: type(value) is int and low <= value <= high


def one_of(*values: Any) -> Check:
    return lambda value: any(type(value) is type(v) and value == v for v in values)


def many(check: Check, least: int = 0) -> Check:
    """A list of such values."""
    return lambda value: type(value) is list and len(value) >= least and all(map(check, value))


def flag(value: Any) -> bool:
    return type(value) is bool


def text(value: Any) -> bool:
    return type(value) is str


def anything(value: Any) -> bool:
    return True


INTEGER = whole(-(1 << 63), (1 << 63) - 1)
AXIS, PLACE, STEP = whole(0, _MAX_AXES - 1), whole(0, _MAX_NUMEL), whole(1, _MAX_STEP)
AXES, PLACES = many(AXIS), many(PLACE)
GAP = whole(0, _MAX_STEP)


def check_attrs(attrs: Any, checks: Mapping[str, Check], optional: Mapping[str, Check], what: str = "") -> None:
    """Raises Wrong unless these are the attributes, each as it has to be."""
    if not isinstance(attrs, dict) or not checks.keys() <= attrs.keys() <= {*checks, *optional}:
        given = sorted(attrs) if isinstance(attrs, dict) else attrs
        raise Wrong(f"{what}the attributes are {', '.join(checks) or 'none'}, not {given!r:.100}")
    for name, value in attrs.items():
        if not (checks.get(name) or optional[name])(value):
            raise Wrong(f"{what}{name} cannot be {value!r:.100}")


# ---- shapes
def sized(shape: Sequence[int], what: str = "the result") -> Shape:
    """The shape of a tensor whose bytes a 64-bit number counts. Raises Wrong."""
    if len(shape) > _MAX_AXES or min(shape, default=0) < 0 or numel(shape) > _MAX_NUMEL:
        raise Wrong(f"{what} would have the shape {list(shape)!r:.100}, which is no size of a tensor")
    return tuple(shape)


def _meta(shape: Shape) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


def by_torch(function: Callable[..., Shape], *args: Any, **attrs: Any) -> Shape:
    """A shape that torch computes. Raises Wrong where it refuses."""
    try:
        return tuple(function(*args, **attrs))
    except (RuntimeError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise Wrong(str(error).splitlines()[0][:200]) from None


def _axis(case: Case, key: str = "dim") -> int:
    """The size of the axis that an attribute names."""
    shape, dim = case.xs[0].shape, case.attrs["attrs"][key]
    if dim >= len(shape):
        raise Wrong(f"there is no axis {dim} in {list(shape)}")
    return shape[dim]


def _within(case: Case, size: int, *names: str) -> None:
    lists = [case.attrs["attrs"][name] for name in names]
    if len({len(places) for places in lists}) > 1 or any(max(places, default=0) > size for places in lists):
        raise Wrong(f"{' and '.join(names)} are no places on an axis of {size}")


def _guard_indices(*names: str, beyond: int = 0) -> Callable[[Case], None]:
    """Places on one axis, the same number in each list; `beyond`: also the end of the axis."""
    return lambda case: _within(case, _axis(case) - 1 + beyond, *names)


def _guard_slice(case: Case) -> None:
    _axis(case)


def _guard_dims(case: Case) -> None:
    dims = case.attrs["attrs"]["dims"]
    if len(set(dims)) != len(dims) or max(dims, default=-1) >= len(case.xs[0].shape):
        raise Wrong(f"{dims} are not different axes of {list(case.xs[0].shape)}")


def _guard_shape(case: Case) -> None:
    sized([max(size, 1) for size in case.attrs["attrs"]["shape"]])


def _guard_pads(case: Case) -> None:
    shape, pads = list(case.xs[0].shape), case.attrs["attrs"]["pads"]
    if len(pads) % 2 or len(pads) > 2 * len(shape):
        raise Wrong(f"{len(pads)} numbers cannot pad {len(shape)} axes")
    for axis, (low, high) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        shape[-1 - axis] += low + high
    sized(shape)


@dataclass(frozen=True)
class Kind:
    """A kind of linear operator: how many operands, attributes, what is checked before torch is asked."""

    operands: int
    attrs: Mapping[str, Check] = field(default_factory=dict)
    guard: Callable[[Case], None] = lambda case: None
    optional: Mapping[str, Check] = field(default_factory=dict)


_BITS = whole(-_MAX_FRAC, _MAX_FRAC)
KINDS = {
    "add": Kind(2),
    "sub": Kind(2),
    "neg": Kind(1),
    "scale": Kind(1, {"factor": INTEGER}, optional={"bits": _BITS}),
    "ldexp": Kind(1, {"bits": _BITS}),
    "reshape": Kind(1, {"shape": many(whole(-1, _MAX_NUMEL))}, _guard_shape),
    "permute": Kind(1, {"dims": AXES}, _guard_dims),
    "expand": Kind(1, {"shape": PLACES}, _guard_shape),
    "slice": Kind(1, {"dim": AXIS, "start": PLACE, "stop": PLACE, "step": STEP}, _guard_slice),
    "index_sub": Kind(1, {"dim": AXIS, "plus": PLACES, "minus": PLACES}, _guard_indices("plus", "minus")),
    "flip": Kind(1, {"dims": AXES}, _guard_dims),
    "index": Kind(1, {"dim": AXIS, "index": PLACES}, _guard_indices("index")),
    "cat": Kind(-1, {"dim": AXIS}, _guard_slice),
    "pad": Kind(1, {"pads": many(whole(-_MAX_STEP, _MAX_STEP))}, _guard_pads),
    "sum": Kind(1, {"dims": AXES, "keepdim": flag}, _guard_dims),
    "window_sum": Kind(1, {"dim": AXIS, "starts": PLACES, "ends": PLACES}, _guard_indices("starts", "ends", beyond=1)),
}
"""What protocols.linear.LINEAR takes; -1: one operand or more."""


def linear_shape(case: Case) -> Shape:
    """The shape of a linear operator's result. Raises Wrong."""
    name, attrs = case.attrs["kind"], case.attrs["attrs"]
    kind, shapes = KINDS[name], [x.shape for x in case.xs]
    if len(shapes) != kind.operands and kind.operands >= 0:
        raise Wrong(f"{name} has {kind.operands} operands, not {len(shapes)}")
    check_attrs(attrs, kind.attrs, kind.optional, f"{name}: ")
    kind.guard(case)
    return sized(by_torch(linear.linear_shape, name, shapes, attrs))


def _linear(case: Case) -> Made:
    shape = linear_shape(case)
    return Made(shape, same_frac(case) + case.attrs["attrs"].get("bits", 0))


def broadcast(x: Shape, y: Shape) -> Shape:
    return x if x == y else sized(by_torch(torch.broadcast_shapes, x, y))


def frac_of(x: Node) -> int:
    """The fractional bits of an operand. Raises Wrong where it has none."""
    if x.frac is None:
        raise Wrong(f"its operand %{x.id} has no fractional bits")
    return x.frac


def same_frac(case: Case) -> int:
    """The fractional bits that all operands have. Raises Wrong where they differ."""
    fracs = {frac_of(x) for x in case.xs}
    if len(fracs) != 1:
        raise Wrong(f"its operands have different fractional bits: {', '.join(str(f) for f in fracs)}")
    return fracs.pop()


# ---- products
def _conv(transposed: bool, axes: int) -> dict[str, Check]:
    one = lambda check: check if axes == 1 else lambda value: many(check)(value) and len(value) == axes
    attrs = {"stride": one(STEP), "padding": one(GAP), "dilation": one(STEP), "groups": STEP}
    return {**attrs, "output_padding": one(GAP)} if transposed else attrs


PRODUCTS: dict[str, dict[str, Check]] = {
    "mul": {},
    "matmul": {},
    "conv1d": _conv(False, 1),
    "conv2d": _conv(False, 2),
    "conv_transpose1d": _conv(True, 1),
    "conv_transpose2d": _conv(True, 2),
}
"""What protocols.bilinear.BILINEAR takes."""


def product_shape(kind: str, attrs: dict[str, Any], x: Shape, y: Shape) -> tuple[Shape, int]:
    """The shape of a product, and the bytes of a padded image beside it. Raises Wrong."""
    check_attrs(attrs, PRODUCTS[kind], {}, f"{kind}: ")
    if kind == "mul":
        return broadcast(x, y), 0
    beside = _image(kind, attrs, x, y) if kind != "matmul" else ()
    if kind == "matmul" and min(len(x), len(y)) < 2:
        raise Wrong(f"matmul of {list(x)} and {list(y)}: both have two axes or more")
    meta = [_meta(shape) for shape in (x, y)]
    return sized(by_torch(bilinear_shape, kind, *meta, attrs)), ELEMENT_BYTES * numel(beside) if beside else 0


def _image(kind: str, attrs: dict[str, Any], x: Shape, y: Shape) -> Shape:
    """The image that a convolution reads, with its padding, and for a transposed one with zeros between its elements."""
    axes = 1 if kind.endswith("1d") else 2
    if len(x) != axes + 2 or len(y) != axes + 2:
        raise Wrong(f"{kind} of {list(x)} by {list(y)}: both have {axes + 2} axes")
    groups = attrs["groups"]  # torch's meta device lets wrong numbers of channels pass
    if x[1] != (y[0] if "transpose" in kind else y[1] * groups) or y[0] % groups:
        raise Wrong(f"{kind} of {list(x)} by {list(y)}: the channels do not fit with groups={groups}")
    each = lambda name: [attrs[name]] if axes == 1 else attrs[name]
    if "transpose" in kind:
        rooms = zip(each("output_padding"), each("stride"), each("dilation"), strict=True)
        if any(more >= max(step, gap) for more, step, gap in rooms):
            raise Wrong(f"{kind}: output_padding is below the stride or the dilation")
    sides = []
    for size, taps, step, pad, gap in zip(x[2:], y[2:], each("stride"), each("padding"), each("dilation"), strict=True):
        spread = (size - 1) * step + 1 + 2 * gap * (taps - 1) if "transpose" in kind else size + 2 * pad
        sides.append(spread + (step if "transpose" in kind else 0))
    return sized((*x[:2], *sides), f"the padded image of {kind}")


def _bilinear(case: Case) -> Made:
    x, y = case.xs[::-1] if case.attrs.get("swapped") else case.xs
    shape, beside = product_shape(case.attrs["kind"], case.attrs["attrs"], x.shape, y.shape)
    return Made(shape, frac_of(x) + frac_of(y), beside)


def _owned_layer(case: Case) -> Made:
    x, y = case.xs
    shape, beside = product_shape(case.attrs["kind"], case.attrs["attrs"], x.shape, y.shape)
    if case.attrs["kind"] == "matmul" and len(y.shape) != 2:
        raise Wrong("the weights of a layer are a matrix")
    read = numel(y.shape[:-1] if case.attrs["kind"] == "matmul" else y.shape[1:])
    places = sized((read, numel(shape)), "the table of what a layer reads")
    return Made(shape, frac_of(x) + case.attrs["weight_frac"], beside + ELEMENT_BYTES * numel(places))


# ---- gates on bits
def _digits(case: Case) -> Made:
    low_bits = case.attrs["low_bits"]
    _one_each(case, "shift", "offset", *(("of",) if "of" in case.attrs else ()))
    of = case.attrs.get("of", [])
    for at, first in enumerate(of):
        if first > at or of[first] != first or case.xs[first].shape != case.xs[at].shape:
            raise Wrong(f"operand {at} shares the digits of {first}, which has none of its own or another shape")
    for shift in case.attrs["shift"]:
        if not 1 <= shift + low_bits <= RING_BITS:
            raise Wrong(f"bits {shift} to {shift + low_bits - 1} are not within {RING_BITS}")
    return Made((leaf_planes(digit_count(low_bits)), _words(case)))


def _top_bit(case: Case) -> Made:
    _one_each(case, "bit", "offset")
    return Made((1, _words(case)))


def _one_each(case: Case, *names: str) -> None:
    if any(len(case.attrs[name]) != len(case.xs) for name in names):
        raise Wrong(f"{' and '.join(names)} have one number for each of {len(case.xs)} operands")


def _words(case: Case) -> int:
    return sum(words(numel(x.shape)) for x in case.xs)


def _combine(case: Case) -> Made:
    (digits, apart), (opened, width), planes = layer_of(case.attrs), _planes(case.xs[0]), case.xs[1].shape
    if planes != (leaf_planes(digits), width):
        raise Wrong(f"{digits} digits are {leaf_planes(digits)} planes of {width} words, not {list(planes)}")
    wanted = len(_layer(digits, apart))
    if opened != wanted:
        raise Wrong(f"{wanted} planes of {digits} digits with {apart} apart are opened, not {opened}")
    return Made((leaf_planes(len(groups(digits, apart))), width))


def _layer(digits: int, apart: int) -> tuple[int, ...]:
    """The planes that a layer opens. Raises Wrong where there is nothing to combine."""
    opened = opened_planes(digits, apart) if apart < digits else ()
    if not opened:
        raise Wrong(f"with {apart} of {digits} digits apart there is nothing to combine")
    return opened


def _mask_bits(case: Case) -> Made:
    """All planes or, of digits, those that the layer opens."""
    if "digits" not in case.attrs:
        return _same(case)
    (digits, apart), (planes, width) = layer_of(case.attrs), _planes(case.xs[0])
    if planes != leaf_planes(digits):
        raise Wrong(f"{digits} digits are {leaf_planes(digits)} planes, not {planes}")
    return Made((len(_layer(digits, apart)), width))


def _part(case: Case) -> Made:
    planes, width = _planes(case.xs[0])
    row, start = case.attrs["row"], case.attrs["start"]
    rows, count = _planes(case.node)
    if rows != 1 or row >= planes or start + count > width:
        raise Wrong(f"{count} words from {start} on in row {row} are not within {[planes, width]}")
    return Made((1, count))


def _truncate(case: Case, *others: Node) -> Made:
    """A truncation of the first operand that is masked, with the carry as last operand where rounding is exact."""
    x, exact = case.xs[len(others)], case.header.rounding == "exact"
    if exact != ("offset" in case.attrs) or exact != (len(case.xs) - len(others) == 2):
        raise Wrong(f"rounding is {case.header.rounding}: with an offset and a carry it is exact, without them fast")
    if case.attrs.get("modulo", RING_BITS) < case.attrs["bits"] + 2:
        raise Wrong(f"{case.attrs['modulo']} bits are too few to be truncated by {case.attrs['bits']}")
    if exact:
        _one_plane(case.xs[-1], numel(x.shape))
        if case.attrs["offset"] >= 1 << case.attrs["bits"]:
            raise Wrong(f"an offset of {case.attrs['offset']} is more than {case.attrs['bits']} bits round")
    return Made(x.shape, frac_of(x) - case.attrs["bits"])


def _shift(case: Case) -> Made:
    """An opening without its low bits; `verify` looks whether no more of it are read than are right."""
    if case.header.rounding == "exact":
        raise Wrong("with exact rounding, no value depends on masks")
    return Made(case.xs[0].shape, frac_of(case.xs[0]) - case.attrs["bits"])


def _planes(bits: Node) -> Shape:
    if len(bits.shape) != 2:
        raise Wrong(f"planes of bits have two axes, not {list(bits.shape)}")
    return bits.shape


def _one_plane(bits: Node, count: int) -> None:
    """Raises Wrong unless these are `count` bits."""
    if bits.shape != (1, words(count)):
        raise Wrong(f"{count} bits are packed as {[1, words(count)]}, not {list(bits.shape)}")


def _conjunction(case: Case) -> Made:
    size, terms = case.attrs["size"], case.attrs["terms"]
    planes, width = _planes(case.xs[0])
    rows = width * RING_BITS // size
    if planes != 1 or words(rows * size) != width:
        raise Wrong(f"{list(case.xs[0].shape)} are no packed rows of {size} bits")
    if len({len(term) for term in terms}) != 1 or any(row >= rows for term in terms for row, _ in term):
        raise Wrong(f"the terms are not of one length, or name other rows than the {rows} there are")
    return Made((1, words(numel(sized((len(terms), size))))))


def _factor(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and PLACE(value[0]) and flag(value[1])


def _term(value: Any) -> bool:
    return many(_factor, 2)(value) and len(value) <= MAX_FAN_IN


def _select(case: Case) -> Made:
    bits, x = case.xs[:2]
    _one_plane(bits, numel(x.shape))
    return _truncate(case, bits) if "bits" in case.attrs else _same_as(x)


def _multiply_truncated(case: Case) -> Made:
    y, x = case.xs[:2]
    if broadcast(y.shape, x.shape) != x.shape:
        raise Wrong(f"the result has the shape of the truncated operand, and {list(y.shape)} does not go with it")
    return Made(x.shape, frac_of(y) + cast(int, _truncate(case, y).frac))


def _same_as(x: Node) -> Made:
    return Made(x.shape, x.frac)


def _beyond(case: Case) -> Made:
    x, sign = case.xs
    _one_plane(sign, numel(x.shape))
    return Made((case.attrs["checks"],), 0)


def _bit_to_ring(case: Case) -> Made:
    shape = sized(case.attrs["shape"])
    _one_plane(case.xs[0], numel(shape))
    return Made(shape, 0)


# ---- tables
def _window(case: Case) -> Made:
    """Some bits of m less those of the mask: next to what the value has there, one more or not as the masks are."""
    if case.header.rounding == "exact":
        raise Wrong("with exact rounding, no value depends on masks")
    if case.attrs["shift"] + case.attrs["bits"] > RING_BITS:
        raise Wrong(f"{case.attrs['bits']} bits from {case.attrs['shift']} up are not within {RING_BITS}")
    return Made(case.xs[0].shape, frac_of(case.xs[0]) - case.attrs["shift"])


def _lookup(case: Case) -> Made:
    table, (index, *t), rest = case.attrs["table"], case.xs, case.attrs.get("rest")
    size = len(table[0]) // (1 if rest is None else PARTS)
    if {len(column) for column in table} != {size * (1 if rest is None else PARTS)} or size not in TABLE_SIZES:
        raise Wrong(
            f"the columns of a table have one length, one of {', '.join(map(str, TABLE_SIZES))}, or {PARTS} times it"
        )
    if (rest is not None) != (index.form == "window") or (rest is None) != ("cuts" not in case.attrs):
        raise Wrong("coefficients around a window have `rest` and `cuts`, and no others do")
    if rest is not None and (index.attrs["bits"] != rest + size.bit_length() - 1 or t or len(table) != 3 or size < 16):
        raise Wrong(f"{index.attrs['bits']} bits are no index of {size} entries, with {rest} bits of t below")
    if t and (t[0].shape != index.shape or len(table) != 3):
        raise Wrong("around a masked t there are three coefficients for each of its elements")
    two = len(case.header.parties) == 2
    if (case.node.op == "lookup") != two:
        raise Wrong(
            f"a program of {len(case.header.parties)} parties reads tables by {'lookup' if two else 'lookup_shared'}"
        )
    return Made(sized((len(table), *case.xs[0].shape)), 0)


def _unit(case: Case) -> Made:
    size = case.attrs["size"]
    if size.bit_count() != 1 or case.xs[0].frac != 0:
        raise Wrong(f"an index is a whole number below a power of two, not below {size}")
    return Made(sized((*case.xs[0].shape, size)), 0)


def position_width(size: int) -> int:
    """How many bits of each of the positions 0 .. size-1 are sent: whole bytes."""
    return -(-max(1, (size - 1).bit_length()) // 8) * 8


def _positions(case: Case) -> Made:
    """Different positions of one axis, of a party that takes part."""
    (positions,), size = case.xs, case.attrs["size"]
    if len(positions.shape) != 1 or positions.shape[0] > size:
        raise Wrong(f"{list(positions.shape)} are no different positions of {size} rows")
    if case.attrs["width"] != position_width(size):
        raise Wrong(f"positions of {size} rows are sent as {position_width(size)} bits, not {case.attrs['width']}")
    return Made(positions.shape, None, ELEMENT_BYTES * 2 * size)


def _permute(case: Case) -> Made:
    """Rows of the second operand, at the positions that the first one hides."""
    order, x = case.xs
    if order.op != "positions" or not x.shape or order.attrs["size"] != x.shape[0]:
        raise Wrong(f"the positions are not of the rows of {list(x.shape)}")
    return Made((*order.shape, *x.shape[1:]), frac_of(x))


def _spline(case: Case) -> Made:
    coefficients, t, signed = case.xs[:3], case.xs[3], case.xs[4:]
    if case.attrs["signed"] != bool(signed) or case.attrs["signed"] != (len(case.header.parties) == 2):
        raise Wrong("a last operand, the sign, is there for two parties, and `signed` says so")
    if any(x.shape != (1, *t.shape) or x.frac != 0 for x in coefficients) or len(case.attrs["shifts"]) != 3:
        raise Wrong(
            f"{[list(x.shape) for x in coefficients]} are not the coefficients of {list(t.shape)}, with a shift each"
        )
    if (t.form == "window") != ("rest" in case.attrs):
        raise Wrong("of a window, and of nothing else, `rest` bits are read")
    if signed and (signed[0].op != "lookup" or signed[0].shape != (3, *t.shape)):
        raise Wrong("the sign is that of a lookup of three coefficients")
    frac_of(t)
    return Made(t.shape, case.attrs["frac"])


# ---- what is brought in and out
def _placeholder(case: Case) -> Made:
    kind, _, name = case.attrs["name"].partition(":")
    if kind != "input":
        return Made(case.node.shape)
    return Made(case.header.input_shapes[_input_index(name, case.header)])


def _input_index(name: str, header: Header) -> int:
    if not re.fullmatch("[0-9]{1,9}", name) or int(name) >= len(header.inputs):
        raise Wrong(f"there is no input {name[:20]!r}")
    return int(name)


def _float(case: Case) -> Made:
    named = sorted(_references([case.attrs["args"], case.attrs["kwargs"]]))
    if named != sorted(f"%{x.id}" for x in case.xs):
        raise Wrong("its arguments name other operands than it has")
    return Made(case.node.shape)


def _references(arg: Any) -> list[str]:
    if isinstance(arg, (list, dict)):
        return [name for part in (arg.values() if isinstance(arg, dict) else arg) for name in _references(part)]
    return [arg] if isinstance(arg, str) and arg.startswith("%") else []


def _encoded(case: Case) -> Made:
    """A float brought into the ring: with fractional bits that the program chooses."""
    return Made(case.xs[0].shape, _encoding_bits(case))


def _encoding_bits(case: Case) -> int:
    """The fractional bits that a float is encoded with, or a client's number is. Raises Wrong."""
    if (frac := case.node.frac) is None or not 0 <= frac <= 62:
        raise Wrong(f"a float cannot be encoded with {frac} fractional bits")
    return frac


def _client_input(case: Case) -> Made:
    """The shares of an input that no party has. Raises Wrong for the input of another."""
    if not case.header.is_stranger(str(_its_giver(case))):
        raise Wrong(f"{case.attrs['name']!r:.100} is no client's")
    return Made(_placeholder(case).shape, _encoding_bits(case))


def _client_output(case: Case) -> Made:
    """Shares of a result for a client, who is no party. Raises Wrong for that of another."""
    if not case.header.is_stranger(_of_output(case)):
        raise Wrong(f"the output {case.attrs['index']} is no client's")
    return _same(case)


def _same(case: Case) -> Made:
    return Made(case.xs[0].shape, case.xs[0].frac)


def _rows(case: Case) -> Made:
    """Some rows of a table that is shared with the weights."""
    table, attrs = case.xs[0], case.attrs
    if table.phase != "load" or attrs["dim"] >= len(table.shape):
        raise Wrong(f"rows are read on an axis of what is loaded, not on axis {attrs['dim']} of {list(table.shape)}")
    count = table.shape[attrs["dim"]]
    if attrs["size"] * attrs["steps"] > count:
        raise Wrong(f"{attrs['steps']} steps of {attrs['size']} rows are more than the {count} there are")
    shape = list(table.shape)
    shape[attrs["dim"]] = attrs["size"]
    return Made(tuple(shape), table.frac, ELEMENT_BYTES * count)


def _equal(case: Case) -> Made:
    if case.xs[0].shape != case.xs[1].shape:
        raise Wrong(f"{list(case.xs[0].shape)} and {list(case.xs[1].shape)} are not alike")
    return _same(case)


# ---- owners
Owner = Callable[[Case], str | None]


def nobody(case: Case) -> None:
    return None


def _its_giver(case: Case) -> str | None:
    kind, _, name = case.attrs["name"].partition(":")
    if kind == "input":
        return case.header.inputs[_input_index(name, case.header)]
    if kind == TABLE and case.node.owner in (*case.header.parties, *case.header.contributors):
        return case.node.owner
    if kind == "state" and (owner := owner_of(case.header.weights, name)) is not None:
        return owner
    raise Wrong(f"{case.attrs['name']!r:.100} is no input, and no weight that somebody owns")


def _common(case: Case) -> str:
    """Who can compute a function of floats: everybody, or the one party that owns them all."""
    owners = {cast(str, x.owner) for x in case.xs} - {PUBLIC}
    if len(owners) > 1:
        raise Wrong(f"its operands are those of {' and '.join(sorted(map(str, owners)))}")
    return owners.pop() if owners else PUBLIC


def _party(case: Case) -> str:
    if (owner := cast(str, case.xs[-1].owner)) == PUBLIC:
        raise Wrong("what everybody knows is not given by a party")
    if case.header.is_stranger(owner):
        raise Wrong("what a client gives enters as shares")
    return owner


def _online_party(case: Case) -> str:
    if (owner := _party(case)) not in case.header.parties:
        raise Wrong(f"{owner} has left, and its positions are not shared before")
    return owner


def _of_public(case: Case) -> None:
    if case.xs[0].owner != PUBLIC:
        raise Wrong(f"what {case.xs[0].owner} owns is not public")


def _weights_owner(case: Case) -> str:
    if case.header.weights != _party(case):
        raise Wrong("its weights are not those of the one party that owns the weights")
    return case.header.weights


def _of_output(case: Case) -> str:
    """Who learns the output that a node has."""
    outputs = case.header.outputs
    if not 0 <= case.attrs["index"] < len(outputs):
        raise Wrong(f"there is no output {case.attrs['index']}")
    return outputs[case.attrs["index"]]


def _receiver(case: Case) -> str:
    """A party, or all of them."""
    if case.header.is_stranger(name := _of_output(case)):
        raise Wrong(f"nobody sends the output {case.attrs['index']}, which is a client's")
    return name


def _state(case: Case) -> Made:
    """`verify` compares it with what is kept."""
    if case.node.frac is None:
        raise Wrong("a state has fractional bits, or 0 of them")
    return Made(case.node.shape, case.node.frac)


# ---- phases
PhaseRule = Callable[[Case], Phase]


def with_operands(case: Case) -> Phase:
    """What depends on weights and public values alone is computed when they are loaded, but for the rows of a run."""
    if case.attrs.get("run") and not _has_rows_of_a_run(case.node):
        raise Wrong("only public values and what is expanded have the rows of a run")
    return phase_of(case.xs, case.attrs)


def _has_rows_of_a_run(node: Node) -> bool:
    return node.owner == PUBLIC if node.op == "float" else node.attrs["kind"] == "expand"


def in_a_run(case: Case) -> Phase:
    """What a run alone gives."""
    return "run"


# ---- the table
Who = frozenset[int | Literal["first"]]


@dataclass(frozen=True)
class Row:
    """An operator.

    `signature` is a pattern of the operands' forms and the result's; `rule` derives the result (raises Wrong); `owner` and
    `phase` derive who computes it and when. `reads(node, i)`: how many low bits of its
    operand i it needs (None, for it or for all: as many as are read of its result). With `may_be_empty`, axes without elements are allowed.
    `held` says who has a share of the result that is not zero: all, its owner, who has such a share of an operand, or
    these and the first party. What is no secret has none.
    `opens` says who sends a part of the value to whom, if the operator talks. `products` are the products that a party
    computes, each with who does: the first party, or whoever has a share of the operand with this index.
    With `view`, the value is the operand's, in memory too. `kept` goes from one run to the next, and `final` is what a
    program is run for, though nothing reads it.
    """

    signature: str
    rule: Callable[[Case], Made]
    attrs: Mapping[str, Check] = field(default_factory=dict)
    optional: Mapping[str, Check] = field(default_factory=dict)
    owner: Owner = nobody
    phase: PhaseRule = with_operands
    reads: Callable[[Node, int], int | None] | None = lambda node, index: RING_BITS
    may_be_empty: bool = False
    held: Literal["all", "owner", "operands", "first"] = "all"
    opens: Literal["owner to all", "all to all", "all to owner"] | None = None
    products: tuple[Who, ...] = ()
    view: bool = False
    kept: bool = False
    final: bool = False


_KIND, _NESTED = {"kind": one_of(*PRODUCTS)}, {"attrs": lambda value: isinstance(value, dict)}
_PRODUCT = {**_KIND, **_NESTED}
_OFFSET, _SHIFT = whole(0, 1 << 60), whole(-(1 << 60), 1 << 60)
_WINDOW = {"shift": many(whole(-63, 63)), "low_bits": whole(1, 66), "offset": many(_SHIFT)}
_CUT, _INVERT, _EXACT = {"bits": whole(1, 61)}, {"invert": flag}, {"offset": _OFFSET}
_FEWER = one_of(*range(8, RING_BITS, 8))
_READ, _SMALL = {"read": _FEWER}, {"modulo": _FEWER}
_ROUNDED = {**_EXACT, **_READ, **_SMALL}
_FIRSTS: Who = frozenset({"first"})
_OF_X: Who = frozenset({0})
_DIGITS, _APART = {"digits": whole(2, 17)}, {"apart": whole(2, 16)}
_TABLE, _REST = {"table": many(many(INTEGER, 1), 1)}, whole(5, 32)
_AROUND = {"rest": _REST, "cuts": lambda value: many(whole(0, 62), 3)(value) and len(value) == 3}
_TAKEN = {"dim": AXIS, "size": STEP, "steps": STEP, "seed": INTEGER, "part": PLACE, "shuffle": flag}
_OWNED = {
    **_NESTED,
    "kind": one_of("matmul", "conv1d", "conv2d"),
    "weight_frac": whole(0, 62),
    "weight_limit": lambda value: type(value) is float and 0 < value <= 2.0**30,
    "key_bits": whole(64, 8192),
    "insecure": flag,
}


def _cut_of(place: int) -> Callable[[Node, int], int | None]:
    """What is read of the operands of a truncation, which is at this place: of it, what shows it whole."""
    return lambda node, index: node.attrs.get("modulo", RING_BITS) if index == place else None


def _index_alone(node: Node, index: int) -> int | None:
    """Of the index of a table 8 bits, of t as many as of the result."""
    return 8 if index == 0 else None


ROWS: dict[str, Row] = {
    # floats, by their owner
    "placeholder": Row(
        "-> float", _placeholder, {"name": text}, {"integer": flag}, _its_giver,
        phase=lambda case: "run" if case.attrs["name"].startswith("input:") else "load", may_be_empty=True, held="operands",
    ),
    "float": Row(
        "(float )*-> float", _float, {"target": text, "args": anything, "kwargs": anything}, {"integer": flag, "run": flag},
        _common,
        may_be_empty=True, held="operands",
    ),
    # into the ring, and out of it
    "encode": Row("float -> public", _encoded, owner=_of_public, may_be_empty=True, held="operands"),
    "own": Row("float -> additive", _encoded, owner=_party, held="owner"),
    "client_input": Row("-> additive", _client_input, {"name": text}, phase=in_a_run),
    "input": Row(
        "float -> masked", _encoded, optional={"width": _FEWER}, owner=_party, held="owner",
        opens="owner to all",
    ),
    "positions": Row(
        "float -> order", _positions, {"size": STEP, "width": one_of(*range(8, 65, 8))}, owner=_online_party, held="owner",
        opens="owner to all",
    ),
    "client_output": Row(
        "additive -> additive", _client_output, {"index": PLACE, "dtype": one_of(*_DTYPES)},
        phase=in_a_run, may_be_empty=True, final=True,
    ),
    "reveal": Row(
        "additive -> float", _same, {"index": PLACE, "dtype": one_of(*_DTYPES)}, {"width": _FEWER}, owner=_receiver,
        phase=in_a_run, reads=lambda node, index: node.attrs.get("width", RING_BITS),
        may_be_empty=True, opens="all to owner", final=True,
    ),
    # forms
    "public_masked": Row("public -> masked", _same, held="operands", view=True),
    "public_additive": Row("public -> additive", _same, may_be_empty=True, held="first"),
    "to_additive": Row("masked -> additive", _same, reads=None, held="first"),
    "mask": Row("additive -> masked", _same, {"width": one_of(*range(8, 65, 8))}, reads=None, opens="all to all"),
    "mask_bits": Row("bits -> masked_bits", _mask_bits, optional={**_DIGITS, **_APART}, opens="all to all"),
    # from one run to the next; nobody talks
    "state": Row("-> additive", _state, {"name": text}, phase=in_a_run, kept=True),
    "keep": Row(
        "additive -> additive", _same, {"name": text, "start": flag},
        phase=lambda case: "load" if case.attrs["start"] else "run", held="operands",
        view=True, kept=True, final=True,
    ),
    # local
    "linear": Row(
        "(additive )+-> additive|(masked )+-> masked", _linear, {"kind": one_of(*KINDS), **_NESTED}, {"run": flag},
        reads=None, held="operands",
    ),
    "rows": Row("masked -> masked", _rows, _TAKEN, phase=in_a_run, held="operands"),
    "window": Row(
        "masked -> window", _window, {"shift": whole(0, 62), "bits": whole(1, 63)}, held="operands",
        reads=lambda node, index: node.attrs["shift"] + node.attrs["bits"],
    ),
    "part": Row("masked_bits -> masked_bits", _part, {"row": PLACE, "start": PLACE}),
    "xor": Row("bits bits -> bits|masked_bits masked_bits -> masked_bits", _equal),
    "bilinear_public": Row(
        "additive public -> additive", _bilinear, {**_PRODUCT, "swapped": flag}, reads=None, held="operands", products=(_OF_X,),
    ),
    "owned_layer": Row("masked float -> additive", _owned_layer, _OWNED, owner=_weights_owner, products=(_FIRSTS,)),
    # gates
    "bilinear": Row("masked masked -> additive", _bilinear, _PRODUCT, _READ, reads=None, products=(_OF_X, _FIRSTS | {1})),
    "square": Row(
        "masked -> additive", lambda case: Made(case.xs[0].shape, 2 * frac_of(case.xs[0])), {}, _READ, reads=None,
        products=(_OF_X, _FIRSTS),
    ),
    "truncate": Row("masked (masked_bits )?-> additive", _truncate, _CUT, _ROUNDED, reads=_cut_of(0)),
    "multiply_truncated": Row(
        "masked masked (masked_bits )?-> additive", _multiply_truncated, _CUT, _ROUNDED, reads=_cut_of(1),
    ),
    "shift": Row("masked -> masked", _shift, {"bits": whole(1, 61)}, _READ, reads=None),
    "digits": Row(
        "(masked )+-> bits", _digits, _WINDOW, {"of": many(PLACE)},
        reads=lambda node, index: node.attrs["shift"][index] + node.attrs["low_bits"],
    ),
    "top_bit": Row(
        "(masked )+-> bits", _top_bit, {"bit": many(whole(0, 63)), "offset": many(_SHIFT)},
        reads=lambda node, index: node.attrs["bit"][index] + 1,
    ),
    "combine": Row("masked_bits bits -> bits", _combine, _DIGITS, _APART),
    "conjunction": Row("masked_bits -> bits", _conjunction, {"size": whole(1, _MAX_NUMEL), "terms": many(_term, 1)}),
    "beyond": Row(
        "masked masked_bits -> additive", _beyond,
        {
            "bit": whole(0, RING_BITS - 1 - BEYOND_BITS), "offset": _SHIFT, "checks": whole(1, MAX_CHECKS),
            "key": whole(0, (1 << 31) - 1),
        },
        reads=lambda node, index: node.attrs["bit"] + BEYOND_BITS,
    ),
    "select": Row("masked_bits masked -> additive", _select, _INVERT, _READ, reads=None),
    "select_truncated": Row(
        "masked_bits masked (masked_bits )?-> additive", _select, {**_INVERT, **_CUT}, {**_ROUNDED, "added": _SHIFT},
        reads=_cut_of(1),
    ),
    "bit_to_ring": Row("masked_bits -> additive", _bit_to_ring, {**_INVERT, "shape": PLACES}, _READ),
    "lookup": Row("(masked |window )(masked )?-> additive", _lookup, _TABLE, _AROUND, reads=_index_alone),
    "lookup_shared": Row(
        "(masked |window )(masked )?-> additive", _lookup, _TABLE, {**_AROUND, **_READ}, reads=_index_alone
    ),
    "unit": Row(
        "masked -> additive", _unit, {"size": whole(2, 1 << MAX_BITS)},
        reads=lambda node, index: node.attrs["size"].bit_length() - 1,
    ),
    "permute": Row("order masked -> additive", _permute),
    "spline": Row(
        "masked masked masked (masked |window )(additive )?-> additive", _spline,
        {"signed": flag, "frac": whole(0, _MAX_FRAC), "shifts": many(whole(0, 63), 3), "drop": whole(0, 63)},
        {"rest": _REST, **_READ}, reads=None,
    ),
}  # fmt: skip
"""The operators of a program whose masks are placed. Each key of protocols.gates.GATES has its row."""
TALK = frozenset(op for op, row in ROWS.items() if row.opens)
FINAL = frozenset(op for op, row in ROWS.items() if row.final)
OUTPUTS = ("reveal", "client_output")
"""What an output is read from: by parties, or by a client from all shares."""


CUTS = ("truncate", "shift", "select_truncated", "multiply_truncated")
"""The gates that truncate an operand."""


def cut_operand(node: Node) -> int:
    """Which operand of a gate of CUTS is truncated."""
    return int(node.op not in ("truncate", "shift"))


def opened_widths(graph: Graph, rows: Mapping[str, Row] = ROWS) -> list[int]:
    """For each node, how many low bits of its value are read, in whole bytes."""
    return [min(RING_BITS, -(-need // 8) * 8) for need in read_bits(graph, rows)]


def read_bits(graph: Graph, rows: Mapping[str, Row] = ROWS) -> list[int]:
    """For each node, how many low bits of its value are read: sums and products are right modulo 2^n where their operands
    are. More than RING_BITS: what it is made of has no such bits.
    """
    bits = [0] * len(graph.nodes)
    for node in reversed(graph.nodes):
        reads = rows[node.op].reads
        for index, arg in enumerate(node.args):
            need = reads(node, index) if reads else None
            bits[arg] = max(bits[arg], max(0, bits[node.id] - shifted_bits(node, index)) if need is None else need)
    return bits


def shifted_bits(node: Node, index: int = 0) -> int:
    """How many zeros an operator puts at the end of each number of an operand; below zero: how many bits it takes away."""
    if node.op == "shift":
        return -node.attrs["bits"]
    if node.op == "spline":
        return node.attrs["shifts"][index] if index < 3 else 0
    factor = node.attrs["attrs"]["factor"] if node.op == "linear" and node.attrs["kind"] == "scale" else 1
    return (factor & -factor).bit_length() - 1 if factor else 0


NARROWED = ("mask", "input", *(op for op, row in ROWS.items() if "read" in row.optional))
"""The operators whose attributes say how many low bits of the result are read: those that open it, or are dealt for it."""


def narrowed(node: Node, width: int) -> dict[str, Any]:
    """The attributes of a node of NARROWED, where so many low bits of it are read."""
    if node.op not in ("mask", "input"):
        rest = {name: value for name, value in node.attrs.items() if name != "read"}
        return {**rest, "read": width} if 0 < width < RING_BITS else rest
    if node.op == "mask":
        return {**node.attrs, "width": width}
    rest = {name: value for name, value in node.attrs.items() if name != "width"}
    return {**rest, "width": width} if node.op == "input" and 0 < width < RING_BITS else rest


# ---- the check
def verify(header: Header, graph: Graph, max_bytes: int = MAX_PROGRAM_BYTES, rows: Mapping[str, Row] = ROWS) -> None:
    """Derives every node from its operands and compares. Raises ProgramError that names the line, counted from 1.

    `max_bytes` bounds all values of the program, with what is dealt for them.
    """
    check_header(header)
    total, revealed = 0, []
    for node in graph.nodes:
        try:
            total += _check_node(header, graph, node, rows)
            if total > max_bytes:
                raise Wrong(
                    f"up to here, the values and what is dealt for them take {total} bytes; allowed are {max_bytes}"
                )
        except Wrong as wrong:
            raise _error(node, str(wrong), max_bytes if total > max_bytes else None) from None
        if node.op in OUTPUTS:
            revealed.append(node.attrs["index"])
    _check_states(graph)
    _check_shared_digits(graph)
    for node, read, width in zip(graph.nodes, read_bits(graph, rows), opened_widths(graph, rows), strict=True):
        if node.op == "shift" and read + node.attrs["bits"] > RING_BITS:
            raise _error(node, f"{read} bits of it are read, but {RING_BITS - node.attrs['bits']} are right")
        if node.op in NARROWED and node.attrs != narrowed(node, width):
            stated = node.attrs.get("width", node.attrs.get("read", RING_BITS))
            raise _error(node, f"{width} bits of it are read, but {stated} are opened or dealt")
    if sorted(revealed) != list(range(len(header.outputs))):
        what = f"the program reveals the outputs {sorted(revealed)!r:.100}"
        raise ProgramError(explain(what, why=f"line 1 has {len(header.outputs)} outputs", fix=_FIX))


def _check_states(graph: Graph) -> None:
    """Each state is kept once when the weights are loaded, and at most once in a run, in the same form. Raises ProgramError."""
    starts: dict[str, Node] = {}
    known: dict[tuple[str, str], Node] = {}
    for node in graph.nodes:
        if node.op not in ROWS or not ROWS[node.op].kept:
            continue
        name, role = node.attrs["name"], node.op if node.op == "state" else node.phase
        if (name, role) in known:
            raise _error(node, f"the state {name!r:.100} is read or kept a second time")
        known[name, role] = node
        start = starts.setdefault(name, node)
        if start.phase != "load" or (start.shape, start.frac) != (node.shape, node.frac):
            raise _error(node, f"the state {name!r:.100} does not start in this form")
        if node.phase == "load" and any(graph[a].phase != "load" for a in node.args):
            raise _error(node, "what a state starts with is known when weights are loaded")


def mask_origin(graph: Graph, value: int) -> int:
    """The value whose mask a masked one has: itself, or what a public number was added to, or the same with other
    fractional bits."""
    node = graph[value]
    while node.op == "linear" and node.form == "masked" and node.attrs["kind"] in ("add", "sub", "ldexp"):
        first, *_ = others = [a for a in node.args if graph[a].op != "public_masked"] or [node.id]
        flipped = node.attrs["kind"] == "sub" and first != node.args[0]
        if len(others) != 1 or flipped or first == node.id or graph[first].shape != node.shape:
            break
        node = graph[first]
    return node.id


def _check_shared_digits(graph: Graph) -> None:
    """Digits that are dealt once are those of one mask, from one bit up. Raises ProgramError."""
    for node in graph.nodes:
        for at, first in enumerate(node.attrs["of"] if node.op == "digits" and "of" in node.attrs else ()):
            origins = {mask_origin(graph, node.args[i]) for i in (first, at)}
            if len(origins) > 1 or node.attrs["shift"][first] != node.attrs["shift"][at]:
                raise _error(
                    node, f"operands {first} and {at} have different masks, or are seen from different bits up"
                )


_FIX = "write it with Program.save() of this version"


def _error(node: Node, why: str, max_bytes: int | None = None) -> ProgramError:
    where = f"line {node.id + 2}, %{node.id} = {node.op}"
    if max_bytes is None:
        return ProgramError(explain("this is no secure program", where=where, why=why, fix=_FIX))
    fix = "allow more, if you trust whoever gave it: --max-gib, or max_bytes= in Python"
    return ProgramError(explain("this program is too large", where=where, why=why, fix=fix))


def _check_node(header: Header, graph: Graph, node: Node, rows: Mapping[str, Row]) -> int:
    """Bytes of a node's value, and of what is dealt for it. Raises Wrong."""
    row = rows.get(node.op)
    if row is None:
        raise Wrong("there is no such operator")
    case = Case(node, tuple(graph[a] for a in node.args), header)
    forms = "".join(f"{x.form} " for x in case.xs) + f"-> {node.form}"
    if not _pattern(row.signature).fullmatch(forms):
        raise Wrong(f"it is {row.signature!r}, not {forms!r:.100}")
    check_attrs(node.attrs, row.attrs, row.optional)
    sized(node.shape)
    if not row.may_be_empty and 0 in node.shape:
        raise Wrong(f"its shape {list(node.shape)} has no elements")
    owner, made = row.owner(case), row.rule(case)
    stated = {"shape": node.shape, "fractional bits": node.frac, "owner": node.owner, "phase": node.phase}
    derived = {"shape": made.shape, "fractional bits": made.frac, "owner": owner, "phase": row.phase(case)}
    for name, value in derived.items():
        if stated[name] != value:
            raise Wrong(f"from its operands it has {name} {_shown(value)}, not {_shown(stated[name])}")
    if made.frac is not None and abs(made.frac) > _MAX_FRAC:
        raise Wrong(f"no value has {made.frac} fractional bits")
    dealt = dealt_bytes(GATES[node.op], node.attrs, [x.shape for x in case.xs], node.shape) if node.op in GATES else 0
    return ELEMENT_BYTES * numel(node.shape) + dealt + made.beside


_patterns: dict[str, re.Pattern[str]] = {}


def _pattern(signature: str) -> re.Pattern[str]:
    if signature not in _patterns:
        _patterns[signature] = re.compile(signature)
    return _patterns[signature]


def _shown(value: Any) -> str:
    return f"{list(value) if isinstance(value, tuple) else value!r:.100}" if value is not None else "none"


# ---- the first line
FRAC_BITS = (4, 24)
MARGIN_BITS = 8


def precision_problem(frac_bits: int, width: int) -> str:
    """Why values cannot have these fractional bits and this width, or nothing."""
    low, high = FRAC_BITS
    if type(frac_bits) is not int or not low <= frac_bits <= high:
        return f"frac_bits = {frac_bits} is outside {low}..{high}: products need 2 frac_bits plus the integer part"
    if type(width) is not int or not frac_bits + MARGIN_BITS <= width <= RING_BITS:
        return f"width = {width} is outside {frac_bits + MARGIN_BITS}..{RING_BITS} for {frac_bits} fractional bits"
    return ""


def encoding_limit(header: Header, frac: int = 0) -> float:
    """The largest magnitude of inputs and weights: products of two can be truncated, and `width` bits hold each.

    frac: the fractional bits of the encoded value, which may be more than those of a product.
    """
    limit = 2.0 ** (62 - max(2 * header.frac_bits, frac))
    return limit if header.width == 64 else min(limit, 2.0 ** (header.width - 1 - header.frac_bits))


def check_header(header: Header) -> None:
    """Raises ProgramError unless the first line says what `compile` might have said."""
    problem = precision_problem(header.frac_bits, header.width) or _names_problem(header)
    if header.rounding not in ROUNDINGS:
        problem = f"rounding {header.rounding!r:.100} is none of {', '.join(ROUNDINGS)}"
    if problem:
        raise ProgramError(explain("this is no secure program", where="line 1", why=problem, fix=_FIX))


def _names_problem(header: Header) -> str:
    parties = header.parties
    if bad := [name for name in (*parties, *header.contributors) if not is_name(name)]:
        return f"{bad[0]!r:.100} cannot be a party's name: {NAME_RULE}"
    if len(parties) < 2 or len(set(parties)) != len(parties):
        return f"the parties are two or more, all different, not {list(parties)!r:.100}"
    prefixes = [] if isinstance(header.weights, str) else [prefix for prefix, _ in header.weights]
    owners = {*parties, PUBLIC}
    for what, names, known in (
        ("weights", weight_owners(header.weights), owners),
        ("outputs", [name for name in header.outputs if not header.is_stranger(name)], {*parties, EVERYBODY}),
    ):
        if unknown := [name for name in names if name not in known]:
            return f"{unknown[0]!r:.100} among the {what} is no party"
    if len(set(prefixes)) != len(prefixes):
        return "weights has a prefix twice"
    if len(header.input_shapes) != len(header.inputs):
        return f"{len(header.inputs)} inputs have {len(header.input_shapes)} shapes"
    try:
        for shape in header.input_shapes:
            sized(shape, "an input")
    except Wrong as wrong:
        return str(wrong)
    return ""
