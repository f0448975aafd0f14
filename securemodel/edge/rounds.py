"""What an update is made of, and the card of a round: all that a client must know to share one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from securemodel.edge.errors import InputError, WireError
from securemodel.edge.sealing import is_key
from securemodel.edge.sharing import bounded, numbers
from securemodel.edge.wire import dump, load

MAX_CARD_BYTES = 64 << 20
BITS = (16, 32, 64)
Rule = Literal["real", "round", "keep"]


# ---- what an update is made of
@dataclass(frozen=True)
class Field:
    """One array. `rule`: "real" numbers are aggregated; so are whole ones by "round", and rounded; "keep" is not shared."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rule: Rule

    @property
    def size(self) -> int:
        """How many numbers of it are shared."""
        return 0 if self.rule == "keep" else math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The arrays of an update, in order."""

    fields: tuple[Field, ...]

    @classmethod
    def of(cls, arrays: Mapping[str, Any], *, integers: Literal["keep", "round"] = "keep") -> Layout:
        """The layout of arrays such as these; whole numbers (counters of batches, say) are kept apart or rounded. InputError."""
        _check_named(arrays)
        if integers not in ("keep", "round"):
            raise InputError(f"integers={integers!r}", why="whole numbers are kept apart or rounded",
                             fix="give integers='keep' or integers='round'")  # fmt: skip
        made = []
        for name, given in arrays.items():
            x = numbers(given, name)
            rule: Rule = "real" if x.dtype.kind == "f" else integers
            made.append(Field(str(name), tuple(x.shape), x.dtype.name, rule))
        if not any(each.size for each in made):
            raise InputError("an update has no real numbers to aggregate", fix="give named arrays of floats")
        return cls(tuple(made))

    @cached_property
    def size(self) -> int:
        """How many numbers are shared."""
        return sum(each.size for each in self.fields)

    @cached_property
    def digest(self) -> str:
        return sha256(dump(self.json())).hexdigest()

    def json(self) -> list[list[Any]]:
        return [[each.name, list(each.shape), each.dtype, each.rule] for each in self.fields]

    @classmethod
    def read(cls, found: Any) -> Layout:
        """A layout out of JSON. WireError where it is none."""
        try:
            made = tuple(_field(*each) for each in found)
        except (TypeError, ValueError) as error:
            raise _bad_card("its layout cannot be read") from error
        if not made or len({each.name for each in made}) != len(made):
            raise _bad_card("its layout cannot be read")
        return cls(made)

    def flatten(self, arrays: Mapping[str, Any], limit: float) -> np.ndarray:
        """The shared numbers of arrays, float64. InputError names what is missing, of another shape or type, or too large."""
        pieces = self.pieces(arrays, limit, self.size)
        flat = np.empty(self.size)  # only now, as a card may name any sizes
        at = 0
        for piece in pieces:
            flat[at : at + len(piece)] = piece
            at += len(piece)
        return flat

    def pieces(self, arrays: Mapping[str, Any], limit: float, size: int) -> Iterator[np.ndarray]:
        """The same in order, up to `size` at a time; each overwrites the one before."""
        _check_named(arrays)
        names = [each.name for each in self.fields]
        if set(arrays) != set(names):
            missing, more = sorted(set(names) - set(arrays)), sorted(set(map(str, arrays)) - set(names))
            raise InputError(
                "the update has other arrays than the round's card says",
                why=f"missing: {', '.join(missing) or 'none'}; not known: {', '.join(more) or 'none'}",
                fix="train the model that the round is about",
            )
        return _pieces({each: self._numbers(arrays, each) for each in self.fields}, limit, size)

    @staticmethod
    def _numbers(arrays: Mapping[str, Any], each: Field) -> np.ndarray:
        """One of the arrays, which is as its field says. InputError."""
        x = numbers(arrays[each.name], each.name)
        if x.shape != each.shape or x.dtype.name != each.dtype:
            raise InputError(
                f"the array {each.name!r} is {x.dtype.name} of shape {list(x.shape)}",
                why=f"the round's card says {each.dtype} of shape {list(each.shape)}",
                fix="train the model that the round is about",
            )
        return x

    def unflatten(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of a vector of shared numbers; those that are kept are not among them."""
        arrays, at = {}, 0
        for each in self.fields:
            if each.rule != "keep":
                x = flat[at : at + each.size].reshape(each.shape)
                arrays[each.name] = (np.rint(x) if each.rule == "round" else x).astype(each.dtype)
                at += each.size
        return arrays


