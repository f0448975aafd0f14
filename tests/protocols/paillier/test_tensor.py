"""Encrypted arrays compute what numpy computes, on integers exactly, and refuse what might overflow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.paillier import fixed
from protocols.paillier.cipher import encrypt
from protocols.paillier.patches import conv2d_patches
from protocols.paillier.tensor import PaillierTensor, encrypt_array, slot_bits_for

few = settings(max_examples=25, deadline=None)
KEYS = pytest.mark.parametrize("name", ("private", "plain"))


@pytest.fixture
def key(request, name):
    return request.getfixturevalue(name)


def ints(rng: np.random.Generator, *shape: int, bits: int = 15) -> np.ndarray:
    """Integers of which many are at the ends of the range."""
    top = (1 << bits) - 1
    wild = rng.integers(-top, top + 1, shape)
    return np.where(rng.random(shape) < 0.5, wild, rng.choice([0, 1, -1, top, -top], shape))


def exact(tensor: PaillierTensor, private) -> list:
    return tensor.decrypt_integers(private).tolist()


@KEYS
@given(seed=st.integers(0, 2**32))
@few
def test_like_numpy(request, name, seed):
    private = request.getfixturevalue(name)
    rng = np.random.default_rng(seed)
    x, y, w, v = ints(rng, 3, 4), ints(rng, 4), ints(rng, 4, 2), ints(rng, 3)
    t, u = (encrypt_array(private.public, a, 0, 1 << 15) for a in (x, y))
    for got, want in (
        (t, x), (t + u, x + y), (u + t, y + x), (t - u, x - y), (-t, -x), (t + y, x + y), (y - t, y - x),
        (5 - t, 5 - x),
        (t * y, x * y), (y * t, x * y), (t * -3, x * -3), (t * 0, x * 0), (t @ w, x @ w), (t @ w[:, 0], x @ w[:, 0]),
        (v @ t, v @ x), (w.T @ u, w.T @ y), (ints(rng, 5, 3) * 0 @ t, np.zeros((5, 4), int)), (t.sum(), x.sum()),
        (t.sum(0), x.sum(0)), (t.sum((-1, 0)), x.sum()), (t.T, x.T), (t.reshape(2, -1), x.reshape(2, -1)),
        (t.reshape((12,)), x.reshape(12)), (t[1], x[1]), (t[1, 2], x[1, 2]), (t[::-1, 1:3], x[::-1, 1:3]),
        (t[..., None], x[..., None]), (t[:, [0, 0, 3]], x[:, [0, 0, 3]]), (t[x > 0], x[x > 0]), (t.rerandomized(), x),
        (t.T @ v, x.T @ v), (v @ t @ w, v @ x @ w),
    ):  # fmt: skip
        assert got.shape == want.shape and exact(got, private) == want.tolist()
    a = ints(rng, 2, 3, 4)
    s = encrypt_array(private, a, 0, 1 << 15)
    assert exact(w.T @ s.transpose(0, 2, 1), private) == (w.T @ a.transpose(0, 2, 1)).tolist()
    assert exact(s.transpose(2, 0, 1).sum(1) @ v, private) == (a.transpose(2, 0, 1).sum(1) @ v).tolist()


@KEYS
@given(seed=st.integers(0, 2**32))
@few
def test_packed_like_numpy(request, name, seed):
    private = request.getfixturevalue(name)
    rng = np.random.default_rng(seed)
    x, w, b = ints(rng, 7, 4), ints(rng, 4, 2), ints(rng, 7, 2)
    t = encrypt_array(private.public, x, 0, 1 << 15, slot_bits=slot_bits_for(1 << 15, 0, 1 << 15, 0, 8, 1 << 16))
    assert t.packed and t.cell_shape[0] == -(-7 // t.slots.count) < 7
    for got, want in (
        (t, x), (t @ w, x @ w), (t @ w + b, x @ w + b), (t * w[:, 0], x * w[:, 0]), (t + t, x + x), (t - x, x - x),
        (t @ w[:, 1], x @ w[:, 1]), (t.sum(1), x.sum(1)), (t[:, 1], x[:, 1]), (t[:, ::-1], x[:, ::-1]), (-t, -x),
        (t.reshape(7, 2, 2), x.reshape(7, 2, 2)),
        (t.reshape(7, 2, 2).transpose(0, 2, 1), x.reshape(7, 2, 2).swapaxes(1, 2)),
        (t.rerandomized(), x), (7 + t, 7 + x), (w.T @ t[:, :, None], w.T @ x[:, :, None]),
    ):  # fmt: skip
        assert got.shape == want.shape and exact(got, private) == want.tolist()


@KEYS
@given(seed=st.integers(0, 2**32), bits=st.sampled_from((1, 3, 15, 30)), size=st.integers(1, 40))
@few
def test_compressed(request, name, seed, bits, size):
    private = request.getfixturevalue(name)
    x = ints(np.random.default_rng(seed), size, bits=bits)
    t = encrypt_array(private, x, 0, (1 << bits) - 1)
    small = t.compressed()
    assert small.shape == (size,) and small.cell_shape[0] == -(-size // ((private.public.bits - 1) // (bits + 1)))
    assert exact(small, private) == x.tolist() and small.compressed() is small


@given(seed=st.integers(0, 2**32))
@few
def test_real_numbers(private, seed):
    rng = np.random.default_rng(seed)
    x, w, b = rng.uniform(-8, 8, (3, 5)), rng.uniform(-1, 1, (5, 2)), rng.uniform(-1, 1, 2)
    t = encrypt_array(private, x, limit=8)
    assert np.abs(t.decrypt(private) - x).max() <= 2**-17
    # rounding x moves a sum of 5 products by 5 * 2^-17, rounding w by 5 * 8 * 2^-17, rounding b by 2^-33
    assert np.abs((t @ w + b).decrypt(private) - (x @ w + b)).max() <= 45 * 2**-17 + 2**-33
    assert np.abs((t + t.multiply(w[:, 0], 10)).decrypt(private) - (x + x * w[:, 0])).max() <= 3 * 2**-17 + 8 * 2**-11
    assert (t @ w).frac_bits == 32 and (t @ np.ones((5, 1), int)).frac_bits == 16


def test_bounds_hold_at_the_edge(private):
    """A packed sum that fills its slots to the last value is right; one more term is refused, before any work."""
    x = np.full((9, 4), -255)
    slot = slot_bits_for(255, 0, 255, 0, 4)
    assert slot == (4 * 255 * 255).bit_length() + 1
    t = encrypt_array(private, x, 0, 255, slot_bits=slot)
    w = np.full((4, 1), 255)
    full = t.matmul(w, 0, 255)
    assert exact(full, private) == [[-4 * 255 * 255]] * 9
    room = full.slots.limit - full.bound
    assert exact(full.add(np.full((9, 1), -room), room), private) == [[-full.slots.limit]] * 9
    with pytest.raises(InputError, match=r"this sum may overflow: its numbers can take 20 bits, a slot has 19"):
        full.add(np.full((9, 1), -room - 1), room + 1)
    with pytest.raises(InputError, match=r"this matrix product may overflow.* 20 bits, a slot has 19"):
        t.matmul(w, 0, 259)


def test_overflow_is_refused_before_it_happens(private, monkeypatch):
    t = encrypt_array(private, [1, 2], 0, 1 << 500)
    for name in ("products", "multiply", "inverses", "enter"):
        monkeypatch.delattr(type(t.key.residues), name)  # nothing can be computed
    for work in (lambda: t * (1 << 20), lambda: t @ np.array([1 << 10, 1]), lambda: t.add(1, 1 << 511)):
        with pytest.raises(InputError, match="may overflow.* bits, a plaintext has 511"):
            work()


@pytest.mark.parametrize("values", ([1.0, np.nan], [np.inf], [9.0], [-8.01], np.array([1 << 70], object)))
def test_values_over_the_limit_are_refused(private, values):
    with pytest.raises(InputError, match="above the limit 8") as error:
        encrypt_array(private, values, limit=8)
    assert "9.0" not in str(error.value)


def test_what_packed_arrays_refuse(private, other):
    t = encrypt_array(private, np.ones((5, 2)), 0, 4, slot_bits=20)
    for work in (
        lambda: t[0], lambda: t[1:], lambda: t.T, lambda: t.sum(), lambda: t.sum(0), lambda: t.reshape(10),
        lambda: np.ones((2, 5), int) @ t, lambda: t * np.arange(10).reshape(5, 2), lambda: t + np.ones((2, 5, 2), int),
        lambda: t[:, 0] @ np.ones(5, int),
    ):  # fmt: skip
        with pytest.raises(InputError, match="a packed array cannot do this"):
            work()
    plain = encrypt_array(private, np.ones((5, 2)), 0, 4)
    foreign = encrypt_array(other, np.ones((5, 2)), 0, 4)
    for work in (lambda: t + plain, lambda: plain + foreign):
        with pytest.raises(InputError, match="different keys or are packed differently"):
            work()
    with pytest.raises(InputError, match="cannot decrypt with the key"):
        foreign.decrypt(private)
    for work in (lambda: plain @ np.ones((3, 2)), lambda: np.ones((2, 2, 5)) @ plain, lambda: plain @ "x"):
        with pytest.raises(InputError, match="cannot multiply|real numbers"):
            work()


@pytest.mark.parametrize("name", ("private", "plain"))
def test_layers(request, name):
    private, rng = request.getfixturevalue(name), np.random.default_rng(5)
    patches = conv2d_patches((2, 2, 4, 5), (4, 1, 2, 3), padding=(1, 0), groups=2)
    x, w = ints(rng, *patches.input_shape), ints(rng, *patches.weight_shape)
    t = encrypt_array(private, x, 0, 1 << 15)
    want = torch.nn.functional.conv2d(torch.tensor(x).double(), torch.tensor(w).double(), None, 1, (1, 0), 1, 2)
    got = t.layer(patches, w)
    assert got.shape == patches.output_shape and exact(got, private) == want.long().tolist()
    assert got.bound == (1 << 15) * (1 << 15) * 6
    with pytest.raises(InputError, match="a packed array cannot do this"):
        encrypt_array(private, x, 0, 1 << 15, slot_bits=40).layer(patches, w)
    with pytest.raises(InputError, match="has shape"):
        t[:1].layer(patches, w)


def test_freshness(private):
    """What is encrypted or re-randomized is fresh, what is computed is not; re-randomizing changes every ciphertext."""
    t = encrypt_array(private, np.arange(4), 0, 4)
    assert t.fresh and t[1:].fresh and t.reshape(2, 2).fresh
    for made in (t + t, t + 1, t * 2, -t, t @ np.ones(4, int), t.sum(), t.compressed()):
        assert not made.fresh and made.rerandomized().fresh
    before, after = (private.public.residues.leave(v._flat()) for v in (t, t.rerandomized()))
    assert not set(before) & set(after)


def test_a_slot_that_did_overflow_is_noticed(private):
    """Someone lied about the bound: reading does not pass a carry on as data."""
    t = encrypt_array(private, np.zeros(4), 0, 1, slot_bits=8)
    top = 1 << t.slots.width * t.slots.count
    wrong = PaillierTensor(t.key, encrypt(private, [top]).reshape(t.cells.shape), 0, 1, t.slots, 4)
    with pytest.raises(InputError, match="does not divide into"):
        wrong.decrypt(private)


def test_public_arrays_of_every_kind(private):
    """Nothing wraps around on the way to a plaintext, and the default limit is the next power of two."""
    t = encrypt_array(private, [5, -5], 0, 8)
    for values in (
        np.array([3, 200], np.uint8), np.array([True, False]), np.array([-(1 << 63), (1 << 63) - 1]),
        np.array([0, (1 << 64) - 1], np.uint64), np.array([1 << 80, -7], object), [4, -4], 6,
    ):  # fmt: skip
        exactly = np.broadcast_to(np.asarray(values).astype(object), 2)
        assert exact(t - values, private) == [5 - exactly[0], -5 - exactly[1]]
        assert exact(values - t, private) == [exactly[0] - 5, exactly[1] + 5]
        assert exact(t * values, private) == [5 * exactly[0], -5 * exactly[1]]
    for values, limit in (
        (0, 1), (1, 1), (-2, 2), (3, 4), (2.0, 2), (-2.5, 4), (2.0**-5, 2.0**-5), (float(2**52 + 1), 2**53), ([], 1),
        (np.array([-(1 << 63)]), 1 << 63), (0.0, 1), (1e-300, 2.0**-996),
    ):  # fmt: skip
        assert fixed.power_of_two(np.array(values)) == limit
    for bad in (np.nan, -np.inf, np.array([1, np.nan])):
        with pytest.raises(InputError, match="not finite"):
            t * bad


def test_repr_hides_values(private):
    t = encrypt_array(private, np.full(3, 12345), 0, 1 << 14)
    assert repr(t) == "PaillierTensor(shape=(3,), frac_bits=0, bits=16)"
    assert "slots of 40 bits" in repr(encrypt_array(private, np.ones(3), slot_bits=40))


@given(
    values=st.lists(st.floats(-1e4, 1e4) | st.integers(-(10**4), 10**4), min_size=1, max_size=5),
    scale=st.integers(0, 60),
)
@few
def test_encoding_is_the_nearest_integer(values, scale):
    got = fixed.integers(np.array(values, float), scale, 1e4, "test").tolist()
    for v, g in zip(np.array(values, float).tolist(), got, strict=True):
        top, bottom = v.as_integer_ratio()
        assert abs((top << scale) - g * bottom) * 2 <= bottom and abs(g) <= fixed.magnitude(1e4, scale)
