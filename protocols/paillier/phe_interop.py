"""Keys and ciphertexts to and from python-paillier (`phe`).

Optional: needs `pip install phe`, which is licensed under the GPL version 3. Who distributes a program together with it
has to follow that license; nothing else in this package uses it. Keys made by phe have no base h: encryption with them
multiplies by r^n and is slower, unless the private key's primes allow adding h.
"""

from collections.abc import Sequence

import gmpy2
import numpy as np
import phe

from protocols.errors import InputError, ProtocolError, explain
from protocols.paillier import fixed
from protocols.paillier.keys import PrivateKey, PublicKey, random_base
from protocols.paillier.packing import whole
from protocols.paillier.powers import power_each
from protocols.paillier.tensor import PaillierTensor
from protocols.paillier.wire import check_ciphertexts

_EXPONENT_BITS = 4
"""phe's exponents count hexadecimal digits."""


def to_phe_public(key: PublicKey) -> phe.PaillierPublicKey:
    """The public key for phe, which has no use for h."""
    return phe.PaillierPublicKey(int(key.n))


def to_phe_private(key: PrivateKey) -> phe.PaillierPrivateKey:
    """The private key for phe. It is as secret as the original, and phe does not guard it."""
    return phe.PaillierPrivateKey(to_phe_public(key.public), *map(int, key.insecure_primes()))


def from_phe_public(key: phe.PaillierPublicKey, insecure_size: bool = False) -> PublicKey:
    """A public key without h. ConfigError for one that is not usable."""
    return PublicKey(key.n, None, insecure_size)


def from_phe_private(key: phe.PaillierPrivateKey, insecure_size: bool = False) -> PrivateKey:
    """A private key, with a base h where the primes allow it. ConfigError for one that is not usable."""
    p, q = key.p, key.q
    allowed = p % 4 == 3 and q % 4 == 3 and gmpy2.gcd(p - 1, q - 1) == 2
    return PrivateKey(p, q, PublicKey(p * q, random_base(p * q) if allowed else None, insecure_size))


def to_phe(tensor: PaillierTensor) -> np.ndarray:
    """An array of phe.EncryptedNumber, re-randomized unless it is fresh. InputError for a packed array."""
    if tensor.packed:
        raise InputError(explain("phe knows no packed numbers", fix="encrypt without slot_bits"))
    scaled = tensor if tensor.frac_bits % _EXPONENT_BITS == 0 else tensor * (1 << -tensor.frac_bits % _EXPONENT_BITS)
    exponent = -(-tensor.frac_bits // _EXPONENT_BITS)
    key = to_phe_public(tensor.key)
    if scaled.bound > key.max_int:
        raise InputError(f"to_phe: numbers of {scaled.bits} bits are larger than phe allows for this key")
    sent = scaled if scaled.fresh else scaled.rerandomized()
    numbers = [phe.EncryptedNumber(key, int(c), -exponent) for c in tensor.key.residues.leave(sent._flat())]
    out = np.empty(len(numbers), object)
    out[:] = numbers
    return out.reshape(tensor.shape)


def from_phe(numbers: Sequence[phe.EncryptedNumber] | np.ndarray, key: PublicKey, limit: float) -> PaillierTensor:
    """An array of phe.EncryptedNumber at one scale, the finest of their exponents.

    limit: the largest magnitude, which their owner must vouch for. Raises InputError for another key or a limit that
    does not fit, ProtocolError for ciphertexts and exponents that are none.
    """
    numbers = np.asarray(numbers, object)
    flat = list(numbers.reshape(-1))
    if not all(isinstance(number, phe.EncryptedNumber) for number in flat):
        raise InputError("from_phe: these are no numbers of phe")
    if any(number.public_key.n != key.n for number in flat):
        raise InputError("from_phe: a number was encrypted for another key")
    largest = key.bits // _EXPONENT_BITS
    if not all(type(number.exponent) is int and abs(number.exponent) <= largest for number in flat):
        why = f"a number of a key of {key.bits} bits has one from {-largest} to {largest}"
        raise ProtocolError(explain("from_phe: a number's exponent makes no sense", why=why))
    frac_bits = max([0, *(-_EXPONENT_BITS * number.exponent for number in flat)])
    bound = fixed.magnitude(limit, frac_bits)
    if bound > whole(key.bits).limit:
        raise InputError(f"from_phe: numbers of {bound.bit_length() + 1} bits do not fit a key of {key.bits} bits")
    values = [number.ciphertext(be_secure=False) for number in flat]
    check_ciphertexts(key, values)
    shifts = [1 << frac_bits + _EXPONENT_BITS * number.exponent for number in flat]
    cells = power_each(key.residues, key.residues.enter(values), shifts, max(shifts, default=1).bit_length())
    return PaillierTensor(key, cells.reshape((*numbers.shape, *key.residues.cell)), frac_bits, bound, whole(key.bits))
