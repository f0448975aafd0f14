"""Random numbers of a step become inputs: parties that drew each for itself would compute with different ones.

They are public: all parties make them from one seed that they tossed together. A dropout mask depends on no data, so
nothing is lost, and a product with a public mask is local. Noise that is to hide something must not be made so. Where
masks of dropout are to be secret, each party gives numbers for each bit (`hidden_bits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from protocols.errors import explain
from securemodel.compiler.lowering import draws_numbers
from securemodel.errors import CompileError

aten = torch.ops.aten

Kind = Literal["bernoulli", "uniform", "normal", "integers", "permutation"]


@dataclass(frozen=True)
class Random:
    """Public random numbers of a step.

    `parameters`: bernoulli (p,) of ones; uniform (low, high); normal (mean, standard deviation); integers (low, high)
    without high; permutation (). `source` is the user's line.
    """

    name: str
    kind: Kind
    parameters: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str

    def draw(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Some such numbers, from a generator of torch: for running a step in the clear."""
        made = torch.empty(self.shape, dtype=self.dtype)
        if self.kind == "bernoulli":
            return made.bernoulli_(self.parameters[0], generator=generator)
        if self.kind == "uniform":
            return made.uniform_(*self.parameters, generator=generator)
        if self.kind == "normal":
            return made.normal_(*self.parameters, generator=generator)
        if self.kind == "integers":
            return made.random_(int(self.parameters[0]), int(self.parameters[1]), generator=generator)
        return torch.randperm(self.shape[0], dtype=self.dtype, generator=generator)


_Draws = dict[Any, tuple[Kind, dict[str, float | None]]]
_INPLACE: _Draws = {
    aten.bernoulli_.float: ("bernoulli", {"p": 0.5}),
    aten.uniform_.default: ("uniform", {"from": 0.0, "to": 1.0}),
    aten.normal_.default: ("normal", {"mean": 0.0, "std": 1.0}),
    aten.random_.to: ("integers", {"low": 0, "to": None}),
    getattr(aten.random_, "from"): ("integers", {"from": None, "to": None}),
}
_LIKE: _Draws = {
    aten.bernoulli.p: ("bernoulli", {"p": None}),
    aten.rand_like.default: ("uniform", {"low": 0.0, "high": 1.0}),
    aten.randn_like.default: ("normal", {"mean": 0.0, "std": 1.0}),
    aten.randint_like.default: ("integers", {"low": 0, "high": None}),
    aten.randint_like.low_dtype: ("integers", {"low": None, "high": None}),
}
_NEW: _Draws = {
    aten.rand.default: ("uniform", {"low": 0.0, "high": 1.0}),
    aten.rand.generator: ("uniform", {"low": 0.0, "high": 1.0}),
    aten.randn.default: ("normal", {"mean": 0.0, "std": 1.0}),
    aten.randn.generator: ("normal", {"mean": 0.0, "std": 1.0}),
    aten.normal.float_float: ("normal", {"mean": None, "std": None}),
    aten.randint.default: ("integers", {"low": 0, "high": None}),
    aten.randint.generator: ("integers", {"low": 0, "high": None}),
    aten.randint.low: ("integers", {"low": None, "high": None}),
    aten.randint.low_generator: ("integers", {"low": None, "high": None}),
    aten.randperm.default: ("permutation", {}),
    aten.randperm.generator: ("permutation", {}),
}
"""Operators by what becomes of their first argument, with the kind of numbers and the parameters of it (None: given)."""

_HINTS = {
    "bernoulli": "the probability is a tensor: compare uniform numbers with it, torch.rand_like(p) < p",
    "normal": "scale numbers of the standard distribution: mean + std * torch.randn_like(mean)",
}
_BEFORE = "draw them before the step and make them an input of it"


def is_random(target: Any, args: Sequence, kwargs: dict[str, Any]) -> bool:
    """Whether an operator draws random numbers with these arguments."""
    return draws_numbers(target, args, kwargs)


def drawn(target: Any, args: Sequence, kwargs: dict[str, Any], where: str) -> tuple[Kind, tuple[float, ...]]:
    """What kind of numbers an operator draws. Raises CompileError for kinds that parties cannot make together."""
    for table in (_INPLACE, _LIKE, _NEW):
        if target in table:
            kind, parameters = table[target]
            given = _arguments(target, args, kwargs)
            numbers = [default if given.get(key) is None else given[key] for key, default in parameters.items()]
            known = tuple(float(number) for number in numbers if number is not None)
            if len(known) == len(numbers):
                return kind, known
    base = target.overloadpacket.__name__
    what = f"the step draws random numbers with {base}, which has no secure form"
    raise CompileError(explain(what, where=where, fix=_HINTS.get(base, _BEFORE)))


def place_for(target: Any, args: Sequence, kwargs: dict[str, Any]) -> torch.Tensor:
    """A tensor of the shape and type of what an operator draws, with any values."""
    given = _arguments(target, args, kwargs)
    options = {key: given[key] for key in ("dtype", "device") if given.get(key) is not None}
    if target in _INPLACE or target in _LIKE:
        return torch.empty_like(args[0], **options)
    if target in (aten.randperm.default, aten.randperm.generator):
        return torch.empty([given["n"]], dtype=given.get("dtype") or torch.int64)
    integer = {"dtype": torch.int64} if target.overloadpacket is aten.randint and "dtype" not in options else {}
    return torch.empty(given["size"], **{**integer, **options})


def hidden_bits(probability: float, like: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Bits that nobody knows, 1 with a probability (to 2^-17): of uniform numbers of all parties the sum counts modulo 1.

    It is uniform while one of them is, whatever the others are. `parts` are vectors of multiples of 2^-16.
    """
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    limit = round(probability * 2**16) * 2.0**-16
    return (torch.remainder(total, 1.0) < limit).to(like.dtype).view(like.shape)


def in_place(target: Any) -> bool:
    """Whether an operator writes what it draws into its first argument."""
    return target in _INPLACE


def _arguments(target: Any, args: Sequence, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip((a.name for a in target._schema.arguments), args, strict=False)), **kwargs}
