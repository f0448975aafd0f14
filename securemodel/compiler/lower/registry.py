"""The table of operators that have a secure version: one function per ATen operator, and what approximations promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Lowering = Callable[..., object]
Registered = TypeVar("Registered", bound=Callable[..., object])
LOWERINGS: dict[object, Lowering] = {}
DECOMPOSITIONS: dict[object, Callable[..., object]] = {}
RECOMPUTING: set[object] = set()
"""Gradients that do not read the further results of the forward, which have no secure version."""
UNIT = 2.0**-16


@dataclass(frozen=True)
class Accuracy:
    """The largest error of an approximation at 16 fractional bits, on a domain told in words ("" is everywhere).

    The error is at most max(absolute + units 2^-16, relative |result|).
    """

    absolute: float = 0.0
    units: int = 0
    relative: float = 0.0
    domain: str = ""

    def bound(self, result: float = 0.0) -> float:
        """The largest error beside a result of this magnitude."""
        return max(self.absolute + self.units * UNIT, self.relative * abs(result))

    def __str__(self) -> str:
        parts = [_power(self.absolute)] if self.absolute else []
        parts += [f"{self.units}u"] if self.units else []
        error = " + ".join(parts)
        return f"{_power(self.relative)} of the result, or {error} where that is larger" if self.relative else error


def _power(number: float) -> str:
    return f"2^{math.log2(number):g}"


ACCURACY: dict[object, Accuracy] = {}


def lowers(*targets, accuracy: Accuracy | None = None) -> Callable[[Registered], Registered]:
    """Registers a function as the secure version of operators; refuses a second one.

    The function gets a Builder and the operator's arguments, with tensors as Values, and returns a Value
    (or a tuple of Values). It is called only when some tensor argument is secret. Approximations state their
    `accuracy`, here or with `promises`.
    """

    def register(function: Registered) -> Registered:
        for target in targets:
            if not _is_again(LOWERINGS.get(target), function):
                raise ValueError(f"{target} already has a secure version: {LOWERINGS[target].__name__}")
            LOWERINGS[target] = function
        if accuracy:
            promises(accuracy, *targets)
        return function

    return register


def decomposes(*targets) -> Callable[[Registered], Registered]:
    """Registers a function that computes operators with those of PyTorch; refuses a second one.

    It gets the operator's arguments and returns what the operator does. Models that are captured afterwards are compiled
    as if they called this function.
    """

    def register(function: Registered) -> Registered:
        for target in targets:
            if not _is_again(DECOMPOSITIONS.get(target), function):
                raise ValueError(f"{target} is already written with other operators: {DECOMPOSITIONS[target].__name__}")
            DECOMPOSITIONS[target] = function
        return function

    return register


def _is_again(known: Callable[..., object] | None, function: Callable[..., object]) -> bool:
    """Whether a place is free, or has the same function from an earlier run of its file or of a notebook's cell."""
    name = lambda f: (f.__code__.co_filename.rpartition("/")[2], f.__qualname__)
    return known is None or name(known) == name(function)


def promises(accuracy: Accuracy, *targets) -> None:
    """States what the secure versions of operators promise; refuses duplicates."""
    for target in targets:
        if target in ACCURACY:
            raise ValueError(f"{target} already states its accuracy: {ACCURACY[target]}")
        ACCURACY[target] = accuracy


def page(target: object) -> str:
    """Where an operator is described, as a path of this repository; "" for those without a secure version."""
    return f"docs/operators.md#{anchor(target)}" if target in LOWERINGS and anchor(target) else ""


def anchor(target: object) -> str:
    """The name of an operator's place in docs/operators.md: `aten-relu` for aten.relu.default; "" if it has none."""
    library, *names = str(target).split(".")
    return f"{library}-{names[0]}" if library == "aten" else ""
