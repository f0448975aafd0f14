"""Keys: what is made, what is refused, and that nothing secret leaves."""

import copy
import json
import pickle
import stat
from hashlib import sha256

import gmpy2
import pytest

from protocols.errors import ConfigError, InputError
from protocols.paillier import keyfile, keys


def primes(bits: int, remainder: int = 3) -> tuple[gmpy2.mpz, gmpy2.mpz]:
    """Two primes of that size with a remainder modulo 4, far apart."""
    out, at = [], gmpy2.mpz(3) << bits - 2
    while len(out) < 2:
        at = gmpy2.next_prime(at)
        if at % 4 == remainder:
            out.append(at)
            at = gmpy2.mpz(7) << bits - 3
    return out[0], out[1]


@pytest.mark.parametrize("bits", (128, 512, 1024))
def test_generated_keys(bits):
    for _ in range(3):
        key = keys.insecure_generate(bits)
        p, q = key.insecure_primes()
        assert key.public.bits == bits == 2 * p.bit_length() == 2 * q.bit_length()
        assert p % 4 == q % 4 == 3 and gmpy2.gcd(p - 1, q - 1) == 2 and p * q == key.public.n
        # h is minus a square: not a square modulo p or q, but -h is
        assert gmpy2.legendre(key.public.h, p) == gmpy2.legendre(key.public.h, q) == -1
        assert gmpy2.legendre(-key.public.h, p) == gmpy2.legendre(-key.public.h, q) == 1


def test_sizes():
    assert keys.generate(2048).public.bits == 2048
    for bits in (1024, 2047, 4096):
        with pytest.raises(InputError, match="2048 or 3072"):
            keys.generate(bits)
    for bits in (64, 129):
        with pytest.raises(InputError, match="at least 128"):
            keys.insecure_generate(bits)


def test_no_secret_leaves(private):
    p, q = private.insecure_primes()
    for text in (repr(private), str(private), repr(private.public), repr(private.halves[0])):
        assert str(p) not in text and str(q) not in text and f"{p:x}" not in text and len(text) < 200
    assert str(private.public.n) not in repr(private.public) and private.public.fingerprint in repr(private.public)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="must not be pickled"):
            leak(private)


def test_text_and_back(private, tmp_path):
    assert keyfile.load_public(keyfile.dump_public(private.public), insecure_size=True) == private.public
    again = keyfile.load_private(keyfile.dump_private(private), insecure_size=True)
    assert again.insecure_primes() == private.insecure_primes() and again.public == private.public
    path = tmp_path / "key.json"
    keyfile.save_private(private, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        keyfile.save_private(private, path)
    p, q = private.insecure_primes()
    public_text = keyfile.dump_public(private.public)
    assert f"{p:x}" not in public_text and f"{q:x}" not in public_text


def sealed(fields: dict[str, object]) -> str:
    fields = {k: v for k, v in fields.items() if k != "sha256"}
    check = sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return json.dumps({**fields, "sha256": check})


def test_test_keys_are_refused_where_they_are_not_expected(private):
    for load, text in (
        (keyfile.load_public, keyfile.dump_public(private.public)),
        (keyfile.load_private, keyfile.dump_private(private)),
    ):
        with pytest.raises(ConfigError, match="512 bits instead of 2048 or 3072"):
            load(text)


@pytest.mark.parametrize(
    ("change", "why"),
    (
        ({"version": 2}, "version"),
        ({"format": "other"}, "does not say"),
        ({"n": "xyz"}, "hexadecimal"),
        ({"n": "-10"}, "hexadecimal"),
        ({"n": None}, "hexadecimal"),
        ({"bits": 2048}, "it has 512"),
        ({"n": "ff"}, "8 bits"),
    ),
)
def test_odd_texts_are_refused(private, change, why):
    fields = json.loads(keyfile.dump_public(private.public))
    with pytest.raises(ConfigError, match=why):
        keyfile.load_public(sealed({**fields, **change}), insecure_size=True)


def test_damaged_texts_are_refused(private):
    text = keyfile.dump_public(private.public)
    digit = text.index('"n": "') + 20
    changed = text[:digit] + ("0" if text[digit] != "0" else "1") + text[digit + 1 :]
    bad_texts = (
        (changed, "checksum"),
        (text[:-10], "not JSON"),
        ("", "not JSON"),
        ("[]", "does not say"),
        ("9" * 99999, "at most 65536"),
    )
    for bad, why in bad_texts:
        with pytest.raises(ConfigError, match=why):
            keyfile.load_public(bad, insecure_size=True)
    with pytest.raises(ConfigError, match="does not say"):
        keyfile.load_private(text, insecure_size=True)


def test_bad_moduli_are_refused():
    p, q = primes(256)
    for n, why in (
        (p * q * 2, "even"),
        (p * q * 65521, "below 65536"),
        (p * p, "equal"),
        (gmpy2.next_prime(p * q), "prime instead"),
        (p * q - p * q, "0 bits"),
        (-p * q, "0 bits"),
    ):
        with pytest.raises(ConfigError, match=why):
            keys.PublicKey(n, None, True)
    with pytest.raises(ConfigError, match="512 bits instead"):
        keys.PublicKey(p * q)


def test_bad_bases_are_refused():
    p, q = primes(256)
    good = keys.random_base(p * q)
    for h in (0, 1, -1, p, p * q - 1, p * q + good):
        with pytest.raises(ConfigError, match="blinding base"):
            keys.PublicKey(p * q, h, True)
    square = -good % (p * q)
    with pytest.raises(ConfigError, match="form"):
        keys.PrivateKey(p, q, keys.PublicKey(p * q, square, True))
    other = primes(256, 1)[0]
    with pytest.raises(ConfigError, match="3 modulo 4"):
        keys.PublicKey(p * other, good, True)


def test_bad_primes_are_refused():
    p, q = primes(256)
    public = keys.PublicKey(p * q, None, True)
    near = gmpy2.next_prime(p)
    for first, second, why in (
        (p, p, "equal"),
        (p, near, "do not belong"),
        (1, p * q, "different lengths"),
    ):
        with pytest.raises(ConfigError, match=why):
            keys.PrivateKey(first, second, public)
    with pytest.raises(ConfigError, match="too close"):
        keys.PrivateKey(p, near, keys.PublicKey(p * near, None, True))
    a, b = gmpy2.next_prime(gmpy2.mpz(3) << 126), gmpy2.next_prime(gmpy2.mpz(7) << 125)
    next_b = gmpy2.next_prime(b)
    with pytest.raises(ConfigError, match="not prime"):
        keys.PrivateKey(a * a, b * next_b, keys.PublicKey(a * a * b * next_b, None, True))
