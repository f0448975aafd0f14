"""Paillier keys of 2048 and 3072 bits.

The public key is n = p q and, for the fast variant, h = -x^2 mod n for a random x: encryption multiplies by h^(n r)
with r of half the bits of n (Damgård, Jurik, Nielsen, "A generalization of Paillier's public-key system", Int. J. Inf.
Secur. 2010). It needs p = q = 3 mod 4 and gcd(p-1, q-1) = 2. Beside the decisional composite residuosity assumption it
rests on powers of h with such an r looking like random ones, which holds if n is hard to factor (Goldreich and Rosen,
J. Cryptology 2003). Without h, encryption multiplies by r^n for random r (Paillier, Eurocrypt 1999), which is slower.
"""

import secrets
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import gmpy2
from gmpy2 import mpz

from protocols.errors import ConfigError, InputError, explain
from protocols.paillier.powers import FixedBase, fixed_base
from protocols.paillier.residues import Residues, residues_modulo

ALLOWED_BITS = (2048, 3072)
REFRESH_BITS = 40
"""How many bits longer than n the exponent of a refreshing factor is."""
SMALLEST_BITS = 128
"""Below this not even a test key works."""
LARGEST_BITS = 8192
"""Above this even a test key is refused: checking it would take too long."""
_PRIME_TESTS = 40
"""GMP's count: the Baillie-PSW test and 16 rounds of Miller-Rabin, for numbers that others may have chosen."""
_RANDOM_PRIME_TESTS = 30
"""The same and 6 rounds, enough for random numbers (FIPS 186-5, table B.1)."""
_SMALL_FACTORS = gmpy2.primorial(1 << 16)
_SIEVE = gmpy2.primorial(1 << 11)


@dataclass(frozen=True, repr=False)
class PublicKey:
    """What everybody may know: encrypts, and computes on ciphertexts. Raises ConfigError for values that are no key.

    n: the modulus; h: the base of blinding factors, or None for a key made elsewhere; insecure_size: allow other sizes
    than 2048 and 3072 bits, for tests.
    """

    n: mpz
    h: mpz | None = None
    insecure_size: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", mpz(self.n))
        object.__setattr__(self, "h", None if self.h is None else mpz(self.h))
        _check_modulus(self.n, self.insecure_size)
        if self.h is not None:
            _check_base(self.n, self.h)

    def __repr__(self) -> str:
        return f"PublicKey(bits={self.bits}, fingerprint={self.fingerprint})"

    @property
    def bits(self) -> int:
        """Size of the modulus."""
        return self.n.bit_length()

    @property
    def cipher_bytes(self) -> int:
        """Bytes of one ciphertext."""
        return self.bits // 4

    @cached_property
    def square(self) -> mpz:
        """n^2: ciphertexts are residues modulo it."""
        return self.n * self.n

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that tell keys apart."""
        return sha256(f"paillier n={self.n:x} h={self.h or 0:x}".encode()).hexdigest()[:32]

    @cached_property
    def residues(self) -> Residues:
        """Arithmetic modulo n^2."""
        return residues_modulo(self.square)

    @cached_property
    def blinding_bytes(self) -> int:
        """Bytes of an exponent of h."""
        return -(-self.bits // 16)

    @cached_property
    def blinding_base(self) -> FixedBase:
        """Tables for powers of h^n modulo n^2, with exponents of `blinding_bytes`."""
        return fixed_base(self.residues, gmpy2.powmod(self.h, self.n, self.square), self.blinding_bytes)

    @cached_property
    def upper_base(self) -> FixedBase:
        """Tables for what `blinding_base` lacks to exponents that are 40 bits longer than n."""
        step = gmpy2.powmod(self.h, self.n << 8 * self.blinding_bytes, self.square)
        return fixed_base(self.residues, step, -(-(self.bits + REFRESH_BITS) // 8) - self.blinding_bytes)


@dataclass(frozen=True, repr=False, eq=False)
class PrimePower:
    """Half of a private key: computing modulo one prime's square."""

    prime: mpz
    square: mpz
    residues: Residues
    scale: mpz
    """Inverse of what decryption leaves of a plaintext 1."""


