"""What a client does to its input before it is shared: steps of a closed list, with public numbers.

Without them the parties would do it on secrets. Each step maps rows to rows, in float64:

    divide, subtract   by one number, or one for each channel (axis 1)
    clamp low high     to at least low, at most high
    resize h w         the last two axes: linear between pixel centers, widened where pixels get fewer, so that every
                       pixel counts (as torch's `interpolate(mode="bilinear", antialias=True)`)
    grayscale          axis 1 of 3 colors to 1: 0.299 red + 0.587 green + 0.114 blue
    one_hot k          whole numbers 0 … k-1 to unit vectors, along a new last axis
    pad_ids n id       rows of at most n whole numbers to n, filled up with id
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from securemodel.edge.errors import EdgeError, InputError, ServiceError
from securemodel.edge.sharing import encode_indices, numbers

_FIX = "ask the service for its service.json again"
Step = Callable[[np.ndarray, str], np.ndarray]


def read(steps: Any, name: str) -> list[Step]:
    """The steps of one input out of JSON: lists of a step's name and its numbers."""
    if not isinstance(steps, list) or not all(isinstance(step, list) and step for step in steps):
        raise ServiceError("a recipe is a list of steps, each a list of its name and its numbers", where=name, fix=_FIX)
    return [_read_step(step, name) for step in steps]


def _read_step(step: Sequence[Any], name: str) -> Step:
    kind, *arguments = step
    if not isinstance(kind, str) or kind not in STEPS:
        known = ", ".join(STEPS)
        raise ServiceError(f"a recipe has the unknown step {kind!r}", where=name, fix=f"known: {known}")
    make, kinds = STEPS[kind]
    if len(arguments) != len(kinds) or not all(map(_fits, arguments, kinds)):
        what = f"the step {kind!r} of a recipe has wrong numbers"
        raise ServiceError(what, where=name, why=f"it takes {len(kinds)}: {', '.join(kinds) or 'none'}", fix=_FIX)
    return make(*arguments)


def _fits(argument: Any, kind: str) -> bool:
    if kind == "numbers" and isinstance(argument, list):
        return bool(argument) and all(_fits(one, "number") for one in argument)
    if isinstance(argument, bool) or not isinstance(argument, int | float) or not math.isfinite(argument):
        return False
    return kind in ("number", "numbers") or (
        isinstance(argument, int) and (0 if kind == "id" else 1) <= argument < 2**31
    )


def apply(steps: Sequence[Step], x: np.ndarray, name: str) -> np.ndarray:
    """Rows of an input as they are shared. InputError where a step does not fit them."""
    values = numbers(x, name)
    for step in steps:
        try:
            values = step(values, name)
        except EdgeError:
            raise
        except (ValueError, IndexError) as error:
            what = f"input {name!r} of shape {list(np.shape(x))} does not fit the service's recipe"
            raise InputError(what, why=str(error)) from error
    return values


def _divide(by: Any) -> Step:
    if not np.all(by):
        raise ServiceError("a recipe divides by zero", fix=_FIX)
    return lambda x, _: x / _per_channel(by, x)


def _subtract(what: Any) -> Step:
    return lambda x, _: x - _per_channel(what, x)


def _per_channel(numbers: Any, x: np.ndarray) -> np.ndarray:
    """One number, or one for each entry of axis 1, to combine with x."""
    values = np.asarray(numbers, dtype=np.float64)
    if values.ndim and (x.ndim < 2 or x.shape[1] != values.size):
        raise ValueError(f"axis 1 must have {values.size} channels")
    return values.reshape(-1, *(1,) * (x.ndim - 2)) if values.ndim else values


def _clamp(low: float, high: float) -> Step:
    return lambda x, _: np.clip(x.astype(np.float64), low, high)


def _resize(height: int, width: int) -> Step:
    def step(x: np.ndarray, name: str) -> np.ndarray:
        if x.ndim < 3 or 0 in x.shape:
            raise ValueError("a picture has rows, height and width")
        return _triangle(x.shape[-2], height) @ x.astype(np.float64) @ _triangle(x.shape[-1], width).T

    return step


def _triangle(size: int, out: int) -> np.ndarray:
    """(out, size) weights of pixels: linear between their centers, widened by the ratio where they get fewer."""
    ratio = size / out
    centers = (np.arange(out)[:, None] + 0.5) * ratio
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size) + 0.5 - centers) / max(ratio, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def _grayscale() -> Step:
    def step(x: np.ndarray, name: str) -> np.ndarray:
        if x.ndim < 2 or x.shape[1] != 3:
            raise ValueError("axis 1 must have 3 colors")
        return np.tensordot(np.array([[0.299, 0.587, 0.114]]), x, axes=(1, 1)).swapaxes(0, 1)

    return step


def _one_hot(size: int) -> Step:
    def step(x: np.ndarray, name: str) -> np.ndarray:
        return (encode_indices(x, size - 1, name)[..., None] == np.arange(size)).astype(np.float64)

    return step


def _pad_ids(length: int, filler: int) -> Step:
    def step(x: np.ndarray, name: str) -> np.ndarray:
        if x.ndim != 2 or x.shape[1] > length:
            raise ValueError(f"it needs rows of at most {length} ids")
        ids = encode_indices(x, 2**31 - 1, name)
        return np.pad(ids, ((0, 0), (0, length - x.shape[1])), constant_values=filler)

    return step


STEPS: dict[str, tuple[Callable[..., Step], tuple[str, ...]]] = {
    "divide": (_divide, ("numbers",)),
    "subtract": (_subtract, ("numbers",)),
    "clamp": (_clamp, ("number", "number")),
    "resize": (_resize, ("size", "size")),
    "grayscale": (_grayscale, ()),
    "one_hot": (_one_hot, ("size",)),
    "pad_ids": (_pad_ids, ("size", "id")),
}
"""Each step: what makes it, and the kinds of its numbers."""


def given_shape(steps: Sequence[Sequence[Any]], shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a row before a recipe's steps (as JSON has them) make it one of `shape`; -1 is any size."""
    given = tuple(shape)
    for kind, *_ in reversed(steps):
        if kind == "resize":
            given = (*given[:-2], -1, -1)
        elif kind == "grayscale":
            given = (3, *given[1:])
        elif kind == "one_hot":
            given = given[:-1]
        elif kind == "pad_ids":
            given = (-1,)
    return given
