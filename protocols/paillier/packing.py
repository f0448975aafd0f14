"""Several signed integers in one plaintext.

t values v_i of magnitude below 2^(w-1) are packed as V = sum of v_i 2^(w i). No carry is lost and V stays a plaintext:
|V| <= (2^(w-1) - 1)(2^(wt) - 1)/(2^w - 1) < 2^(wt-1) <= 2^(bits-2) < n/2 as long as w t <= bits - 1. Sums of packed
plaintexts and products by an integer act on every slot, so the same holds for a result whose slots are in range. Adding
2^(w-1) to each slot makes every slot a digit from 0 to 2^w - 1, which reading takes apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import gmpy2
from gmpy2 import mpz

from protocols.errors import InputError, explain


@dataclass(frozen=True)
class Slots:
    """How plaintexts are divided: `count` slots of `width` bits, the sign included."""

    width: int
    count: int

    @property
    def limit(self) -> int:
        """The largest magnitude a slot holds."""
        return (1 << self.width - 1) - 1

    @property
    def _offset(self) -> mpz:
        return (mpz(1) << self.width - 1) * self.everywhere(1)

    def everywhere(self, value: int) -> mpz:
        """A plaintext with one value in every slot."""
        return value * (((mpz(1) << self.width * self.count) - 1) // ((mpz(1) << self.width) - 1))

    def pack(self, values: Sequence[int]) -> list[mpz]:
        """Plaintexts of N values in order, zeros in the last slots. InputError for a value out of range."""
        if any(abs(v) > self.limit for v in values):
            raise InputError(
                explain(f"a value does not fit a slot of {self.width} bits", fix="pack with wider slots (slot_bits)")
            )
        half, full = 1 << self.width - 1, len(values) - len(values) % self.count
        shifted = [int(v) + half for v in values] + [half] * (
            self.count - len(values) + full if len(values) > full else 0
        )
        groups = (shifted[at : at + self.count] for at in range(0, len(shifted), self.count))
        return [gmpy2.pack(group, self.width) - self._offset for group in groups]

    def unpack(self, plaintexts: Sequence[int], count: int) -> list[int]:
        """The first `count` values. InputError when a plaintext cannot have come from slots in range."""
        values: list[int] = []
        half, top = 1 << self.width - 1, self.width * self.count
        for plaintext in plaintexts:
            shifted = mpz(plaintext) + self._offset
            if shifted < 0 or shifted.bit_length() > top:
                raise InputError(
                    explain(
                        f"a plaintext does not divide into {self.count} slots of {self.width} bits",
                        why="a slot overflowed, or the ciphertext was changed or made with another key",
                    )
                )
            digits = gmpy2.unpack(shifted, self.width)
            digits += [0] * (self.count - len(digits))
            values += [int(d) - half for d in digits]
        return values[:count]


def whole(bits: int) -> Slots:
    """One value in each plaintext of a key of that many bits."""
    return Slots(bits - 1, 1)


def slots_for(bits: int, magnitude: int) -> Slots:
    """As many slots as a key of that many bits has for values of at most that magnitude. InputError where none fits."""
    width = int(magnitude).bit_length() + 1
    if width > bits - 1:
        raise InputError(
            explain(
                f"values of {width} bits do not fit a key of {bits} bits", fix="use a smaller scale or a larger key"
            )
        )
    return Slots(width, (bits - 1) // width)
