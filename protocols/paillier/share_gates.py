"""Products of a party's numbers with shared ones, and polynomials of shared numbers, for two parties without a dealer.

Numbers are shared over the integers: x = x_H + x_O, and a share is a uniform mask of some bits more than x, so nothing
is reduced by a modulus and nothing wraps. H holds a key and O computes on what H encrypts:
  H  sends encryptions of its numbers, and of its own part of the result
  O  completes them to the whole result, adds a mask r, re-randomizes, and keeps -r
  H  decrypts and keeps result + r

Range. A result has |v| < 2^b, which is public, and r is uniform from -2^(m-1) to 2^(m-1) - 1 with m = b + sigma. A slot
has at least m + 1 bits, and |v + r| < 2^m. So slots never carry (`packing`); even a result up to 2^(m-1) still fits, but
is hidden less. Not only what O adds is masked but the whole result, whose bits do not grow with those of the shares.

What H sees. v + r is within 2^-sigma of r, whatever v is, and comes in ciphertexts that are within 2^-40 of random ones
with that content (`cipher.refreshing_factors`). What O sees is encrypted. Both hold for parties that follow the protocol.

Exponents are never negative: O takes x_O + 2^e in place of x_O, and H subtracts what comes of the 2^e from its own part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from protocols.errors import InputError, ProtocolError
from protocols.paillier.cipher import decrypt, encrypt, refreshing_factors, trivial
from protocols.paillier.keys import PrivateKey, PublicKey
from protocols.paillier.linear_gate import SIGMA, random_masks
from protocols.paillier.long_powers import WINDOW, matrix_powers, packed_powers
from protocols.paillier.packing import Slots

Integers = np.ndarray
"""Python's integers in an array of objects."""


