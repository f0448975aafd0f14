"""Powers of residues: of one fixed base, of many bases, and products of powers.

Windows of digits as in Bernstein, "Pippenger's exponentiation algorithm" (2002): §2 for one base (Brauer, Yao), §3 for
several bases that share squarings (Straus) and §4 for sums over equal digits (Pippenger). The running time depends on
which exponents are zero: exponents that hide something are full-length random numbers.
"""

from dataclasses import dataclass

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
        index = digits + 256 * np.arange(self.places, dtype=np.int32)
        return self.residues.products(self.table, np.where(digits == 0, 0, index))


def fixed_base(residues: Residues, base: int, places: int) -> FixedBase:
    """Tables for exponents of `places` bytes."""
    bases = [gmpy2.mpz(base)]
    while len(bases) < places:
        bases.append(gmpy2.powmod(bases[-1], 256, residues.modulus))
    table = power_table(residues, residues.enter(bases), 255)
    return FixedBase(residues, table.reshape(-1, *residues.cell), places)


def power_table(residues: Residues, bases: np.ndarray, top: int) -> np.ndarray:
    """[N, top + 1, *cell]: the powers 0 to `top` of [N, *cell]."""
    table = np.empty((len(bases), top + 1, *residues.cell), bases.dtype)
    table[:, 0], table[:, 1] = residues.ones(1), bases
    have = 1
    while have < top:
        more = min(have, top - have)
        left = np.repeat(table[:, have], more, axis=0)
        right = table[:, 1 : more + 1].reshape(-1, *residues.cell)
        table[:, have + 1 : have + 1 + more] = residues.multiply(left, right).reshape(-1, more, *residues.cell)
        have += more
    return table


def power_each(residues: Residues, bases: np.ndarray, exponents: list[int]) -> np.ndarray:
    """[N, *cell]: each base to its own exponent, none negative; one exponent in the list is for all bases."""
    bits = max((int(e).bit_length() for e in exponents), default=0)
    if len(bases) < residues.lanes // 2 or not residues.fast:  # too few to fill the lanes
        each = zip(residues.leave(bases), exponents if len(exponents) > 1 else exponents * len(bases), strict=True)
        powers = [gmpy2.powmod(base, exponent, residues.modulus) for base, exponent in each]
        return residues.enter(powers)
    window = min(range(1, 7), key=lambda w: (1 << w) - 2 + -(-bits // w))
    levels = max(1, -(-bits // window))
    mask = (1 << window) - 1
    digits = np.array([[int(e) >> window * j & mask for j in reversed(range(levels))] for e in exponents], np.int32)
    digits = np.broadcast_to(digits, (len(bases), levels))
    table = power_table(residues, bases, mask).reshape(-1, *residues.cell)
    start = (mask + 1) * np.arange(len(bases), dtype=np.int32)[:, None]
    index = np.where(digits == 0, 0, digits + start)[..., None]
    table[0] = residues.ones(1)[0]
    return residues.products(table, index, window)


def linear(residues: Residues, bases: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """prod over k of bases[k, b]^weights[m, k]: a matrix product "in the exponent", [M, B, *cell].

    bases: [K, B, *cell]; weights: int64[M, K] of either sign, below 2^62. Rows share the tables of their bases (Straus)
    where that is less work than sorting bases by digit for every row (Pippenger).
    """
    count, columns = bases.shape[:2]
    rows = len(weights)
    if not count or not columns or not rows:
        return residues.ones(rows * columns).reshape(rows, columns, *residues.cell)
    bits = 1 + max(int(weights.max()).bit_length(), int(-1 - weights.min()).bit_length())
    window = min(range(1, 11), key=lambda w: _straus_cost(bits, w, rows))
    entry = (1 << window) * (residues.modulus.bit_length() // 8)
    across = max(1, min(columns, TABLE_BYTES // (entry * min(count, 64))))
    deep = max(1, min(count, TABLE_BYTES // (entry * across)))
    parts = [
        _columns(residues, bases[:, c : c + across], weights, bits, window, deep) for c in range(0, columns, across)
    ]
    return np.concatenate(parts, axis=1)


def _straus_cost(bits: int, window: int, rows: int) -> float:
    """Products for each base: its tables, and one for each row and digit."""
    half = 1 << (window - 1)
    return (2 * half - 2 + 3) + rows * -(-bits // window)


def _columns(
    residues: Residues, bases: np.ndarray, weights: np.ndarray, bits: int, window: int, deep: int
) -> np.ndarray:
    """`linear` for some columns, with tables for `deep` bases at a time."""
    rows, columns, half = len(weights), bases.shape[1], 1 << (window - 1)
    digits = signed_digits(weights, bits, window)
    levels, sums = digits.shape[1], None
    for start in range(0, bases.shape[0], deep):
        part = bases[start : start + deep]
        table = _signed_table(residues, part.reshape(-1, *residues.cell), half)
        entry = 2 * half * (np.arange(len(part)) * columns + np.arange(columns)[:, None]) + 1
        index = _entries(digits[:, None, :, start : start + deep], entry[:, None], half)
        made = _in_parallel(residues, table, index.reshape(-1, len(part)))
        sums = made if sums is None else residues.multiply(sums, made)
    table = np.concatenate([residues.ones(1), sums])
    each = np.arange(1, len(table), dtype=np.int32).reshape(-1, levels, 1)
    return residues.products(table, each, window).reshape(rows, columns, *residues.cell)


def _entries(digits: np.ndarray, entry: np.ndarray, half: int) -> np.ndarray:
    """Where in a table of `_signed_table` the powers to these digits are, given where those of their bases begin."""
    return np.where(digits == 0, 0, entry + np.where(digits > 0, digits - 1, half - digits - 1)).astype(np.int32)


def _signed_table(residues: Residues, bases: np.ndarray, half: int) -> np.ndarray:
    """One, and then for each base its powers 1 to `half` and -1 to -half."""
    both = np.stack([bases, residues.inverses(bases)], axis=1).reshape(-1, *residues.cell)
    powers = power_table(residues, both, half)[:, 1:]
    return np.concatenate([residues.ones(1), powers.reshape(-1, *residues.cell)])


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


def signed_digits(weights: np.ndarray, bits: int, window: int) -> np.ndarray:
    """[M, levels, K]: digits from -2^(window-1) to 2^(window-1), highest level first, that make up int64[M, K].

    bits: two's complement bits of the widest weight. Each digit but the highest is below 2^(window-1), and the highest
    has the bits that are left, so that a carry into it still fits.
    """
    levels = -(-bits // window)
    rest, half, out = weights.copy(), 1 << (window - 1), []
    for _ in range(levels - 1):
        digit = (rest + half & (1 << window) - 1) - half
        out.append(digit)
        rest = rest - digit >> window
    out.append(rest)
    return np.stack(out[::-1], axis=1)
