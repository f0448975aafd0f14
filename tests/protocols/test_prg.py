"""Key streams: the standard's bytes, on every variant, at every address."""

import copy
import pickle

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import kernels, prg

EVERY = kernels.info()["available"]
KEY = bytes(range(32))
NONCE = bytes.fromhex("000000090000004a00000000")


def reference(key: bytes, nonce: bytes, size: int, offset: int = 0) -> bytes:
    cipher = Cipher(algorithms.ChaCha20(key, offset.to_bytes(4, "little") + nonce), mode=None)
    return cipher.encryptor().update(bytes(size))


def raw(t: torch.Tensor) -> bytes:
    return t.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("variant", EVERY)
def test_block_of_the_standard(variant):
    """RFC 8439, section 2.3.2: the block with counter 1."""
    with kernels.use(variant):
        block = kernels.chacha20(torch.empty(64, dtype=torch.uint8), KEY, NONCE, offset=1)
    assert raw(block).hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


@pytest.mark.parametrize("variant", EVERY)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=12, max_size=12),
    st.sampled_from((0, 1, 7, 63, 64, 65, 1000, 1024, 4097)),
    st.sampled_from((0, 1, 5, 2**31, 2**32 - 65)),
)
@settings(max_examples=30, deadline=None)
def test_stream_equals_the_reference(variant, key, nonce, size, offset):
    with kernels.use(variant):
        out = kernels.chacha20(torch.full((size,), 7, dtype=torch.uint8), key, nonce, offset=offset)
    assert raw(out) == reference(key, nonce, size, offset)


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("numel", [1, 3, 127, 1025])
def test_modes_wrap_around_on_lanes(variant, dtype, numel):
    start = torch.arange(numel).mul(0x123456789ABCDEF).to(dtype)
    stream = torch.frombuffer(bytearray(reference(KEY, NONCE, numel * start.element_size())), dtype=dtype)
    expected = {"set": stream, "add": start + stream, "sub": start - stream, "xor": start ^ stream}
    for mode, result in expected.items():
        with kernels.use(variant):
            out = start.clone()
            assert kernels.chacha20(out, KEY, NONCE, mode) is out
        assert torch.equal(out, result), mode


@pytest.mark.parametrize("variant", EVERY)
def test_long_streams_on_several_threads(variant):
    numel = (1 << 20) + 3
    expected = torch.frombuffer(bytearray(reference(KEY, NONCE, 8 * numel, 3)), dtype=torch.int64)
    with kernels.use(variant):
        out = kernels.chacha20(torch.empty(numel, dtype=torch.int64), KEY, NONCE, offset=3)
        assert torch.equal(out, expected)
        assert not kernels.chacha20(out, KEY, NONCE, "sub", offset=3).any()


def test_other_shapes_and_dtypes():
    scalar = kernels.chacha20(torch.empty((), dtype=torch.int64), KEY, NONCE)
    assert raw(scalar) == reference(KEY, NONCE, 8)
    floats = kernels.chacha20(torch.empty(3, 5), KEY, NONCE)
    assert raw(floats) == reference(KEY, NONCE, 60)


def test_refusals():
    out = torch.zeros(64, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="2\\^32 blocks"):
        kernels.chacha20(out, KEY, NONCE, offset=2**32 - 1)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.chacha20(out.t(), KEY, NONCE)
    with pytest.raises(ValueError, match="mode"):
        kernels.chacha20(out, KEY, NONCE, "mul")
    with pytest.raises(TypeError, match="add"):
        kernels.chacha20(out.float(), KEY, NONCE, "add")
    with pytest.raises(TypeError, match="bool"):
        kernels.chacha20(out.bool(), KEY, NONCE)
    with pytest.raises(ValueError, match="32 and 12"):
        kernels.chacha20(out, KEY[:16], NONCE)


