"""Encryption and decryption of many integers at once.

A ciphertext of m is (1 + m n) s mod n^2, where s is a blinding factor: h^(n r), or r^n for keys without h (see `keys`).
Negative numbers stand for themselves modulo n, so |m| < n/2. The key's owner computes modulo p^2 and q^2 and joins the
results by the Chinese remainder theorem (Paillier, Eurocrypt 1999, §7).
"""

import secrets
from collections.abc import Callable, Sequence

import numpy as np
from gmpy2 import mpz

from protocols.errors import InputError, explain
from protocols.paillier.keys import PrimePower, PrivateKey, PublicKey
from protocols.paillier.powers import power_all
from protocols.paillier.residues import Residues

Key = PublicKey | PrivateKey
Draw = Callable[[int], bytes]
"""Gives so many random bytes: `secrets.token_bytes`, but in tests that must repeat."""


def public(key: Key) -> PublicKey:
    """The public part of a key."""
    return key.public if isinstance(key, PrivateKey) else key


def blinding_factors(key: Key, count: int, draw: Draw | None = None) -> np.ndarray:
    """[N, *cell]: fresh encryptions of zero from the operating system's randomness; each is used once."""
    known, draw = public(key), draw or secrets.token_bytes
    if known.h is None:
        roots = known.residues.enter([_unit(known.n, draw) for _ in range(count)])
        return power_all(known.residues, roots, known.n)
    exponents = draw(count * known.blinding_bytes)
    if isinstance(key, PublicKey):
        return key.blinding_base.powers(exponents)
    halves = [
        half.residues.leave(base.powers(exponents)) for half, base in zip(key.halves, key.blinding_bases, strict=True)
    ]
    return known.residues.enter(_joined(key, *halves))


def refreshing_factors(key: PublicKey, count: int, draw: Draw | None = None) -> np.ndarray:
    """[N, *cell]: fresh encryptions of zero that hide what they are multiplied by also from the key's owner.

    Their exponents of h^n are 40 bits longer than n, so they are within 2^-40 of uniform in the group of all blinding
    factors, whatever one knows. Short exponents would hide from the owner only under an assumption of their own.
    """
    draw = draw or secrets.token_bytes
    if key.h is None:
        return blinding_factors(key, count, draw)
    low, high = (base.powers(draw(count * base.places)) for base in (key.blinding_base, key.upper_base))
    return key.residues.multiply(low, high)


def _unit(n: mpz, draw: Draw) -> int:
    """A random number prime to n, within 2^-128 of uniform: meeting another would factor n."""
    return 1 + int.from_bytes(draw(-(-n.bit_length() // 8) + 16), "little") % (int(n) - 1)


def _joined(key: PrivateKey, mod_p: list[mpz], mod_q: list[mpz]) -> list[mpz]:
    """Numbers modulo n^2 from what they are modulo p^2 and q^2 (Garner)."""
    (p, q), inverse = (half.square for half in key.halves), key.inverse_of_p_square
    return [a + p * ((b - a) * inverse % q) for a, b in zip(mod_p, mod_q, strict=True)]


def trivial(key: PublicKey, values: Sequence[int]) -> np.ndarray:
    """[N, *cell]: ciphertexts 1 + m n that hide nothing, to add to others."""
    # n is added so that a number has as many words as any other, small or negative.
    return key.residues.enter([(1 + (v + key.n) * key.n) % key.square for v in map(mpz, values)])


def encrypt(key: Key, values: Sequence[int], blinding: np.ndarray | None = None) -> np.ndarray:
    """[N, *cell]: ciphertexts of N integers of magnitude below n/2; the owner's private key does it faster.

    blinding: factors from `blinding_factors` that nothing else uses, fresh ones by default.
    Raises InputError for a larger integer.
    """
    known = public(key)
    if any(abs(2 * v) >= known.n for v in values):
        raise InputError(
            explain(
                f"a value does not fit a plaintext of {known.bits} bits",
                fix="use a smaller scale, or a larger key",
            )
        )
    if not len(values):
        return known.residues.ones(0)
    factors = blinding_factors(key, len(values)) if blinding is None else blinding
    return known.residues.multiply(trivial(known, values), factors)


def decrypt(key: PrivateKey, cells: np.ndarray) -> list[mpz]:
    """The integers in ciphertexts [N, *cell], from above -n/2 to below n/2."""
    n = key.public.n
    ciphers = key.public.residues.leave(cells)
    mod_p, mod_q = (_remainders(half, ciphers) for half in key.halves)
    p, q = (half.prime for half in key.halves)
    values = (a + p * ((b - a) * key.inverse_of_p % q) for a, b in zip(mod_p, mod_q, strict=True))
    return [v - n if 2 * v > n else v for v in values]


def _remainders(half: PrimePower, ciphers: list[mpz]) -> list[mpz]:
    """Plaintexts modulo one prime: L(c^(p-1) mod p^2) / L((1+n)^(p-1) mod p^2), where L(u) = (u-1)/p."""
    residues: Residues = half.residues
    powers = power_all(residues, residues.enter([c % half.square for c in ciphers]), half.prime - 1)
    return [(u - 1) // half.prime * half.scale % half.prime for u in residues.leave(powers)]