@dataclass(frozen=True)
class Reply:
    """How results come back: `count` of them, below 2^value_bits in magnitude, under a key of `key_bits`.

    Raises InputError for a key too small for one.
    """

    count: int
    value_bits: int
    key_bits: int
    sigma: int = SIGMA

    def __post_init__(self) -> None:
        if self.slots.count < 1:
            raise InputError(f"results of {self.slots.width} bits do not fit a key of {self.key_bits} bits")

    @property
    def mask_bits(self) -> int:
        return self.value_bits + self.sigma

    @property
    def slots(self) -> Slots:
        width = -(-(self.mask_bits + 1) // WINDOW) * WINDOW
        return Slots(width, (self.key_bits - 1) // width)

    @property
    def cells(self) -> int:
        """Ciphertexts."""
        return -(-self.count // self.slots.count)

    def plaintexts(self, key: PublicKey, values: Sequence[int]) -> list[int]:
        """Numbers of any size side by side, modulo n: for parts of which only the sum fits its slot."""
        width, each, half = self.slots.width, self.slots.count, key.n // 2
        groups = (values[at : at + each] for at in range(0, len(values), each))
        sums = (sum(int(v) << width * s for s, v in enumerate(group)) for group in groups)
        return [int((total + half) % key.n - half) for total in sums]

    def masked(self, key: PublicKey, cells: np.ndarray, added: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """The results plus `added` plus masks, re-randomized, and the masks with their sign turned."""
        masks = random_masks(self.count, self.mask_bits)
        residues = key.residues
        plain = self.plaintexts(key, [int(a) + r for a, r in zip(added, masks, strict=True)])
        hidden = residues.multiply(cells, trivial(key, plain))
        return residues.multiply(hidden, refreshing_factors(key, len(hidden))), [-r for r in masks]

    def opened(self, key: PrivateKey, cells: np.ndarray) -> list[int]:
        """What is in a reply. Raises ProtocolError where the slots do not fit."""
        try:
            return self.slots.unpack(decrypt(key, cells), self.count)
        except InputError as error:
            raise ProtocolError(str(error)) from None


@dataclass(frozen=True)
class MatrixGate:
    """y = M v for H's matrix M [outputs, inputs] and shared vectors v [inputs, vectors].

    |y| < 2^value_bits; shares of v are below 2^share_bits in magnitude. M's columns are packed along the outputs, so one
    power serves as many outputs as there are slots.
    """

    outputs: int
    inputs: int
    vectors: int
    value_bits: int
    share_bits: int
    key_bits: int

    @property
    def column(self) -> Reply:
        """How a column of M, or of y, is packed."""
        return Reply(self.outputs, self.value_bits, self.key_bits)

    @property
    def own_cells(self) -> int:
        """Ciphertexts of H's own part, and of the reply."""
        return self.vectors * self.column.cells

    def seal(self, key: PrivateKey, matrix: Integers) -> np.ndarray:
        """[inputs, groups, *cell]: H's matrix, encrypted."""
        plain = [p for column in matrix.T for p in self.column.plaintexts(key.public, column.tolist())]
        return encrypt(key, plain).reshape(-1, self.column.cells, *key.public.residues.cell)

    def seal_own(self, key: PrivateKey, matrix: Integers, share: Integers) -> np.ndarray:
        """[own_cells, *cell]: H's part of y, encrypted; `share` is H's [inputs, vectors]."""
        own = matrix.dot(share) - (matrix.sum(axis=1) << self.share_bits)[:, None]
        return encrypt(key, [p for column in own.T for p in self.column.plaintexts(key.public, column.tolist())])

    def answer(
        self, key: PublicKey, sealed: np.ndarray, own: np.ndarray, share: Integers
    ) -> tuple[np.ndarray, Integers]:
        """O's reply [own_cells, *cell] and its share of y [outputs, vectors]."""
        residues, column = key.residues, self.column
        made = matrix_powers(residues, sealed, share + (1 << self.share_bits), self.share_bits + 1)
        made = residues.multiply(np.ascontiguousarray(made).reshape(own.shape), own)
        parts, kept = [], []
        for v in range(self.vectors):
            at = v * column.cells
            cells, masks = column.masked(key, made[at : at + column.cells], [0] * self.outputs)
            parts.append(cells)
            kept.append(masks)
        return np.concatenate(parts), integers(kept).T

    def opened(self, key: PrivateKey, reply: np.ndarray) -> Integers:
        """H's share of y [outputs, vectors]. Raises ProtocolError."""
        size = self.column.cells
        parts = [self.column.opened(key, reply[v * size : (v + 1) * size]) for v in range(self.vectors)]
        return integers(parts).T


@dataclass(frozen=True)
class PolynomialGate:
    """y = sum over k of c_k x^k for shared integers x, one by one, in one exchange.

    `coefficients` are c_0 to c_D, D at least 2. With x = x_H + x_O this is the sum over i of x_H^i q_i(x_O), where
    q_i(x) = sum over j of c_(i+j) binom(i+j, i) x^j: H encrypts its powers, O raises them to its q_i.
    """

    rows: int
    coefficients: tuple[int, ...]
    value_bits: int
    share_bits: int
    key_bits: int

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    @property
    def reply(self) -> Reply:
        return Reply(self.rows, self.value_bits, self.key_bits)

    @property
    def sealed_cells(self) -> int:
        """Ciphertexts that H sends: its powers, and its own part."""
        return self.rows * (self.degree - 1) + self.reply.cells

    def _factor_bits(self, i: int) -> int:
        """Bits of q_i's magnitude: what O's exponents are moved up by."""
        most = sum(
            abs(self.coefficients[i + j]) * comb(i + j, i) << self.share_bits * j for j in range(self.degree - i + 1)
        )
        return most.bit_length()

    def _factor(self, i: int, x: int) -> int:
        value = 0
        for j in reversed(range(self.degree - i + 1)):
            value = value * x + self.coefficients[i + j] * comb(i + j, i)
        return value

    def seal(self, key: PrivateKey, share: Sequence[int]) -> np.ndarray:
        """[sealed_cells, *cell]: what H sends of its share."""
        inner = range(1, self.degree)
        powers = [x**i for x in share for i in inner]
        last, moved = self.coefficients[-1], {i: self._factor_bits(i) for i in inner}
        own = [last * x**self.degree - sum(x**i << bits for i, bits in moved.items()) for x in share]
        return encrypt(key, [*powers, *self.reply.plaintexts(key.public, own)])

    def answer(self, key: PublicKey, sealed: np.ndarray, share: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """O's reply and its share of y."""
        inner, residues, slots = range(1, self.degree), key.residues, self.reply.slots
        bits = [self._factor_bits(i) for i in inner]
        powers = sealed[: self.rows * len(inner)].reshape(self.rows, len(inner), *residues.cell)
        exponents = [[self._factor(i, x) + (1 << b) for i, b in zip(inner, bits, strict=True)] for x in share]
        made = packed_powers(residues, powers, exponents, [b + 1 for b in bits], slots.width, slots.count)
        made = residues.multiply(made, sealed[self.rows * len(inner) :])
        return self.reply.masked(key, made, [self._factor(0, x) for x in share])

    def opened(self, key: PrivateKey, reply: np.ndarray) -> list[int]:
        """H's share of y. Raises ProtocolError."""
        return self.reply.opened(key, reply)


def integers(values: Sequence) -> Integers:
    """An array of Python's integers, of nested lists of them."""
    return np.array(values, dtype=object)


def rounded(shares: Integers, by: int) -> Integers:
    """A share divided by 2^by and rounded. Both parties do it: the value is then off by less than one, and by none on
    average. Nothing wraps, as shares are integers and not residues."""
    return shares + (1 << by - 1) >> by if by else shares
