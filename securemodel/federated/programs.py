"""The small models that a task compiles: what aggregators compute on shares beyond sums.

Whole numbers are ring elements here, so that checks hold for every element that a client may send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from protocols.errors import explain
from securemodel.compiler.ir import CLIENT, Stranger
from securemodel.compiler.reading import load_of
from securemodel.engines.compiling import compile_for
from securemodel.engines.masked import compiling as masked
from securemodel.errors import CompileError
from securemodel.federated.aggregations import Aggregation, Function
from securemodel.federated.projections import FACTOR_BITS, Bounds
from securemodel.program import Program

Part = tuple[nn.Module, Mapping[str, torch.Tensor], int]
"""A model, examples of its inputs, and its fractional bits."""


class InRange(nn.Module):
    """1 for each weight from 0 to the largest, 0 for the others; `left` is the largest less each."""

    def forward(self, weights: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        return in_range(weights, left).to(torch.int64)


def in_range(weights: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    return (weights >= 0) & (left >= 0)


class Admit(nn.Module):
    """1 for each update (slots,) that is within its bounds, 0 for the others.

    Projections `projected` (slots, K) are at most `reach` (slots,). Where norms matter, the same ring elements as reals are
    `scaled`; in `unit`, their squares add up to at most that of `root` (slots,), made in the same way, and `rest`. Weights
    are `counted`; `left` is the largest less each. Bounds are inputs, though public: numbers in a program are limited, and
    these are exact for every weight.
    """

    def __init__(self, unit: float, rest: float) -> None:
        super().__init__()
        self.unit, self.rest = unit, rest

    def forward(
        self,
        projected: torch.Tensor,
        reach: torch.Tensor,
        counted: torch.Tensor,
        left: torch.Tensor,
        scaled: torch.Tensor | None = None,
        root: torch.Tensor | None = None,
    ) -> torch.Tensor:
        far = reach.unsqueeze(1)
        good = ((projected + far >= 0) & (far - projected >= 0)).all(1) & in_range(counted, left)
        if scaled is not None and root is not None:
            good = good & ((scaled * self.unit).square().sum(1) <= (root * self.unit + self.rest).square())
        return good.to(torch.int64)


class Sorted(nn.Module):
    """Each row of (n, slots) in ascending order."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.sort(dim=1)[0]


class Squares(nn.Module):
    """The sum of squares of each column of (n, slots): (1, slots)."""

    def forward(self, updates: torch.Tensor) -> torch.Tensor:
        return updates.square().sum(0, keepdim=True)


class Products(nn.Module):
    """The inner products of the columns of (n, slots): (slots, slots)."""

    def forward(self, updates: torch.Tensor) -> torch.Tensor:
        return updates.T @ updates