def _pieces(given: Mapping[Field, np.ndarray], limit: float, size: int) -> Iterator[np.ndarray]:
    """Numbers of arrays that are as their fields say. InputError for the first beyond the limit."""
    room = np.empty(min(size, max((each.size for each in given), default=0)))
    for each, x in given.items():
        flat = x.reshape(-1)
        for start in range(0, each.size, size):
            numbers = flat[start : start + size]
            if not max(-float(numbers.min()), float(numbers.max())) <= limit:  # also where one is not a number
                bounded(x, limit, each.name)
            piece = room[: len(numbers)]
            piece[:] = numbers
            yield piece


def _check_named(arrays: Any) -> None:
    """Raises InputError for what is no update."""
    fix = "give a dict of arrays by name"
    if not isinstance(arrays, Mapping):
        raise InputError(f"an update is named arrays, not a {type(arrays).__name__}", fix=fix)
    for name in arrays:
        if not isinstance(name, str):
            raise InputError(f"an update is named arrays, and the name {name!r} is a {type(name).__name__}", fix=fix)


def _field(name: Any, shape: Any, dtype: Any, rule: Any) -> Field:
    sizes = tuple(shape)
    good = isinstance(name, str) and rule in ("real", "round", "keep") and len(sizes) <= 32
    good = good and all(type(size) is int and 0 <= size < 2**40 for size in sizes)
    if not good or np.dtype(dtype).kind not in "fiub":
        raise ValueError("no field")
    return Field(name, sizes, np.dtype(dtype).name, rule)


def digest_of(model: Mapping[str, Any]) -> str:
    """What tells models apart: SHA-256 of names, types, shapes and numbers."""
    found = sha256()
    for name in sorted(model):
        x = np.ascontiguousarray(model[name])
        found.update(dump([name, x.dtype.str, list(np.shape(model[name]))]))
        found.update(x.tobytes())
    return found.hexdigest()


# ---- the round
def largest_of(weight: int, limit: float, unit: float) -> float:
    """The largest magnitude of a number that is shared, in units of the ring: rounding may add half a one to each."""
    return float(np.floor(weight * limit / unit + 0.5))


@dataclass(frozen=True)
class Aggregator:
    """An aggregator's name, and the X25519 key that parts are sealed to, in base64url."""

    name: str
    key: str


