"""Arrays of residues modulo one odd number, multiplied many at a time.

Two ways to compute the same: rows of 52-bit digits for `protocols.kernels.residues`, which uses all cores, or an array
of GMP integers. Both are numpy arrays that are sliced, reshaped and joined like any other; what one residue takes is
`cell`, the last axes of the array: (width,) or ().
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gmpy2
import numpy as np
from gmpy2 import mpz

from protocols.kernels import residues as kernels


@dataclass(frozen=True, repr=False, eq=False)
class Residues:
    """The residues modulo one odd number. Build it with `residues_modulo`."""

    modulus: mpz
    fast: kernels.ResidueModulus | None
    lanes: int
    """How many products take the time of one, on one core."""

    @property
    def cell(self) -> tuple[int, ...]:
        """Shape of one residue in an array."""
        return (self.fast.width,) if self.fast else ()

    def enter(self, values: Sequence[int]) -> np.ndarray:
        """An array [N, *cell] of numbers from 0 to below the modulus."""
        if self.fast:
            size = self.fast.bytes
            return kernels.residues_enter(b"".join(int(v).to_bytes(size, "little") for v in values), self.fast)
        return _objects([self._lifted(mpz(v)) for v in values])

    def leave(self, cells: np.ndarray) -> list[mpz]:
        """The numbers of an array [N, *cell]."""
        if self.fast:
            size, data = self.fast.bytes, kernels.residues_leave(cells, self.fast)
            return [mpz(int.from_bytes(data[at : at + size], "little")) for at in range(0, len(data), size)]
        return [cell % self.modulus for cell in cells]

    def _lifted(self, value: mpz) -> mpz:
        """A residue as an array of objects has it: with a multiple of the modulus, so that none has fewer words."""
        return value + (self.modulus << 64)

    def ones(self, count: int) -> np.ndarray:
        """An array [N, *cell] of ones."""
        return np.repeat(self.enter([1]), count, axis=0)

    def products(self, table: np.ndarray, index: np.ndarray, squarings: int = 0) -> np.ndarray:
        """[K, *cell] from a table [R, *cell] whose row 0 is one and index int32[K, levels, T] into it.

        acc = 1, then for each level acc = acc^(2^squarings) * prod over t of table[index[k, level, t]]. The index may be
        secret: what is multiplied depends on shapes alone, and one is multiplied by like any other.
        """
        if self.fast:
            return kernels.residue_products(table, index, squarings, self.fast)
        out, modulus = np.empty(len(index), object), self.modulus
        for k, levels in enumerate(index.tolist()):
            acc: Any = None
            for terms in levels:
                for _ in range(squarings if acc is not None else 0):
                    acc = self._lifted(acc * acc % modulus)
                for t in terms:  # the first is a copy, as GMP squares an object faster than it multiplies two
                    acc = table[t] + 0 if acc is None else self._lifted(acc * table[t] % modulus)
            out[k] = table[0] if acc is None else acc
        return out

    def multiply(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Products of [N, *cell] by [N, *cell], one by one."""
        count = np.arange(1, len(a) + 1, dtype=np.int32)
        index = np.stack([count, count + len(a)], axis=1)[:, None]
        return self.products(np.concatenate([self.ones(1), a, b]), index)

    def inverses(self, cells: np.ndarray) -> np.ndarray:
        """The inverses of [N, *cell], with one inversion in all (Montgomery, Math. Comp. 48, 1987, §10.3.1).

        Products of pairs, of pairs of pairs and so on go up a tree, the inverse of the root comes down it: three
        products for each residue. Raises ZeroDivisionError when one has no inverse.
        """
        layers = [cells]
        while len(layers[-1]) > 1:
            below = layers[-1]
            if len(below) % 2:
                below = layers[-1] = np.concatenate([below, self.ones(1)])
            layers.append(self.multiply(below[0::2], below[1::2]))
        if not len(cells):
            return cells
        inverse = self.enter([gmpy2.invert(self.leave(layers.pop())[0], self.modulus)])
        for below in reversed(layers):
            down = np.repeat(inverse[: len(below) // 2], 2, axis=0)
            swapped = below.reshape(-1, 2, *self.cell)[:, ::-1].reshape(below.shape)
            inverse = self.multiply(down, swapped)
        return inverse[: len(cells)]


def residues_modulo(modulus: int) -> Residues:
    """The residues modulo an odd number above 1 (ValueError otherwise), with the fast kernels where they run."""
    lanes = kernels.lanes()
    return Residues(mpz(modulus), kernels.residue_modulus(int(modulus)) if lanes else None, lanes or 1)


def _objects(values: list[mpz]) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out