class Lowest(nn.Module):
    """1 for the `keep` lowest scores of (slots,), whole numbers; of equal ones, those that come first are lower."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        earlier = torch.ones(len(scores), len(scores), dtype=torch.int64).tril(-1)
        lower = scores.unsqueeze(0) < scores.unsqueeze(1) + earlier
        return (lower.to(torch.int64).sum(1) < self.keep).to(torch.int64)


class Nearest(nn.Module):
    """1 for those of each row of (slots, slots) that are at most the row's own limit of (slots,)."""

    def forward(self, distances: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
        return (distances <= limits.unsqueeze(1)).to(torch.int64)


class Mixed(nn.Module):
    """For each row of `chosen` (slots, slots), the sum of those columns of (n, slots) where it is 1: (n, slots)."""

    def forward(self, updates: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return updates @ chosen.T


class Factors(nn.Module):
    """min(1, bound / norm) of squared norms in units in which the bound's square is `square`."""

    def __init__(self, unit: float, square: float) -> None:
        super().__init__()
        self.unit, self.square = unit, square

    def forward(self, squares: torch.Tensor) -> torch.Tensor:
        norms = (squares * self.unit).clamp(min=self.square)
        return (norms.rsqrt() * self.square**0.5).clamp(max=1.0)


class Scaled(nn.Module):
    """The sum of columns of (n, slots), each times its factor."""

    def forward(self, updates: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return (updates * factors).sum(1)


class AtLeast(nn.Module):
    """How many of (slots,) are at least each edge."""

    def forward(self, squares: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return (squares >= edges.unsqueeze(1)).to(torch.int64).sum(1)


class Custom(nn.Module):
    """A function of one's own, of updates with a row each."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.function(updates.T, weights)


def models(aggregation: Aggregation, slots: int, block: int, frac_bits: int, bounds: Bounds) -> dict[str, Part]:
    """The models of an aggregation by name, in their order. frac_bits: of uploads."""
    whole = lambda *shape: torch.ones(shape, dtype=torch.int64)
    weights = whole(slots)
    made: dict[str, Part] = {}
    if aggregation.rows:
        rows = whole(slots, aggregation.rows)
        inputs = {"projected": rows, "reach": weights, "counted": weights, "left": weights}
        if aggregation.bound is not None:
            inputs |= {"scaled": rows.double(), "root": weights.double()}
        made["admit"] = (Admit(bounds.unit, bounds.rest), inputs, bounds.frac_bits)
    elif aggregation.weighted:
        made["admit"] = (InRange(), {"weights": weights, "left": weights}, 16)
    updates, table = whole(block, slots), whole(slots, slots)
    if aggregation.kind == "closest" or aggregation.mixes:
        made["products"] = (Products(), {"updates": updates}, 16)
        made["distances"] = (Sorted(), {"rows": table}, 16)
    if aggregation.mixes:
        made["nearest"] = (Nearest(), {"distances": table, "limits": weights}, 16)
        made["mixed"] = (Mixed(), {"updates": updates, "chosen": table}, 16)
    if aggregation.kind == "sorted":
        made["sorted"] = (Sorted(), {"rows": updates}, 16)
    elif aggregation.kind == "scaled":
        made["squares"] = (Squares(), {"updates": updates}, 16)
        made["factors"] = (Factors(*bounds.as_unit(FACTOR_BITS)), {"squares": weights.double()}, FACTOR_BITS)
        made["combine"] = (Scaled(), {"updates": updates.double(), "factors": weights.double()}, FACTOR_BITS)
    elif aggregation.kind == "closest":
        made["lowest"] = (Lowest(aggregation.keep), {"scores": weights}, 16)
    elif aggregation.kind == "norms":
        made["squares"] = (Squares(), {"updates": updates}, 16)
        made["at_least"] = (AtLeast(), {"squares": weights, "edges": whole(len(aggregation.edges))}, 16)
    elif aggregation.kind == "custom" and aggregation.function is not None:
        made["combine"] = (Custom(aggregation.function), {"updates": updates.double(), "weights": weights}, frac_bits)
    return made


def compiled(parts: Mapping[str, Part], aggregators: tuple[str, ...]) -> dict[str, Program]:
    """The programs of models, which have one load, as those of a family. Raises CompileError."""
    programs = {name: _compiled(*part, aggregators) for name, part in parts.items()}
    if any(load_of(program.graph) for program in programs.values()):
        raise CompileError("a function to aggregate with has tensors of its own: write their numbers into it")
    return programs


COLUMNS = 7
"""How many columns a function of one's own is tried on."""


def check_columns(function: Function, slots: int) -> None:
    """Tries a function that has been compiled on random numbers in the clear. Raises CompileError unless it gives a number for
    each column, which depends on that column and the weights alone, and the same ones each time."""
    fix = "give a tensor of one number a column, of that column and the weights, such as updates.sum(0) / weights.sum()"
    updates = torch.rand(slots, COLUMNS, generator=torch.Generator().manual_seed(1)).double() - 0.5
    order = torch.arange(COLUMNS - 1, -1, -1)

    def made_of(columns: torch.Tensor) -> torch.Tensor:
        shape, failed = list(columns.shape), f"a function to aggregate with cannot take {columns.shape[1]} columns"
        try:
            made = function(columns, torch.ones(slots, dtype=torch.int64))
        except Exception as error:
            raise CompileError(explain(failed, why=f"{type(error).__name__}: {error}", fix=fix)) from error
        if not isinstance(made, torch.Tensor) or list(made.shape) != shape[1:]:
            found = list(made.shape) if isinstance(made, torch.Tensor) else f"a {type(made).__name__}"
            what = f"a function to aggregate with gives {found} for updates of shape {shape}, not {shape[1:]}"
            raise CompileError(explain(what, fix=fix))
        return made.double()

    whole = made_of(updates)
    if not torch.allclose(made_of(updates), whole, equal_nan=True):
        why = "it keeps something of an earlier call; it is compiled of one call, and only that is computed"
        raise CompileError(explain("a function to aggregate with gives different results each time", why=why, fix=fix))
    for chosen in (order, order[:3]):
        if not torch.allclose(made_of(updates[:, chosen]), whole[chosen], equal_nan=True):
            why = "it is given some of the parameters at a time: what it makes of one may not depend on others"
            raise CompileError(explain("a function to aggregate with mixes columns", why=why, fix=fix))


def _compiled(model: nn.Module, examples: Mapping[str, torch.Tensor], frac_bits: int, parties: tuple[str, ...]) -> Any:
    compile_now: Callable[..., Program] = compile_for
    return compile_now(
        masked, model.eval(), dict(examples), weights=parties[0], inputs=CLIENT, outputs=CLIENT, parties=parties,
        reveal="all", frac_bits=frac_bits, width=64, rounding="exact", truncate_outputs=True,
        stranger=Stranger(all_in_run=True),
    )  # fmt: skip