class PrivateKey:
    """What only the owner knows: decrypts, and encrypts faster. Never printed, pickled or copied.

    Raises ConfigError for values that are no key.
    """

    __slots__ = ("__dict__", "_p", "_q", "public")

    def __init__(self, p: int, q: int, public: PublicKey) -> None:
        self._p, self._q, self.public = mpz(p), mpz(q), public
        _check_primes(self._p, self._q, public)

    def __repr__(self) -> str:
        return f"PrivateKey(bits={self.public.bits}, fingerprint={self.public.fingerprint}, primes hidden)"

    def __reduce__(self) -> str:
        raise TypeError(
            "PrivateKey: a private key must not be pickled or copied; keyfile.save_private puts it on its owner's disk"
        )

    def insecure_primes(self) -> tuple[mpz, mpz]:
        """The secret primes, for writing the key to its owner's disk."""
        return self._p, self._q

    @cached_property
    def halves(self) -> tuple[PrimePower, PrimePower]:
        """Arithmetic modulo p^2 and q^2."""
        return self._half(self._p), self._half(self._q)

    def _half(self, prime: mpz) -> PrimePower:
        square = prime * prime
        generator = gmpy2.powmod(1 + self.public.n, prime - 1, square)
        return PrimePower(prime, square, residues_modulo(square), gmpy2.invert((generator - 1) // prime, prime))

    @cached_property
    def blinding_bases(self) -> tuple[FixedBase, FixedBase]:
        """Tables for powers of h^n modulo p^2 and modulo q^2."""
        n, h, count = self.public.n, self.public.h, self.public.blinding_bytes
        p, q = (fixed_base(half.residues, gmpy2.powmod(h, n, half.square), count) for half in self.halves)
        return p, q

    @cached_property
    def inverse_of_p(self) -> mpz:
        """1/p mod q."""
        return gmpy2.invert(self._p, self._q)

    @cached_property
    def inverse_of_p_square(self) -> mpz:
        """1/p^2 mod q^2."""
        return gmpy2.invert(self._p * self._p, self._q * self._q)


def generate(bits: int = 3072) -> PrivateKey:
    """A new key of 2048 or 3072 bits from the operating system's randomness. InputError for another size."""
    if bits not in ALLOWED_BITS:
        raise InputError(
            explain(f"a Paillier key has 2048 or 3072 bits, not {bits}", fix="tests may use insecure_generate")
        )
    return _generate(bits, insecure_size=False)


def insecure_generate(bits: int) -> PrivateKey:
    """A key of any even size from 128 bits, for tests: such keys can be broken."""
    if bits < SMALLEST_BITS or bits % 16:
        raise InputError(f"insecure_generate: a key has at least {SMALLEST_BITS} bits and a multiple of 16, not {bits}")
    return _generate(bits, insecure_size=bits not in ALLOWED_BITS)


def _generate(bits: int, insecure_size: bool) -> PrivateKey:
    p = _prime(bits // 2)
    while True:
        q = _prime(bits // 2)
        if _far_apart(p, q) and gmpy2.gcd(p - 1, q - 1) == 2 and gmpy2.gcd(p * q, (p - 1) * (q - 1)) == 1:
            return PrivateKey(p, q, PublicKey(p * q, random_base(p * q), insecure_size))


def _prime(bits: int) -> mpz:
    """A random prime, 3 mod 4, whose two highest bits are set, so that a product of two has twice the bits."""
    while True:
        candidate = mpz(secrets.randbits(bits) | 3 << bits - 2 | 3)
        if gmpy2.gcd(candidate, _SIEVE) == 1 and gmpy2.is_prime(candidate, _RANDOM_PRIME_TESTS):
            return candidate


def _far_apart(p: mpz, q: mpz) -> bool:
    """Whether the primes differ in their first 100 bits, against Fermat's method (FIPS 186-5, A.1.1)."""
    return abs(p - q).bit_length() > max(p.bit_length() - 100, p.bit_length() // 2)


def random_base(n: int) -> mpz:
    """-x^2 mod n for a random x that is prime to n."""
    while True:
        x = mpz(secrets.randbelow(int(n)))
        if x > 1 and gmpy2.gcd(x, n) == 1 and x * x % n not in (1, n - 1):
            return -x * x % n


def _refuse(why: str) -> None:
    raise ConfigError(
        explain("this is not a usable Paillier key", why=why, fix="generate a new key with paillier.generate()")
    )


def _check_modulus(n: mpz, insecure_size: bool) -> None:
    bits = n.bit_length() if n > 0 else 0
    if not SMALLEST_BITS <= bits <= LARGEST_BITS or not (insecure_size or bits in ALLOWED_BITS):
        _refuse(f"its modulus has {bits} bits instead of 2048 or 3072")
    if n % 2 == 0:
        _refuse("its modulus is even")
    if gmpy2.gcd(n, _SMALL_FACTORS) != 1:
        _refuse("its modulus has a prime factor below 65536")
    if gmpy2.is_power(n):
        _refuse("its modulus is a power, so its prime factors are equal")
    if gmpy2.is_prime(n):
        _refuse("its modulus is prime instead of a product of two primes")


def _check_base(n: mpz, h: mpz) -> None:
    if n % 4 != 1:
        _refuse("it has a blinding base, but its modulus is not a product of two primes that are 3 modulo 4")
    if not 1 < h < n - 1 or gmpy2.gcd(h, n) != 1 or gmpy2.jacobi(h, n) != 1:
        _refuse("its blinding base is not of the form -x^2 mod n")


def _check_primes(p: mpz, q: mpz, public: PublicKey) -> None:
    if p == q:
        _refuse("its two primes are equal")
    if p * q != public.n:
        _refuse("its primes do not belong to its modulus")
    if p.bit_length() != q.bit_length():
        _refuse("its two primes have different lengths")
    if not (gmpy2.is_prime(p, _PRIME_TESTS) and gmpy2.is_prime(q, _PRIME_TESTS)):
        _refuse("one of its factors is not prime")
    if not _far_apart(p, q):
        _refuse("its two primes are too close to each other")
    if gmpy2.gcd(public.n, (p - 1) * (q - 1)) != 1:
        _refuse("its modulus and (p-1)(q-1) have a common factor")
    if public.h is not None:
        if p % 4 != 3 or q % 4 != 3 or gmpy2.gcd(p - 1, q - 1) != 2:
            _refuse("it has a blinding base, which needs primes that are 3 modulo 4 with gcd(p-1, q-1) = 2")
        if gmpy2.jacobi(public.h, p) != -1:
            _refuse("its blinding base is not of the form -x^2 mod n")
