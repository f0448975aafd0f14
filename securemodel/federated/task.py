"""A task: what is aggregated, of whom, by whom, and within which bounds; the same at all who take part."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from protocols.errors import explain
from protocols.names import NAME_RULE, is_name
from securemodel.edge.errors import WireError
from securemodel.edge.rounds import BITS, Aggregator, Layout, RoundCard, largest_of
from securemodel.errors import CompileError
from securemodel.federated.aggregations import Aggregation
from securemodel.federated.budgets import Budget
from securemodel.federated.noise import Protection
from securemodel.federated.projections import FACTOR_BITS, Bounds, bounds, slack

if TYPE_CHECKING:
    from securemodel.program import Program

FEWEST_FRAC_BITS, LEAST_FRAC_BITS, MOST_FRAC_BITS = 8, 16, 24
"""With 16 fractional bits, for which 64 bits are taken where need be, rounding moves a mean by 2^-17 at most; more than 24 are
for nothing, and fewer than 8 are taken only if asked for."""
MOST_LIMIT = 2.0**62
FEWEST_UNITS = 64
"""A limit of fewer units of the ring is taken only if asked for: most of a number would be lost to rounding."""
SUMS_ROOM = 16
"""How many times the largest honest sum fits the ring where norms are bounded: docs/federated-checks.md says what it is for."""


@dataclass(frozen=True)
class Task:
    """Rounds of one aggregation. `slots`: how many clients a round takes at most; `minimum`: with fewer, nothing is revealed.

    `limit`: the largest magnitude of a client's numbers; `max_weight`: its largest weight. `bits` and `frac_bits` are
    chosen, where None, so that the sum of all slots fits. `levels`: coarse updates, of whole multiples of limit / levels.
    `reveal`: who gets the result. `protection`: noise, of which every aggregator adds its own; `budget`: the most of one
    client. Raises CompileError.
    """

    name: str
    aggregation: Aggregation
    layout: Layout
    slots: int
    limit: float = 1.0
    max_weight: int = 1
    minimum: int = 2
    aggregators: tuple[str, ...] = ("first", "second")
    reveal: Literal["aggregators", "clients"] = "aggregators"
    bits: int | None = None
    frac_bits: int | None = None
    levels: int | None = None
    deadline_s: float = 600.0
    protection: Protection | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        self._check_kinds()
        if not 2 <= len(self.aggregators) <= 3:
            raise CompileError("a task has two or three aggregators")
        if self.max_weight != 1 and not self.aggregation.weighted:
            raise CompileError(
                explain(
                    f"max_weight={self.max_weight}, but {self.aggregation.name} counts every client once",
                    fix="take weighted_mean(), or leave max_weight out",
                )
            )
        self._check_numbers()
        self._check_aggregation()
        bits, frac_bits = self.ring
        enough = frac_bits >= (0 if self.frac_bits is not None else FEWEST_FRAC_BITS)
        if self.levels is None and not (enough and self._fits(bits, frac_bits)):
            noise = "" if self.protection is None else " with this noise"
            what = f"{self.slots} updates of {self.layout.size} numbers within ±{self.limit:g}{noise} do not fit {bits} bits"
            raise CompileError(explain(what, fix="give smaller limits, bounds or weights, or bits=64"))
        units = self.limit * 2.0**frac_bits
        if self.levels is None and self.frac_bits is None and units < FEWEST_UNITS:
            what = f"numbers within ±{self.limit:g} are {units:.2g} units of 2^-{frac_bits} at most"
            fix = "multiply updates and limit by a power of two, or give frac_bits="
            raise CompileError(explain(what, why="rounding would leave little of them", fix=fix))
        try:
            card = self._card("", 0, ["A" * 43] * len(self.aggregators), "", 0.0, None)
        except WireError as error:
            raise CompileError(explain("this task cannot be carried out", why=error.why)) from error
        if self.protection is not None:
            most = self.slots * self.max_weight * self.limit / card.unit
            parties = len(self.aggregators)
            self.protection.check_room(most, card.unit, card.count, self.max_weight, parties, card.bits)

    def _check_kinds(self) -> None:
        """Raises CompileError for what is not what it should be."""
        for name, kind, fix in (
            ("aggregation", Aggregation, "call what describes one, such as mean()"),
            ("layout", Layout, "give Layout.of(arrays), of securemodel.edge.rounds"),
            ("budget", Budget, "give Budget(rounds=, epsilon=), or leave it out"),
            ("protection", Protection | None, "give Protection(multiplier, norm), or leave it out"),
            ("aggregators", tuple | list, "give a tuple of two or three names"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise CompileError(explain(f"this task's {name} is none", where=str(self.name), fix=fix))
        for name in ("bits", "frac_bits", "levels"):
            if getattr(self, name) is not None and type(getattr(self, name)) is not int:
                what = f"{name}={getattr(self, name)!r} is no whole number"
                raise CompileError(explain(what, where=str(self.name), fix="leave it out: it is chosen then"))
        if len(set(self.aggregators)) != len(self.aggregators) or not all(map(is_name, self.aggregators)):
            raise CompileError(f"bad names of aggregators: they differ, and {NAME_RULE}")

    def _check_numbers(self) -> None:
        """Raises CompileError for numbers that no task can have, before anything is made of them."""
        real = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < float("inf")
        for name in ("limit", "deadline_s"):
            if not real(getattr(self, name)):
                raise CompileError(explain(f"{name}={getattr(self, name)!r} is no number above 0", where=self.name))
        if self.limit > MOST_LIMIT:
            raise CompileError(
                explain(f"limit={self.limit:g} is more than 2^62", where=self.name, fix="give a smaller one")
            )
        if self.bits is not None and self.bits not in BITS:
            what = f"bits={self.bits} is no ring"
            raise CompileError(explain(what, where=self.name, fix=f"leave it out, or give one of {BITS}"))
        for name in ("slots", "max_weight", "minimum"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                what = f"{name}={getattr(self, name)!r} is no whole number from 1 on"
                raise CompileError(explain(what, where=self.name))
        if self.budget.epsilon is not None and self.protection is None:
            what = "a budget of epsilon is for rounds with noise, and this task has none"
            raise CompileError(explain(what, where=self.name, fix="give protection=, or Budget(rounds=)"))

    def _check_aggregation(self) -> None:
        """Raises CompileError for what does not go together with the aggregation."""
        if self.aggregation.kind != "sum" and self.bits not in (None, 64):
            raise CompileError(f"{self.aggregation.name} computes with 64 bits, not {self.bits}")
        if self.aggregation.kind == "closest" and self.aggregation.keep < self.minimum:
            what = f"{self.aggregation.keep} updates are chosen, fewer than the minimum of {self.minimum}"
            raise CompileError(explain(what, why="the mean of so few shows too much of each", fix="raise keep="))
        fewest = max(self.aggregation.keep, self.aggregation.dishonest + 3)
        if self.aggregation.kind == "closest" and self.slots < fewest:
            what = f"{self.slots} slots are too few for this {self.aggregation.name}: it compares {fewest} clients at least"
            raise CompileError(explain(what, fix="give more slots, or smaller dishonest= or keep="))
        if self.aggregation.mixes and self.minimum <= 2 * self.aggregation.dishonest:
            what = f"{self.aggregation.dishonest} clients may lie, of a minimum of {self.minimum}"
            raise CompileError(explain(what, why="more than half must be honest", fix="raise minimum="))
        if self.protection is not None and self.aggregation.kind not in ("sum", "scaled"):
            what = f"noise hides what a client adds to a sum, and {self.aggregation.name} is none"
            raise CompileError(explain(what, fix="take norm_bounded_mean(), or leave out protection="))
        scaled = 1.01 * self.aggregation.bound if self.aggregation.kind == "scaled" and self.aggregation.bound else 0.0
        if self.protection is not None and self.protection.norm < scaled:
            what = f"noise for a norm of {self.protection.norm:g} hides no update that is scaled to more"
            raise CompileError(explain(what, fix=f"Protection(norm={scaled:g})"))
        if self.reveal == "clients" and self.aggregation.kind == "norms":
            raise CompileError("a histogram of norms is for the aggregators: leave out reveal='clients'")
        if self.levels is not None and (self.aggregation.kind != "sum" or self.aggregation.rows):
            raise CompileError(f"coarse updates (levels=) can be added up only, not given to {self.aggregation.name}")

    @cached_property
    def ring(self) -> tuple[int, int]:
        """(bits, frac_bits) of what clients share: 32 bits where the sum of all slots fits with enough of a fraction."""
        if self.levels is not None:
            span = int(self.slots * self.max_weight * self.levels).bit_length()
            return next((bits for bits in BITS if span < bits), 64) if self.bits is None else self.bits, 0
        least = LEAST_FRAC_BITS if self.frac_bits is None else self.frac_bits
        narrow = self.bits is None and self.aggregation.kind == "sum" and self._fits(32, least)
        bits = (32 if narrow else 64) if self.bits is None else self.bits
        fraction = next((f for f in range(MOST_FRAC_BITS, -1, -1) if self._fits(bits, f)), 0)
        return bits, fraction if self.frac_bits is None else self.frac_bits

    @property
    def _times(self) -> int:
        """How often a number counts at most before it is shared."""
        return self.max_weight if self.premultiplied else 1

    @property
    def premultiplied(self) -> bool:
        """Whether clients multiply their numbers by their weights."""
        return self.aggregation.kind != "custom"

    @property
    def _norm(self) -> float | None:
        """The largest norm of an update, which a client checks: beyond it would be dropped, or not hidden by the noise."""
        if self.aggregation.kind != "sum":
            return None
        bounds = [self.aggregation.bound, self.protection.norm if self.protection is not None else None]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _fits(self, bits: int, frac_bits: int) -> bool:
        """Whether all that is computed fits a ring, for everybody whose update is not dropped."""
        most, found = 2.0 ** (bits - 1), self._bounds(bits, frac_bits)
        sums = self.slots * largest_of(self._times, self.limit, 2.0**-frac_bits)
        fits = (sums if self.aggregation.bound is None else SUMS_ROOM * sums) < most
        if self.protection is not None:
            parties, weight = len(self.aggregators), self.max_weight
            fits = fits and self.protection.has_room(sums, 2.0**-frac_bits, self.layout.size, weight, parties, bits)
        if self.aggregation.rows:
            largest = 2.0 * found.reach * self._times
            added = self.slots if self.aggregation.mixes else 1
            fits = (
                fits
                and (4 if self.aggregation.kind == "sum" else 16) * added * largest < most
                and (bits < 64 or self.layout.size * largest < most / 4)
                and (self.aggregation.bound is None or 2.0 * found.root * self._times < most)
            )
        if self.aggregation.kind in ("scaled", "closest", "norms") or self.aggregation.mixes:
            times = 32 if self.aggregation.mixes else 16
            fits = fits and times * self.slots * (slack(self.aggregation.rows) * found.norm) ** 2 < most
        if self.aggregation.kind in ("scaled", "custom"):
            fits = fits and frac_bits <= FACTOR_BITS
        return fits

    def _bounds(self, bits: int, frac_bits: int) -> Bounds:
        norm = self.aggregation.bound
        norm = self.limit * math.sqrt(self.layout.size) if norm is None else norm
        unit = 2.0**-frac_bits if self.levels is None else self.limit / self.levels
        return bounds(norm / unit, self.layout.size, self.aggregation.rows or 1, self._times, bits)

    @cached_property
    def bounds(self) -> Bounds:
        """What updates are checked against."""
        return self._bounds(*self.ring)

    @cached_property
    def block(self) -> int:
        """How many numbers of all updates a program takes at a time."""
        needed = -(-self.layout.size // 16) * 16
        return min(needed, 4096, max(64, 2**16 // self.slots // 16 * 16))

    @cached_property
    def _by_name(self) -> dict[str, Program]:
        if self.aggregation.kind == "sum" and not self.aggregation.rows and not self.aggregation.weighted:
            return {}
        from securemodel.federated import programs  # the compiler takes 100 MB, which sums do not need

        parts = programs.models(self.aggregation, self.slots, self.block, self.ring[1], self.bounds)
        made = programs.compiled(parts, self.aggregators)
        if self.aggregation.function is not None:
            programs.check_columns(self.aggregation.function, self.slots)
        return made

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each program by its name."""
        return {name: number for number, name in enumerate(self._by_name, 1)}

    @cached_property
    def programs(self) -> dict[int, Program]:
        """The programs by their numbers, for a session that serves them; none where sums are enough."""
        return {self.numbers[name]: program for name, program in self._by_name.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is computed."""
        told = [self.aggregation.text(), *(program.digest for program in self.programs.values())]
        return sha256("\n".join(told).encode()).hexdigest()

    def card(
        self,
        number: int,
        keys: Sequence[str],
        *,
        model: str = "",
        deadline: float | None = None,
        positions: Sequence[int] | None = None,
    ) -> RoundCard:
        """The card of a round. `keys`: the aggregators' public keys; `model`: the digest of what updates start from."""
        ends = time.time() + self.deadline_s if deadline is None else deadline
        return self._card(self.digest, number, keys, model, ends, positions)

    def _card(
        self,
        program: str,
        number: int,
        keys: Sequence[str],
        model: str,
        deadline: float,
        positions: Sequence[int] | None,
    ) -> RoundCard:
        bits, frac_bits = self.ring
        return RoundCard(
            task=self.name,
            program=program,
            round=number,
            model=model,
            layout=self.layout,
            bits=bits,
            frac_bits=frac_bits,
            limit=self.limit,
            slots=self.slots,
            max_weight=self.max_weight,
            aggregators=tuple(Aggregator(*each) for each in zip(self.aggregators, keys, strict=True)),
            deadline=deadline,
            minimum=self.minimum,
            reveal=self.reveal,
            premultiplied=self.premultiplied,
            bound=self._norm,
            levels=self.levels,
            positions=None if positions is None else tuple(np.asarray(positions).tolist()),
        )


TO_AGGREGATORS, TO_CLIENTS = "to aggregators: the aggregate", "to clients: the aggregate"
"""What a round with a result revealed."""
Deliveries = dict[int, dict[str, bytes]]
"""Each aggregator's share of a result by rank, for each client by its name."""


@dataclass(frozen=True)
class Outcome:
    """How a round ended. `aggregate`: by array, or None where clients get it or nothing was revealed (`revealed` says what).

    `bytes`: what aggregators received of clients, by name; an aggregator that is a process knows its own alone, and after
    a restart counts parts without their seal. `epsilon`: of the client that was in most rounds, where there is noise.
    `deliveries`: what each present client is to be given, where clients get the result.
    """

    aggregate: dict[str, Any] | None
    present: tuple[str, ...]
    absent: tuple[str, ...]
    refused: dict[str, str]
    revealed: str
    bytes: dict[str, int]
    epsilon: float | None = None
    deliveries: Deliveries | None = None
