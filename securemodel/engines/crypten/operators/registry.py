"""The table of ATen operators that run on CrypTen's tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operator:
    """`run` computes with CrypTen's tensors; `check` gets the same arguments as Values, and may refuse them.

    `check` raises CannotLower.
    """

    run: Callable[..., Any]
    check: Callable[..., None] | None = None


OPERATORS: dict[str, Operator] = {}
"""By the operator's name, as a program's text has it."""


def runs(*targets, check: Callable[..., None] | None = None) -> Callable[[Callable], Callable]:
    """Registers a function as what runs ATen operators; refuses duplicates.

    The function gets the operator's arguments, with every tensor a CrypTen tensor of the program's scale, and
    returns one, or a tuple of them. It must not change its arguments.
    """

    def register(function: Callable) -> Callable:
        for target in map(str, targets):
            if target in OPERATORS:
                raise ValueError(f"{target} runs already: {OPERATORS[target].run.__name__}")
            OPERATORS[target] = Operator(function, check)
        return function

    return register
