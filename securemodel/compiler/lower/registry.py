"""The table of operators that have a secure version: one function per ATen operator."""

from __future__ import annotations

from collections.abc import Callable

Lowering = Callable[..., object]
LOWERINGS: dict[object, Lowering] = {}


def lowers(*targets) -> Callable[[Lowering], Lowering]:
    """Registers a function as the secure version of ATen operators; refuses duplicates.

    The function gets a Builder and the operator's arguments, with tensors as Values, and returns a Value
    (or a tuple of Values). It is called only when some tensor argument is secret.
    """

    def register(function: Lowering) -> Lowering:
        for target in targets:
            if target in LOWERINGS:
                raise ValueError(f"{target} already has a secure version: {LOWERINGS[target].__name__}")
            LOWERINGS[target] = function
        return function

    return register
