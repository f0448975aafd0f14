"""Powers of residues: of one fixed base, of many bases, and products of powers.

Windows of digits, as in Bernstein, "Pippenger's exponentiation algorithm" (2002): Brauer's and Yao's methods for one
base, Straus' for several bases that share squarings. Exponents may be secret: windows, tables and the order of products
follow from public limits, and where a digit is zero one is multiplied by. Only which row of a table is read depends on
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import gmpy2
import numpy as np

from protocols.paillier.residues import Residues

TABLE_BYTES = 1 << 25
"""The most memory the tables of one step of a linear map may take."""


@dataclass(frozen=True, repr=False, eq=False)
class FixedBase:
    """One base to many powers: base^(d 256^i) for every byte d and place i. Build it with `fixed_base`."""

    residues: Residues
    table: np.ndarray
    places: int

    def powers(self, exponents: bytes) -> np.ndarray:
        """[N, *cell]: the base to N exponents, given as `places` little-endian bytes each."""
        digits = np.frombuffer(exponents, np.uint8).reshape(-1, 1, self.places).astype(np.int32)
        return self.residues.products(self.table, rows_of(digits, np.arange(self.places), 255))


def fixed_base(residues: Residues, base: int, places: int) -> FixedBase:
    """Tables for exponents of `places` bytes."""
    bases = [gmpy2.mpz(base)]
    while len(bases) < places:
        bases.append(gmpy2.powmod(bases[-1], 256, residues.modulus))
    return FixedBase(residues, power_table(residues, residues.enter(bases), 255), places)


def power_table(residues: Residues, bases: np.ndarray, top: int) -> np.ndarray:
    """[1 + N top, *cell]: one, and then the powers 1 to `top` of each base; see `rows_of`."""
    table = np.empty((1 + len(bases) * top, *residues.cell), bases.dtype)
    table[:1], table[1::top] = residues.ones(1), bases
    first, have = top * np.arange(len(bases), dtype=np.int32)[:, None], 1
    while have < top:
        small = np.arange(1, min(have, top - have) + 1, dtype=np.int32)
        pairs = np.stack(np.broadcast_arrays(first + have, first + small), axis=-1).reshape(-1, 1, 2)
        table[(first + have + small).reshape(-1)] = residues.products(table, pairs)
        have += len(small)
    return table


def rows_of(digits: np.ndarray, bases: np.ndarray, top: int) -> np.ndarray:
    """Rows of a `power_table` that hold the bases of these numbers to the powers `digits`, from 0 to `top`."""
    return np.where(digits == 0, 0, bases * top + digits).astype(np.int32)


def power_all(residues: Residues, bases: np.ndarray, exponent: int) -> np.ndarray:
    """[N, *cell]: all bases to one positive exponent, which may be secret, but for how many words it has."""
    if len(bases) < residues.lanes // 2 or not residues.fast:  # too few to fill the lanes
        return residues.enter([gmpy2.powmod_sec(base, exponent, residues.modulus) for base in residues.leave(bases)])
    return power_each(residues, bases, [exponent], int(exponent).bit_length())


def power_each(residues: Residues, bases: np.ndarray, exponents: Sequence[int], bits: int) -> np.ndarray:
    """[N, *cell]: each base to its own exponent from 0 to below 2^bits; one exponent in the list is for all bases."""
    window = min(range(1, 7), key=lambda w: (1 << w) - 2 + -(-bits // w))
    levels, mask = max(1, -(-bits // window)), (1 << window) - 1
    digits = np.array([[int(e) >> window * j & mask for j in reversed(range(levels))] for e in exponents], np.int32)
    index = rows_of(digits.reshape(-1, levels), np.arange(len(bases))[:, None], mask)
    return residues.products(power_table(residues, bases, mask), index[..., None], window)


@dataclass(frozen=True)
class Schedule:
    """How numbers of a public limit are taken apart: `levels` digits of `window` bits, none above `top` in magnitude.

    products: how many a linear map then takes for each of its bases.
    """

    window: int
    levels: int
    top: int
    products: float


def schedule(limit: int, uses: float) -> Schedule:
    """The cheapest for numbers up to a limit, where each base is used that often."""
    return min((_schedule(limit, window, uses) for window in range(1, 11)), key=lambda made: made.products)


def _schedule(limit: int, window: int, uses: float) -> Schedule:
    half, levels, lower, top = 1 << window - 1, 1, 0, max(1, limit)
    while top > half:
        lower = lower << window | half  # the most that is carried into the highest digit
        top = max(limit + lower >> window * levels, -(lower - limit >> window * levels))
        levels += 1
    top = half if levels > 1 else top
    return Schedule(window, levels, top, 2 * top + 1 + uses * levels)  # tables, and one for each digit


def linear(
    residues: Residues, bases: np.ndarray, weights: np.ndarray, limit: int, places: np.ndarray | None = None
) -> np.ndarray:
    """prod over k of base(k, b)^weights[m, k]: a matrix product "in the exponent", [M, B, *cell].

    weights: int64[M, K] of either sign, of magnitude up to `limit` (ValueError otherwise), which is public: what is
    multiplied depends on it and on shapes alone. bases: [K, B, *cell], or with places int[K, B] an array [N, *cell]
    in which base(k, b) is number places[k, b], and -1 stands for one. All rows use the same tables, of powers of each
    base and its inverse, whose width is chosen for how often a base is used. A level of digits is a product of its own
    until the end, so that squarings are not repeated for every part of the bases.
    """
    if places is None:
        places = np.arange(bases.shape[0] * bases.shape[1]).reshape(bases.shape[:2])
        bases = bases.reshape(-1, *residues.cell)
    (count, columns), rows = places.shape, len(weights)
    if not count or not columns or not rows:
        return residues.ones(rows * columns).reshape(rows, columns, *residues.cell)
    if max(int(weights.max()), -int(weights.min())) > limit:
        raise ValueError("linear: a weight is above the limit")
    plan = schedule(limit, rows * places.size / len(bases))
    room = max(1, TABLE_BYTES // (2 * plan.top * (residues.modulus.bit_length() // 8)))  # bases with tables at a time
    deep = min(count, room)
    across = max(1, min(columns, room * places.size // len(bases) // deep))
    digits = signed_digits(weights, plan.levels, plan.window)
    parts = [
        _columns(residues, bases, digits, places[:, c : c + across], deep, plan.top) for c in range(0, columns, across)
    ]
    made = np.concatenate(parts, axis=1)
    table = np.concatenate([residues.ones(1), made.reshape(-1, *residues.cell)])
    each = np.arange(1, len(table), dtype=np.int32).reshape(-1, plan.levels, 1)
    return residues.products(table, each, plan.window).reshape(rows, columns, *residues.cell)


def _columns(
    residues: Residues, bases: np.ndarray, digits: np.ndarray, places: np.ndarray, deep: int, top: int
) -> np.ndarray:
    """[M, B, levels, *cell]: for some columns the products of each level's digits, `deep` terms at a time."""
    made: np.ndarray | None = None
    for start in range(0, places.shape[0], deep):
        used, number = np.unique(places[start : start + deep].T, return_inverse=True)
        number = number.reshape(places.shape[1], 1, -1)  # [B, 1, K] against digits [M, 1, levels, K]
        part = bases[used]  # where -1 was among the places, number 0 is not used
        some = np.where(used[number] < 0, 0, digits[:, None, :, start : start + deep])
        table = power_table(residues, np.concatenate([part, residues.inverses(part)]), top)
        index = rows_of(np.abs(some), number + len(part) * (some < 0), top)
        sums = _in_parallel(residues, table, index.reshape(-1, index.shape[-1]))
        made = sums if made is None else residues.multiply(made, sums)
    return cast(np.ndarray, made).reshape(len(digits), places.shape[1], -1, *residues.cell)


def _in_parallel(residues: Residues, table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Products of the rows of index[K, T], with few long products cut into several that run side by side."""
    count, terms = index.shape
    cuts = max(1, min(terms // 8, 2 * residues.lanes // count))
    padded = np.zeros((count, -(-terms // cuts) * cuts), np.int32)
    padded[:, :terms] = index
    made = residues.products(table, padded.reshape(count * cuts, 1, -1))
    if cuts == 1:
        return made
    table = np.concatenate([residues.ones(1), made])
    return residues.products(table, np.arange(1, len(table), dtype=np.int32).reshape(count, 1, cuts))


def signed_digits(weights: np.ndarray, levels: int, window: int) -> np.ndarray:
    """[M, levels, K]: digits from -2^(window-1) to below 2^(window-1), highest level first, that make up int64[M, K].

    The highest digit has what is left, see `schedule`.
    """
    rest, half, out = weights.copy(), 1 << (window - 1), []
    for _ in range(levels - 1):
        digit = (rest + half & (1 << window) - 1) - half
        out.append(digit)
        rest = (rest >> window) + (digit < 0)  # (rest - digit) / 2^window, which cannot overflow
    out.append(rest)
    return np.stack(out[::-1], axis=1)
