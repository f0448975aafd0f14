"""One step of a linear model between two parties, in numbers: ranges, gates, sizes of messages, and what they cost.

Scores z = X w, in t = z / interval a polynomial p(t) in the sigmoid's place, residuals r = p - y, gradients X^T r, and
w <- w - rate (X^T r / rows + decay w). Everything is a fixed-point integer in shares over the integers
(protocols.paillier.share_gates); a share has `SIGMA` bits more than its value, so nothing wraps as long as inputs stay
below `input_limit` and scores below `score_limit`. A result up to 2^39 times what these allow still fits, but is hidden
less: with the fifth power of a score that is 2^7 times the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from protocols.paillier.fixed import magnitude
from protocols.paillier.linear_gate import SIGMA
from protocols.paillier.long_powers import WINDOW
from protocols.paillier.share_gates import MatrixGate, PolynomialGate

INPUT_BITS, SCORE_BITS, RESIDUAL_BITS, WEIGHT_BITS, COEFFICIENT_BITS, RATE_BITS = 16, 16, 16, 20, 16, 40
"""Fractional bits of inputs, t, residuals, weights, the polynomial's coefficients in t, and rates."""
MOST_STEPS_BITS = 24
"""Steps that weights stay in range for: each adds a share of a gradient to a share of a weight."""
DEGREES = (1, 5, 9)
"""Their leading coefficients are positive: a score outside of the interval is pushed back in. With 3 and 7 it is driven
further out, so training diverges."""
DIGEST_BYTES, GUARD_BYTES = 16, 64


def sigmoid_coefficients(degree: int, interval: float) -> tuple[float, ...]:
    """c_1, c_3, ... of the odd polynomial in t = z / interval that is nearest to sigmoid(z) - 1/2 (least squares)."""
    t = np.linspace(-1, 1, 4001)
    wanted = 1 / (1 + np.exp(-interval * t)) - 0.5
    found, *_ = np.linalg.lstsq(t[:, None] ** np.arange(1, degree + 1, 2), wanted, rcond=None)
    return tuple(float(c) for c in found)


