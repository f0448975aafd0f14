"""Encrypted arrays as bytes: what was sent arrives, and nothing else passes."""

import struct
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError, ProtocolError
from protocols.paillier import wire
from protocols.paillier.pool import BlindingPool
from protocols.paillier.tensor import PaillierTensor, encrypt_array

few = settings(max_examples=40, deadline=None)
SHAPE_AT = wire._HEADER.size


@pytest.fixture(scope="module")
def message(private) -> bytes:
    return wire.write(encrypt_array(private, np.arange(6).reshape(2, 3), 4, 8), "step 1")


def resealed(data: bytes) -> bytes:
    """A changed message with a checksum that fits."""
    return data[:-32] + sha256(data[:-32]).digest()


@pytest.mark.parametrize("name", ("private", "plain"))
@given(shape=st.lists(st.integers(0, 3), max_size=3), pack=st.booleans(), frac_bits=st.integers(0, 20))
@few
def test_round_trip(request, name, shape, pack, frac_bits):
    private = request.getfixturevalue(name)
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    sent = encrypt_array(private, values, frac_bits, 64, slot_bits=40 if pack and shape else None)
    data = wire.write(sent, "a")
    got = wire.read(data, private.public, "a")
    assert got.decrypt(private).tolist() == values.tolist() and got.shape == values.shape
    for field in ("frac_bits", "bound", "slots", "batch", "key"):
        assert getattr(got, field) == getattr(sent, field)
    assert len(data) == wire._HEADER.size + 8 * len(shape) + -(-sent.bound.bit_length() // 8) + 32 + sum(
        private.public.cipher_bytes for _ in range(int(np.prod(sent.cell_shape, dtype=int)))
    )


def test_what_was_computed_is_rerandomized(private):
    sent = encrypt_array(private, [1, 2, 3], 0, 4)
    leave = private.public.residues.leave
    ciphers = lambda t: leave(wire.read(wire.write(t), private.public).cells)
    assert ciphers(sent) == leave(sent.cells), "encrypted here: fresh already"
    computed = sent * 1
    assert leave(computed.cells) == leave(sent.cells)
    first, second = ciphers(computed), ciphers(computed)
    assert not {*first} & {*second} and not {*first, *second} & {*leave(sent.cells)}
    arrived = wire.read(wire.write(sent), private.public)
    assert not arrived.fresh and not {*ciphers(arrived)} & {*leave(sent.cells)}, "passing on does not repeat"
    with BlindingPool(private.public, 8, 4) as pool:
        pool.wait(8)
        assert wire.read(wire.write(computed, pool=pool), private.public).decrypt(private).tolist() == [1, 2, 3]
    with BlindingPool(private, 8, 4) as pool, pytest.raises(InputError, match="cannot re-randomize"):
        wire.write(computed, pool=pool)


def test_another_key_or_context(private, other, message):
    with pytest.raises(ProtocolError, match=f"for the key {private.public.fingerprint}, not for"):
        wire.read(message, other.public, "step 1")
    for context in ("", "step 2", "step 1 "):
        with pytest.raises(ProtocolError, match="message sent again"):
            wire.read(message, private.public, context)


@given(data=st.data())
@few
def test_any_change_is_noticed(private, message, data):
    at, bit = data.draw(st.integers(0, len(message) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(message)
    changed[at] ^= 1 << bit
    with pytest.raises(ProtocolError):
        wire.read(bytes(changed), private.public, "step 1")


@given(data=st.data())
@few
def test_any_cut_is_noticed(private, message, data):
    size = data.draw(st.one_of(st.sampled_from((0, 1, SHAPE_AT, SHAPE_AT + 31)), st.integers(0, len(message) - 1)))
    for bad in (message[:size], resealed(message[:size]) if size > 32 else b"", message + message[:size] + b"\0"):
        with pytest.raises(ProtocolError):
            wire.read(bad, private.public, "step 1")


@given(data=st.data())
@few
def test_headers_of_an_attacker(private, message, data):
    """Whatever the header says, the answer is an error or an array that is what it says."""
    changed = bytearray(message)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(40, SHAPE_AT + 17))
        changed[at] = data.draw(st.sampled_from((0, 1, 127, 128, 255)))
    try:
        got = wire.read(resealed(bytes(changed)), private.public, "step 1")
    except ProtocolError:
        return
    assert got.bound <= got.slots.limit and got.size <= 6 * got.slots.count and abs(got.frac_bits) <= 1 << 14


def ciphertext_replaced(message: bytes, key, value: int) -> bytes:
    start = len(message) - 32 - 2 * key.cipher_bytes
    return resealed(message[:start] + value.to_bytes(key.cipher_bytes, "little") + message[start + key.cipher_bytes :])


def test_what_is_no_ciphertext(private, message):
    key, (p, q) = private.public, map(int, private.insecure_primes())
    n = int(key.n)
    for value, why in (
        (0, "between 0"), (n * n, "between 0"), (n * n + 5, "between 0"),
        ((1 << 8 * key.cipher_bytes) - 1, "between 0"),
        (n, "factor in common"), (p, "factor in common"), (q * 12345, "factor in common"),
        (n * (n - 1), "factor in common"),
    ):  # fmt: skip
        with pytest.raises(ProtocolError, match=why):
            wire.read(ciphertext_replaced(message, key, value), key, "step 1")
    for value in (1, n + 1, n * n - 1):
        assert wire.read(ciphertext_replaced(message, key, value), key, "step 1").shape == (2, 3)
    with pytest.raises(ProtocolError, match="no multiple of the 128 bytes"):
        wire.read_ciphertexts(key, b"\1" * 129)


def test_bounds_and_slots_that_do_not_fit(private):
    packed = encrypt_array(private, np.arange(30), 0, 64, slot_bits=40)
    data = wire.write(packed)
    width_at = struct.calcsize("<8s16s16sIi")
    for width, count in ((40, 13), (64, 12), (1, 12), (40, 0), (2**32 - 1, 1), (3, 12)):
        bad = resealed(data[:width_at] + struct.pack("<II", width, count) + data[width_at + 8 :])
        with pytest.raises(ProtocolError, match="do not fit each other"):
            wire.read(bad, private.public)
    assert isinstance(wire.read(data, private.public), PaillierTensor)
