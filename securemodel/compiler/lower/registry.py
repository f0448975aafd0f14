"""The table of operators that have a secure version: one function per ATen operator, and what approximations promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Lowering = Callable[..., object]
LOWERINGS: dict[object, Lowering] = {}
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


def lowers(*targets, accuracy: Accuracy | None = None) -> Callable[[Lowering], Lowering]:
    """Registers a function as the secure version of ATen operators; refuses duplicates.

    The function gets a Builder and the operator's arguments, with tensors as Values, and returns a Value
    (or a tuple of Values). It is called only when some tensor argument is secret. Approximations state their
    `accuracy`, here or with `promises`.
    """

    def register(function: Lowering) -> Lowering:
        for target in targets:
            if target in LOWERINGS:
                raise ValueError(f"{target} already has a secure version: {LOWERINGS[target].__name__}")
            LOWERINGS[target] = function
        if accuracy:
            promises(accuracy, *targets)
        return function

    return register


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
