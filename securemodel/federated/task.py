"""A task: what is aggregated, of whom, by whom, and within which bounds; the same at all who take part."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

from protocols.errors import explain
from protocols.names import NAME_RULE, is_name
from securemodel.edge.errors import WireError
from securemodel.edge.rounds import BITS, Aggregator, Layout, RoundCard
from securemodel.errors import CompileError
from securemodel.federated.aggregations import Aggregation
from securemodel.federated.budgets import Budget
from securemodel.federated.noise import Protection

LEAST_FRAC_BITS, MOST_FRAC_BITS = 16, 24
"""With 16 fractional bits, rounding moves a mean by 2^-17 at most; more than 24 are for nothing."""


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
        if len(set(self.aggregators)) != len(self.aggregators) or not all(map(is_name, self.aggregators)):
            raise CompileError(f"bad names of aggregators: they differ, and {NAME_RULE}")
        if not 2 <= len(self.aggregators) <= 3:
            raise CompileError("a task has two or three aggregators")
        if self.max_weight != 1 and not self.aggregation.weighted:
            raise CompileError(
                explain(
                    f"max_weight={self.max_weight}, but {self.aggregation.name} counts every client once",
                    fix="take weighted_mean(), or leave max_weight out",
                )
            )
        try:
            card = self.card(0, ["A" * 43] * len(self.aggregators))
        except WireError as error:
            raise CompileError(explain("this task cannot be carried out", why=error.why)) from error
        if self.protection is not None:
            most = self.slots * self.max_weight * self.limit / card.unit
            self.protection.check_room(most, card.unit, card.count, len(self.aggregators), card.bits)

    @cached_property
    def ring(self) -> tuple[int, int]:
        """(bits, frac_bits) of what clients share: 32 bits where the sum of all slots fits with enough of a fraction."""
        if self.levels is not None:
            span = int(self.slots * self.max_weight * self.levels).bit_length()
            return self.bits or next(bits for bits in BITS if span < bits), 0
        least = LEAST_FRAC_BITS if self.frac_bits is None else self.frac_bits
        bits = self.bits or (32 if self._fraction(32) >= least else 64)
        return bits, min(self._fraction(bits), MOST_FRAC_BITS) if self.frac_bits is None else self.frac_bits

    def _fraction(self, bits: int) -> int:
        """The most fractional bits with which the sum of all slots fits."""
        room = 2.0 ** (bits - 1) / (self.slots * self.max_weight * max(self.limit, 2.0**-20))
        return max(0, math.ceil(math.log2(room)) - 1)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is computed."""
        return sha256(self.aggregation.text().encode()).hexdigest()

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
        bits, frac_bits = self.ring
        return RoundCard(
            task=self.name,
            program=self.digest,
            round=number,
            model=model,
            layout=self.layout,
            bits=bits,
            frac_bits=frac_bits,
            limit=self.limit,
            slots=self.slots,
            max_weight=self.max_weight,
            aggregators=tuple(Aggregator(*each) for each in zip(self.aggregators, keys, strict=True)),
            deadline=time.time() + self.deadline_s if deadline is None else deadline,
            minimum=self.minimum,
            reveal=self.reveal,
            levels=self.levels,
            positions=None if positions is None else tuple(map(int, positions)),
        )


Deliveries = dict[int, dict[str, bytes]]
"""Each aggregator's share of a result by rank, for each client by its name."""


@dataclass(frozen=True)
class Outcome:
    """How a round ended. `aggregate`: by array, or None where clients get it or nothing was revealed (`revealed` says what).

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
