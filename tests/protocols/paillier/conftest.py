"""Small keys that everyone may break, the same for all tests."""

import pytest

from protocols import kernels
from protocols.paillier import keys


@pytest.fixture(scope="session")
def private() -> keys.PrivateKey:
    return keys.insecure_generate(512)


@pytest.fixture(scope="session")
def other() -> keys.PrivateKey:
    return keys.insecure_generate(512)


@pytest.fixture(scope="session")
def plain() -> keys.PrivateKey:
    """A key without a blinding base, on GMP integers alone."""
    p, q = keys.insecure_generate(256).insecure_primes()
    with kernels.use("twins"):
        key = keys.PrivateKey(p, q, keys.PublicKey(p * q, None, True))
        assert not key.public.residues.fast and not key.halves[0].residues.fast
    return key
