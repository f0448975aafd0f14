"""Products of powers with exponents of hundreds of bits, and several such products in the slots of one ciphertext.

Windows of digits as in `powers`, for exponents from 0 to below a public limit. Results that are to lie side by side in
a plaintext need a factor 2^(width s) in slot s: the squarings for that are those which the exponents need anyway, so
packing costs none of its own. What is multiplied depends on shapes and limits alone.
"""

from collections.abc import Sequence

import gmpy2
import numpy as np

from protocols.paillier.powers import _in_parallel, power_table, rows_of
from protocols.paillier.residues import Residues

WINDOW = 4
"""Bits of a digit. Widths of slots are multiples of it."""


def digits_of(exponents: Sequence[int], bits: int) -> np.ndarray:
    """int32[N, levels]: digits of `WINDOW` bits of numbers from 0 to below 2^bits, lowest first. ValueError for others."""
    levels = -(-bits // WINDOW)
    if any(not 0 <= exponent >> bits == 0 for exponent in exponents):
        raise ValueError(f"an exponent does not fit {bits} bits")
    top = 1 << WINDOW * levels  # so that every number has as many digits
    made = [gmpy2.unpack(gmpy2.mpz(exponent) + top, WINDOW)[:levels] for exponent in exponents]
    return np.array(made, np.int64).astype(np.int32).reshape(len(exponents), levels)


def matrix_powers(residues: Residues, bases: np.ndarray, exponents: np.ndarray, bits: int) -> np.ndarray:
    """[V, G, *cell]: prod over k of bases[k, g]^exponents[k, v], for exponents object[K, V] of `bits` bits."""
    (inputs, groups), vectors = bases.shape[:2], exponents.shape[1]
    top = (1 << WINDOW) - 1
    table = power_table(residues, bases.reshape(-1, *residues.cell), top)
    digits = digits_of(exponents.T.reshape(-1).tolist(), bits).reshape(vectors, inputs, -1).transpose(0, 2, 1)
    places = np.arange(inputs * groups).reshape(inputs, groups).T
    index = rows_of(digits[:, None], places[None, :, None, :], top)  # [V, G, levels, K]
    levels = digits.shape[1]
    sums = _in_parallel(residues, table, index.reshape(-1, inputs))
    chain = np.arange(1, len(sums) + 1, dtype=np.int32).reshape(vectors * groups, levels, 1)[:, ::-1]
    made = residues.products(np.concatenate([residues.ones(1), sums]), np.ascontiguousarray(chain), WINDOW)
    return made.reshape(vectors, groups, *residues.cell)


def packed_powers(
    residues: Residues, bases: np.ndarray, exponents: Sequence[Sequence[int]], bits: Sequence[int], width: int, count: int
) -> np.ndarray:  # fmt: skip
    """[G, *cell]: for each `count` rows the product over rows s and terms t of bases[s, t]^(exponents[s][t] 2^(width s)).

    bases: [R, T, *cell]; bits: those of each term's exponents, none with more than the term before it; width: a
    multiple of `WINDOW`.
    """
    rows, terms = bases.shape[:2]
    top, step = (1 << WINDOW) - 1, width // WINDOW
    table = power_table(residues, bases.reshape(-1, *residues.cell), top)
    levels = [-(-b // WINDOW) for b in bits]
    index = np.zeros((rows, levels[0], terms), np.int32)
    for term, column in enumerate(zip(*exponents, strict=True)):
        number = np.arange(rows)[:, None] * terms + term
        index[:, : levels[term], term] = rows_of(digits_of(column, bits[term]), number, top)
    parts = []
    for term, (upper, lower) in enumerate(zip(levels, [*levels[1:], 0], strict=True), 1):
        band = np.ascontiguousarray(index[:, lower:upper, :term])  # levels that so many terms have
        made = residues.products(table, band.reshape(-1, 1, term))
        parts.append(made.reshape(rows, upper - lower, *residues.cell))
    sums = np.concatenate(parts[::-1], axis=1)
    chain = _chain(rows, levels[0], step, count)
    return residues.products(np.concatenate([residues.ones(1), sums.reshape(-1, *residues.cell)]), chain, WINDOW)


def _chain(rows: int, levels: int, step: int, count: int) -> np.ndarray:
    """int32[G, positions, T]: which partial products meet at each digit of a packed exponent, the highest first."""
    groups, over = -(-rows // count), -(-levels // step)
    positions = (count - 1) * step + levels
    chain = np.zeros((groups, positions, over), np.int32)
    for row in range(rows):
        group, slot = divmod(row, count)
        first = slot * step
        chain[group, first : first + levels, slot % over] = 1 + row * levels + np.arange(levels)
    return np.ascontiguousarray(chain[:, ::-1])