@dataclass(frozen=True)
class LinearStep:
    """What both parties agree on. `columns`: how many each party has, a bias counted as one of the labels' owner."""

    kind: Literal["logistic", "linear"]
    rows: int
    columns: tuple[int, int]
    outputs: int
    degree: int
    interval_bits: int
    input_limit: float
    score_limit: float
    key_bits: int

    # ---- ranges: bits of magnitudes of values, and of shares
    @property
    def score_value_bits(self) -> int:
        return magnitude(self.score_limit, INPUT_BITS + WEIGHT_BITS).bit_length()

    @property
    def score_shift(self) -> int:
        """From scores' bits to those of t, or of residuals."""
        if self.kind == "linear":
            return INPUT_BITS + WEIGHT_BITS - RESIDUAL_BITS
        return INPUT_BITS + WEIGHT_BITS - SCORE_BITS + self.interval_bits

    @property
    def score_share_bits(self) -> int:
        """Of t: a party's part of the scores, masked, and the mask of the other's."""
        return self.score_value_bits + SIGMA + 2 - self.score_shift

    @cached_property
    def coefficients(self) -> tuple[int, ...]:
        """c_0 to c_D for integers t: at t^D with `COEFFICIENT_BITS`, at lower powers with what makes up for these."""
        made = [0] * (self.degree + 1)
        for k, c in zip(range(1, self.degree + 1, 2), sigmoid_coefficients(self.degree, self.interval), strict=True):
            made[k] = round(c * 2**COEFFICIENT_BITS) << SCORE_BITS * (self.degree - k)
        return tuple(made)

    @property
    def interval(self) -> int:
        return 1 << self.interval_bits

    @property
    def polynomial_shift(self) -> int:
        return SCORE_BITS * self.degree + COEFFICIENT_BITS - RESIDUAL_BITS

    @property
    def polynomial_value_bits(self) -> int:
        largest = magnitude(self.score_limit / self.interval, SCORE_BITS)
        return sum(abs(c) * largest**k for k, c in enumerate(self.coefficients)).bit_length()

    @property
    def residual_value_bits(self) -> int:
        if self.kind == "linear":
            return magnitude(2 * self.score_limit, RESIDUAL_BITS).bit_length()
        return max(self.polynomial_value_bits - self.polynomial_shift, RESIDUAL_BITS) + 1

    @property
    def residual_share_bits(self) -> int:
        if self.kind == "linear":
            return max(self.score_share_bits, magnitude(self.score_limit, RESIDUAL_BITS).bit_length()) + 1
        if self.degree == 1:
            made = self.score_share_bits + self.coefficients[1].bit_length()
        else:
            made = self.polynomial_value_bits + SIGMA
        return max(made - self.polynomial_shift, RESIDUAL_BITS) + 2

    @property
    def gradient_value_bits(self) -> int:
        return (self.rows * magnitude(self.input_limit, INPUT_BITS) << self.residual_value_bits).bit_length()

    @property
    def update_shift(self) -> int:
        return INPUT_BITS + RESIDUAL_BITS - WEIGHT_BITS + RATE_BITS

    @property
    def weight_share_bits(self) -> int:
        each = self.gradient_value_bits + SIGMA + WEIGHT_BITS - INPUT_BITS - RESIDUAL_BITS + 2
        return max(each, WEIGHT_BITS + SIGMA) + MOST_STEPS_BITS

    # ---- gates; `owner` is 0 or 1, whose columns or whose key it is about
    def scores(self, owner: int) -> MatrixGate:
        """X w of the owner's columns."""
        return MatrixGate(
            self.rows, self.columns[owner], self.outputs, self.score_value_bits, self.weight_share_bits, self.key_bits
        )

    def gradients(self, owner: int) -> MatrixGate:
        """X^T r of the owner's columns."""
        return MatrixGate(
            self.columns[owner], self.rows, self.outputs, self.gradient_value_bits, self.residual_share_bits,
            self.key_bits,
        )  # fmt: skip

    def part(self, owner: int) -> slice:
        """The numbers of a batch, in one row, of which the owner holds the key in the polynomial."""
        count = self.rows * self.outputs
        return slice(0, (count + 1) // 2) if owner == 0 else slice((count + 1) // 2, count)

    def polynomial(self, owner: int) -> PolynomialGate | None:
        """p(t) of half of the rows; None where nothing is to be sent."""
        part = self.part(owner)
        if self.kind == "linear" or self.degree == 1 or part.start == part.stop:
            return None
        return PolynomialGate(
            part.stop - part.start, self.coefficients, self.polynomial_value_bits, self.score_share_bits, self.key_bits
        )

    @property
    def guard(self) -> MatrixGate:
        """Sum of t^2, but for what the second party adds: the key is the first one's."""
        count = self.rows * self.outputs
        bits = 2 * self.score_share_bits + count.bit_length() + 2
        return MatrixGate(1, count, 1, bits, self.score_share_bits + 1, self.key_bits)

    def check(self) -> None:
        """Raises InputError where a result does not fit the key."""
        for owner in (0, 1):
            _ = self.scores(owner).column, self.gradients(owner).column
            if gate := self.polynomial(owner):
                _ = gate.reply
        _ = self.guard.column

    # ---- counts
    @property
    def rounds(self) -> int:
        """Of a step: two each for scores, polynomial and gradients."""
        return 6 if self.polynomial(0) else 4

    def ciphertexts(self, owner: int, new_rows: int) -> list[int]:
        """What a party sends in each round; `new_rows` of its rows are sent for the first time."""
        other, mine = 1 - owner, self.scores(owner)
        own, answered = self.gradients(owner), self.gradients(other)
        made = [mine.inputs * mine.column.cells + mine.own_cells + new_rows * own.column.cells]
        made.append(self.scores(other).own_cells)
        for gate in (self.polynomial(owner), self.polynomial(other)):
            if self.polynomial(0):
                made.append(0 if gate is None else gate.sealed_cells if len(made) == 2 else gate.reply.cells)
        return [*made, own.own_cells, answered.own_cells]

    def work(self, owner: int, new_rows: int) -> dict[str, int]:
        """What a party computes in a step: encryptions, decryptions, re-randomizations, and products of residues."""
        sent, theirs = self.ciphertexts(owner, new_rows), self.ciphertexts(1 - owner, new_rows)
        made = {
            "encryptions": sum(sent[0::2]), "decryptions": sum(theirs[1::2]), "refreshed": sum(sent[1::2]),
            "products": 0,
        }  # fmt: skip
        for gate in (self.scores(1 - owner), self.gradients(1 - owner)):
            levels = -(-(gate.share_bits + 1) // WINDOW)
            bases, outs = gate.inputs * gate.column.cells, gate.own_cells
            table = ((1 << WINDOW) - 2) * bases
            made["products"] += table + gate.inputs * outs * levels + outs * levels * (WINDOW + 1)
        if curve := self.polynomial(1 - owner):
            bits = [curve._factor_bits(i) + 1 for i in range(1, curve.degree)]
            each = sum((1 << WINDOW) - 2 + b // WINDOW for b in bits) + curve.reply.slots.width * (WINDOW + 2) // WINDOW
            made["products"] += curve.rows * each
        return made