@dataclass(frozen=True)
class RoundCard:
    """What a client must know of a round. It holds no secret, but whoever gives it decides who gets the shares.

    task, program: the task's name, and the digest of what is computed. round, model: its number, and the digest of the
    model that updates start from. bits: the ring is modulo 2^bits. frac_bits: unit = 2^-frac_bits, or with `levels` limit /
    levels. deadline: seconds since 1970. minimum: with fewer clients nothing is revealed. positions: which numbers of the
    flattened update are sent, in order, or None for all. premultiplied: numbers are multiplied by the weight before they are
    shared. bound: the largest Euclidean norm of an update, before that; one beyond it is dropped.
    """

    task: str
    program: str
    round: int
    model: str
    layout: Layout
    bits: int
    frac_bits: int
    limit: float
    slots: int
    max_weight: int
    aggregators: tuple[Aggregator, ...]
    deadline: float
    minimum: int
    reveal: str = "aggregators"
    premultiplied: bool = True
    bound: float | None = None
    levels: int | None = None
    positions: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise _bad_card(problem)

    def _problem(self) -> str:
        whole = lambda x, low, high: type(x) is int and low <= x <= high
        if not all(isinstance(text, str) and len(text) <= 256 for text in (self.task, self.program, self.model)):
            return "its task, program or model is no text of up to 256 characters"
        real = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
        if self.bits not in BITS or not whole(self.frac_bits, 0, 62) or not (real(self.limit) and self.limit > 0):
            return "its ring, fraction or limit is out of range"
        if not whole(self.slots, 1, 2**20) or not whole(self.max_weight, 1, 2**40) or not whole(self.round, 0, 2**53):
            return "its slots, weights or number are out of range"
        if not whole(self.minimum, 1, self.slots) or not real(self.deadline):
            return "its minimum or deadline is out of range"
        if self.reveal not in ("aggregators", "clients"):
            return "it names nobody who gets the result"
        if type(self.premultiplied) is not bool or (
            self.bound is not None and not (real(self.bound) and self.bound > 0)
        ):
            return "its bound is out of range"
        if self.levels is not None and not whole(self.levels, 1, 2**31):
            return "its levels are out of range"
        if not 2 <= len(self.aggregators) <= 16 or not all(is_key(each.key) for each in self.aggregators):
            return "it has not two aggregators or more with public keys"
        times = self.max_weight if self.premultiplied else 1
        if self.slots * max(times, largest_of(times, self.limit, self.unit)) >= 2.0 ** (self.bits - 1):
            return f"the sum of {self.slots} updates within ±{self.limit:g} does not fit {self.bits} bits"
        size = self.layout.size
        if self.positions is not None and not _increasing(self.positions, size):
            return f"its positions are no increasing places of {size} numbers"
        return ""

    @property
    def unit(self) -> float:
        """What one unit of the ring stands for."""
        return 2.0**-self.frac_bits if self.levels is None else self.limit / self.levels

    @cached_property
    def count(self) -> int:
        """How many numbers a client shares, beside its weight."""
        return self.layout.size if self.positions is None else len(self.positions)

    @property
    def dtype(self) -> np.dtype:
        """Ring elements as they are sent."""
        return np.dtype(f"<u{self.bits // 8}")

    @property
    def value_bytes(self) -> int:
        """The bytes of a share in numbers, with that of the weight."""
        return self.count * self.bits // 8 + 8

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the card's text, which parts are bound to."""
        return sha256(self.text()).hexdigest()

    def text(self) -> bytes:
        """The card in JSON."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        told["layout"] = self.layout.json()
        told["aggregators"] = [[each.name, each.key] for each in self.aggregators]
        told["positions"] = None if self.positions is None else list(self.positions)
        return dump({"securemodel_round": 1, **told})

    @classmethod
    def read(cls, text: bytes) -> RoundCard:
        """A card out of its JSON. WireError where it is none."""
        found = dict(load(text, "the round's card", MAX_CARD_BYTES))
        version = found.pop("securemodel_round", None)
        if version != 1 or set(found) != {each.name for each in fields(cls)}:
            raise _bad_card("it has other members than a card of version 1")
        try:
            found["aggregators"] = tuple(Aggregator(str(name), str(key)) for name, key in found["aggregators"])
            found["positions"] = None if found["positions"] is None else tuple(found["positions"])
        except (TypeError, ValueError) as error:
            raise _bad_card("its aggregators or positions cannot be read") from error
        return cls(**{**found, "layout": Layout.read(found["layout"])})


def _increasing(positions: Sequence[int], size: int) -> bool:
    if not positions or not all(type(at) is int for at in positions):
        return False
    return 0 <= positions[0] and positions[-1] < size and bool(np.all(np.diff(positions) > 0))


def _bad_card(why: str) -> WireError:
    return WireError("bad_card", "this is no card of a round", why=why, fix="ask the task for its card again")
