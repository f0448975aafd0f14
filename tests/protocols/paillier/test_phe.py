"""Keys and numbers to and from python-paillier, which also says what is right."""

from dataclasses import replace
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError, ProtocolError
from protocols.paillier import keys
from protocols.paillier.tensor import encrypt_array

phe = pytest.importorskip("phe")
from protocols.paillier import phe_interop

few = settings(max_examples=20, deadline=None)
BOTH = pytest.mark.parametrize("name", ("private", "plain"))
reals = st.lists(st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=1, max_size=6)


def decrypted(secret, numbers: np.ndarray) -> np.ndarray:
    return np.array([float(secret.decrypt(v)) for v in numbers.reshape(-1)]).reshape(numbers.shape)


@BOTH
@given(values=reals, frac_bits=st.integers(0, 40), negate=st.booleans())
@few
def test_phe_reads_ours(request, name, values, frac_bits, negate):
    private = request.getfixturevalue(name)
    secret = phe_interop.to_phe_private(private)
    t = encrypt_array(private.public, values, frac_bits, 1e6)
    t = -t if negate else t
    assert np.array_equal(decrypted(secret, phe_interop.to_phe(t)), t.decrypt(private))


@BOTH
@given(values=reals, others=st.lists(st.integers(-(10**9), 10**9), max_size=3))
@few
def test_ours_reads_phe(request, name, values, others):
    private = request.getfixturevalue(name)
    public = phe_interop.to_phe_public(private.public)
    numbers = [public.encrypt(v) for v in (*values, *others)]
    numbers += [numbers[0] * 16, numbers[0] + numbers[-1]]
    want = [*values, *others, values[0] * 16, values[0] + [*values, *others][-1]]
    got = phe_interop.from_phe(numbers, private.public, 1e10)
    assert np.allclose(got.decrypt(private), want, rtol=1e-12, atol=1e-12)


@BOTH
@given(seed=st.integers(0, 2**32))
@few
def test_both_compute_the_same(request, name, seed):
    private, rng = request.getfixturevalue(name), np.random.default_rng(seed)
    secret = phe_interop.to_phe_private(private)
    x, w = rng.integers(-(2**15), 2**15, 5), rng.integers(-(2**15), 2**15, (5, 3))
    t = encrypt_array(private, x, 0, 1 << 15)
    theirs = phe_interop.to_phe(t)
    ours = (t @ w + x[0]).decrypt_integers(private).tolist()
    columns = (sum(c * int(v) for c, v in zip(theirs, w[:, m], strict=True)) + int(x[0]) for m in range(3))
    assert [secret.decrypt(c) for c in columns] == ours == (x @ w + x[0]).tolist()


def test_keys_convert_both_ways(private):
    secret = phe_interop.to_phe_private(private)
    again = phe_interop.from_phe_private(secret, insecure_size=True)
    assert again.public.n == private.public.n and set(again.insecure_primes()) == set(private.insecure_primes())
    assert again.public.h is not None
    assert phe_interop.from_phe_public(secret.public_key, insecure_size=True) == keys.PublicKey(
        private.public.n, None, True
    )
    made = [phe.generate_paillier_keypair(n_length=256)[1] for _ in range(12)]
    for theirs in made:
        ours = phe_interop.from_phe_private(theirs, insecure_size=True)
        assert (ours.public.h is None) == (
            theirs.p % 4 != 3 or theirs.q % 4 != 3 or gcd(theirs.p - 1, theirs.q - 1) != 2
        )
        assert encrypt_array(ours.public, [3.5], 4, 4).decrypt(ours).tolist() == [3.5]


def test_what_does_not_convert(private, other):
    packed = encrypt_array(private, [1, 2], 0, 4, slot_bits=10)
    with pytest.raises(InputError, match="no packed numbers"):
        phe_interop.to_phe(packed)
    with pytest.raises(InputError, match="larger than phe allows"):
        phe_interop.to_phe(replace(encrypt_array(private, [1], 0, 4), bound=int(private.public.n) // 3))
    foreign = phe_interop.to_phe(encrypt_array(other, [1], 0, 4))
    with pytest.raises(InputError, match="another key"):
        phe_interop.from_phe(foreign, private.public, 4)
    with pytest.raises(InputError, match="do not fit"):
        phe_interop.from_phe(foreign, other.public, 1 << 511)
    bad = phe.EncryptedNumber(phe_interop.to_phe_public(private.public), int(private.public.n))
    with pytest.raises(ProtocolError, match="factor in common"):
        phe_interop.from_phe([bad], private.public, 4)
