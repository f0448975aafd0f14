"""Encryption and decryption, blinding and its pool."""

import os
import threading

import gmpy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.paillier import cipher, keys
from protocols.paillier.pool import BlindingPool

few = settings(max_examples=25, deadline=None)


def plaintexts(key: keys.PrivateKey) -> st.SearchStrategy[int]:
    """Integers a key can encrypt, often the largest and smallest."""
    top = int(key.public.n) // 2
    return st.one_of(st.sampled_from((0, 1, -1, top, -top, 1 << 64, -(1 << 63))), st.integers(-top, top))


def definition(key: keys.PrivateKey, c: int) -> int:
    """Decryption as Paillier defined it, with lambda = lcm(p-1, q-1)."""
    n, (p, q) = key.public.n, key.insecure_primes()
    exponent = gmpy2.lcm(p - 1, q - 1)
    m = (gmpy2.powmod(c, exponent, n * n) - 1) // n * gmpy2.invert(exponent, n) % n
    return int(m - n if 2 * m > n else m)


@pytest.mark.parametrize("name", ("private", "plain"))
@given(data=st.data())
@few
def test_round_trip(request, name, data):
    key = request.getfixturevalue(name)
    values = data.draw(st.lists(plaintexts(key), max_size=9))
    for side in (key, key.public):
        cells = cipher.encrypt(side, values)
        assert cipher.decrypt(key, cells) == values
        assert [definition(key, c) for c in key.public.residues.leave(cells)] == values


@pytest.mark.parametrize("name", ("private", "plain"))
def test_too_large_values_are_refused(request, name):
    key = request.getfixturevalue(name)
    for value in (key.public.n // 2 + 1, -(key.public.n // 2 + 1), key.public.n):
        with pytest.raises(InputError, match="does not fit"):
            cipher.encrypt(key, [1, value])


@pytest.mark.slow
def test_a_real_key():
    key = keys.generate(2048)
    values = [0, 1, -1, int(key.public.n) // 2, -(int(key.public.n) // 2), 12345]
    for side in (key, key.public):
        assert cipher.decrypt(key, cipher.encrypt(side, values)) == values


@pytest.mark.parametrize("name", ("private", "plain"))
def test_blinding_factors_encrypt_zero_and_never_repeat(request, name):
    key = request.getfixturevalue(name)
    seen = []
    for side in (key, key.public):
        cells = cipher.blinding_factors(side, 40)
        seen += key.public.residues.leave(cells)
        assert cipher.decrypt(key, cells) == [0] * 40
    assert len(set(seen)) == 80


def test_blinding_factors_are_powers_of_h(private):
    """h^(n r): minus a square to some power, so a square modulo both primes or modulo neither."""
    (p, q), symbols = private.insecure_primes(), set()
    for side in (private, private.public):
        for c in private.public.residues.leave(cipher.blinding_factors(side, 64)):
            assert gmpy2.legendre(c, p) == gmpy2.legendre(c, q)
            symbols.add(gmpy2.legendre(c, p))
    assert symbols == {1, -1}


def test_exponents_have_half_the_bits_of_n(private, monkeypatch):
    drawn = []
    take = os.urandom
    monkeypatch.setattr(cipher.secrets, "token_bytes", lambda count: drawn.append(count) or take(count))
    cipher.blinding_factors(private.public, 3)
    cipher.blinding_factors(private, 5)
    assert drawn == [3 * 32, 5 * 32]  # half of 512 bits
    cipher.refreshing_factors(private.public, 7)
    assert drawn[2:] == [7 * 32, 7 * 37]  # 40 bits more than 512


def test_refreshing_factors_are_powers_of_h(private, plain, monkeypatch):
    drawn, public = [], private.public
    take = os.urandom
    monkeypatch.setattr(cipher.secrets, "token_bytes", lambda count: drawn.append(take(count)) or drawn[-1])
    got = public.residues.leave(cipher.refreshing_factors(public, 3))
    for k, factor in enumerate(got):
        exponent = int.from_bytes(drawn[0][32 * k : 32 * k + 32] + drawn[1][37 * k : 37 * k + 37], "little")
        assert factor == gmpy2.powmod(public.h, public.n * exponent, public.square)
    assert cipher.decrypt(plain, cipher.refreshing_factors(plain.public, 5)) == [0] * 5


def test_pool_factors_are_used_once(private):
    leave = private.public.residues.leave
    with BlindingPool(private, size=64, batch=16) as pool:
        assert pool.wait(64) and len(pool) == 64
        taken = [int(c) for count in (1, 0, 50, 3, 100, 7) for c in leave(pool.take(count))]
        assert len(taken) == len(set(taken)) == 161
        assert pool.wait(64) and len(pool) == 64, "it fills up again, and no further"
        assert cipher.decrypt(private, cipher.encrypt(private, [7] * 5, pool.take(5))) == [7] * 5
        thread = pool._thread
    assert not thread.is_alive() and len(pool) == 0
    with pytest.raises(InputError, match="closed"):
        pool.take(1)
    with pytest.raises(InputError, match="at least 1"):
        BlindingPool(private, 0)


def test_pool_serves_threads(private):
    with BlindingPool(private.public, size=32, batch=8) as pool:
        taken: list[int] = []

        def work() -> None:
            for _ in range(10):
                taken.extend(private.public.residues.leave(pool.take(3)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(set(taken)) == len(taken) == 120


def test_a_forked_process_takes_nothing_from_the_store(private, monkeypatch):
    with BlindingPool(private, size=16, batch=16) as pool:
        assert pool.wait(16)
        stored = set(map(int, private.public.residues.leave(np.concatenate(list(pool._stored)))))
        monkeypatch.setattr("protocols.paillier.pool.os.getpid", lambda: -1)  # what a child would see
        assert len(pool) == 0 and not stored & set(map(int, private.public.residues.leave(pool.take(16))))
        monkeypatch.undo()
        assert stored == set(map(int, private.public.residues.leave(pool.take(16))))