@pytest.mark.parametrize("variant", EVERY)
def test_stream_addresses_are_nonces(variant):
    nonce = (
        (5).to_bytes(4, "little") + (6).to_bytes(4, "little") + (2).to_bytes(2, "little") + (9).to_bytes(2, "little")
    )
    with kernels.use(variant):
        out = prg.Stream(KEY).fill(torch.empty(10, dtype=torch.int64), 5, 6, prg.Use.BIT_MASK, index=9)
    assert raw(out) == reference(KEY, nonce, 80)


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("epoch", [5, 2**32 + 7, 2**40 - 1])
def test_places_drawn_together_are_those_drawn_one_by_one(variant, epoch):
    stream = prg.Stream(KEY)
    places = [
        prg.Place(3, prg.Use.MASK, (2, 5), index=4),
        prg.Place(2**32 - 1, prg.Use.DEALT, (3,), torch.int16, 65535, "sub"),
        prg.Place(0, prg.Use.BIT_MASK, (), mode="xor"),
        prg.Place(9, prg.Use.MASK, (0, 2), mode="add"),
    ]
    draws = prg.Draws(places)
    with kernels.use(variant):
        outs = [torch.full(place.shape, 77, dtype=place.dtype) for place in places]
        draws.fill(stream, epoch, outs)
        for place, out in zip(places, outs, strict=True):
            alone = torch.full(place.shape, 77, dtype=place.dtype)
            stream.fill(alone, epoch, place.node, place.purpose, place.mode, place.index)
            assert torch.equal(out, alone)
        assert prg.Draws(places[:1]).draw(stream, epoch)[0].equal(outs[0])


def test_places_that_no_stream_has_are_refused():
    with pytest.raises(ValueError, match="new key"):
        prg.Draws([prg.Place(2**32, prg.Use.MASK, (1,))])
    draws = prg.Draws([prg.Place(1, prg.Use.MASK, (1,))])
    with pytest.raises(ValueError, match="new key"):
        draws.draw(prg.Stream(KEY), 2**40)
    with pytest.raises(ValueError, match="for each of 2 tensors a mode"):
        kernels.chacha20_many([torch.empty(1)] * 2, KEY, NONCE, ["set"])
    with pytest.raises(ValueError, match="contiguous"):
        kernels.chacha20_many([torch.empty(2, 3).t()], KEY, NONCE, ["set"])


def test_one_stream_of_those_drawn_together_has_no_more_than_its_blocks():
    nothing = torch.empty(2**38 + 8, dtype=torch.uint8, device="meta")
    with pytest.raises(ValueError, match="2\\^32 blocks"):
        kernels.chacha20_many([torch.empty(1), nothing], KEY, 2 * NONCE, ["set", "set"])


def test_every_part_of_the_address_counts():
    stream = prg.Stream(prg.insecure_test_key(1, "test"))
    addresses = [
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (0, 1, 0, 0),
        (0, 0, 1, 0),
        (0, 0, 0, 1),
        (2**32, 0, 0, 0),
        (2**40 - 1, 2**32 - 1, 255, 65535),
    ]
    drawn = {raw(stream.fill(torch.empty(4, dtype=torch.int64), e, n, p, index=i)) for e, n, p, i in addresses}
    assert len(drawn) == len(addresses)


@given(
    st.lists(st.tuples(*(st.integers(0, 2**bits - 1) for bits in (40, 32, 8, 16))), min_size=2, max_size=2, unique=True)
)
def test_no_two_addresses_are_one_nonce(addresses):
    nonces = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prg.kernels, "chacha20", lambda out, key, nonce, mode: nonces.append(nonce))
        for epoch, node, purpose, index in addresses:
            prg.Stream(KEY).fill(torch.empty(1), epoch, node, purpose, index=index)
    assert len(set(nonces)) == 2 and all(len(nonce) == 12 for nonce in nonces)


@pytest.mark.parametrize(
    "address", [(2**40, 0, 0, 0), (0, 2**32, 0, 0), (0, 0, 2**8, 0), (0, 0, 0, 2**16), (-1, 0, 0, 0)]
)
def test_addresses_out_of_range_are_refused(address):
    epoch, node, purpose, index = address
    with pytest.raises(ValueError, match="new key"):
        prg.Stream(KEY).fill(torch.empty(1, dtype=torch.int64), epoch, node, purpose, index=index)


def test_keys_stay_hidden_and_differ():
    stream = prg.Stream(KEY)
    assert KEY.hex() not in repr(stream) and repr(KEY) not in repr(stream)
    assert prg.new_key() != prg.new_key() and len(prg.new_key()) == 32
    assert prg.insecure_test_key(1, "a") == prg.insecure_test_key(1, "a") != prg.insecure_test_key(1, "b")
    with pytest.raises(ValueError, match="32 bytes"):
        prg.Stream(b"short")
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="pickled"):
            way(stream)
