"""The gate on shares: sums of results are the layer in the ring, ranges hold at their ends, and masks hide."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError, ProtocolError
from protocols.paillier import keys, wire
from protocols.paillier.linear_gate import ClientGate, GateShape, ServerGate
from protocols.paillier.patches import Patches, conv2d_patches, linear_patches
from protocols.paillier.pool import BlindingPool

few = settings(max_examples=15, deadline=None)
EDGES = np.array([0, 1, -1, (1 << 63) - 1, -(1 << 63), 1 << 32, -(1 << 62)], np.int64)

LAYERS = {
    "vector": (linear_patches((6,), 3), lambda x, w: F.linear(x, w)),
    "rows": (linear_patches((2, 3, 4), 5), lambda x, w: F.linear(x, w)),
    "one output": (linear_patches((1, 9), 1), lambda x, w: F.linear(x, w)),
    "conv": (conv2d_patches((2, 2, 5, 4), (3, 2, 3, 2)), lambda x, w: F.conv2d(x, w)),
    "strided": (
        conv2d_patches((1, 2, 6, 5), (2, 2, 3, 3), (2, 1), (1, 2), (1, 2)),
        lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2)),
    ),
    "groups": (
        conv2d_patches((2, 4, 4, 4), (6, 2, 2, 2), padding=(1, 1), groups=2),
        lambda x, w: F.conv2d(x, w, None, 1, 1, 1, 2),
    ),
}
EVERY = pytest.mark.parametrize("layer", LAYERS)


def ring(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Ring values of which half are at the ends."""
    wild = rng.integers(-(1 << 63), (1 << 63) - 1, shape, dtype=np.int64, endpoint=True)
    return torch.from_numpy(np.where(rng.random(shape) < 0.5, wild, rng.choice(EDGES, shape)))


def weights(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> torch.Tensor:
    """Weights of some bits, half of them the largest or smallest."""
    top = 1 << bits - 1
    wild = rng.integers(-top, top, shape)
    return torch.from_numpy(np.where(rng.random(shape) < 0.5, wild, rng.choice([-top, top - 1, 0], shape)))


def sides(key: keys.PrivateKey, patches: Patches, w: torch.Tensor, bits: int, sigma: int = 40):
    shape = GateShape(patches, bits, sigma)
    return ClientGate(key, shape, "layer 1"), ServerGate(key.public, shape, w, "layer 1")


@EVERY
@given(seed=st.integers(0, 2**32), values=st.sampled_from((3, 10)))
@few
def test_patches_are_the_layers_of_torch(layer, seed, values):
    patches, reference = LAYERS[layer]
    rng = np.random.default_rng(seed)
    x, w = (torch.from_numpy(rng.integers(-values, values, s)) for s in (patches.input_shape, patches.weight_shape))
    assert torch.equal(patches.apply(w, x), reference(x.double(), w.double()).long())


@pytest.mark.parametrize("name", ("private", "plain"))
@EVERY
@given(seed=st.integers(0, 2**32), bits=st.sampled_from((1, 8, 17, 62)))
@few
def test_shares_add_up(request, name, layer, seed, bits):
    key, (patches, _), rng = request.getfixturevalue(name), LAYERS[layer], np.random.default_rng(seed)
    if GateShape(patches, bits).mask_bits > key.public.bits - 2:
        return
    w, mine, theirs = weights(rng, patches.weight_shape, bits), *(ring(rng, patches.input_shape) for _ in range(2))
    client, server = sides(key, patches, w, bits)
    reply, masks = server.reply(client.request(mine))
    result = client.finish(reply) + server.finish(theirs, masks)
    assert result.shape == patches.output_shape and torch.equal(result, patches.apply(w, mine + theirs))


def test_the_largest_sums_in_every_slot(private):
    """All terms at their extreme, the mask at its extreme: nothing carries, also in the last slot."""
    for value, weight in ((-(1 << 63), -(1 << 7)), (-(1 << 63), (1 << 7) - 1), ((1 << 63) - 1, -(1 << 7))):
        for byte in (b"\0", b"\xff"):
            patches = linear_patches((9,), 23)
            x, w = torch.full((9,), value), torch.full((23, 9), weight)
            client, server = sides(private, patches, w, 8)
            assert client.shape.bound >= abs(9 * value * weight)
            reply, masks = server.reply(client.request(x), insecure_draw=lambda size, b=byte: b * size)
            got = client.finish(reply) + server.finish(torch.zeros_like(x), masks)
            assert torch.equal(got, patches.apply(w, x))
            seen = wire.read(reply, private.public, "layer 1/reply").decrypt_integers(private)
            assert all(-client.shape.slots(512).limit <= v <= client.shape.slots(512).limit for v in seen)


@given(terms=st.integers(1, 5000), bits=st.integers(1, 62), sigma=st.integers(2, 80))
@settings(max_examples=300, deadline=None)
def test_ranges(terms, bits, sigma):
    """What the text of the module claims, in integers."""
    shape = GateShape(linear_patches((terms,), 1), bits, sigma)
    largest, m = terms << (bits - 1 + 63), shape.mask_bits
    assert largest << sigma <= 1 << m, "distance |T| / 2^m is at most 2^-sigma"
    assert largest + (1 << m - 1) <= shape.slots(2048).limit and m >= 64
    assert shape.slots(2048).width == m + 1


def views(private: keys.PrivateKey, sums: int, sigma: int, count: int = 4096) -> np.ndarray:
    """What the client decrypts, as fractions of the range of masks, when every output is the same extreme sum."""
    patches = linear_patches((1,), count)
    client, server = sides(private, patches, torch.full((count, 1), sums), 4, sigma)
    reply, _ = server.reply(client.request(torch.tensor([-(1 << 63)])))
    seen = wire.read(reply, private.public, "layer 1/reply").decrypt_integers(private)
    low = np.array([int(v) & 0xFF for v in seen])
    assert np.abs(np.bincount(low, minlength=256) - count / 256).max() < 7 * (count / 256) ** 0.5, (
        "low bits are uniform"
    )
    return np.sort(np.array([v / (1 << client.shape.mask_bits) for v in seen], float))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic of two samples of one size."""
    both = np.sort(np.concatenate([a, b]))
    return float(np.abs(np.searchsorted(a, both, "right") - np.searchsorted(b, both, "right")).max() / len(a))


def test_the_client_sees_the_same_whatever_the_weights_are(private):
    """Samples for opposite extreme weights agree (p = 1e-9 to fail by chance); with too narrow masks they do not."""
    limit = (0.5 * np.log(2e9) * 2 / 4096) ** 0.5
    low, high, zero = (views(private, w, 40) for w in (-8, 7, 0))
    assert distance(low, high) < limit and distance(low, zero) < limit
    assert -0.5 <= low[0] < -0.49 and 0.49 < low[-1] < 0.5
    assert distance(views(private, -8, 2), views(private, 7, 2)) > limit


def test_replies_are_fresh(private):
    """Two answers to one request share no ciphertext, even with masks that repeat."""
    client, server = sides(private, linear_patches((2,), 2), torch.ones(2, 2, dtype=torch.int64), 4)
    request = client.request(torch.tensor([1, 2]))
    first, second = (server.reply(request, insecure_draw=bytes)[0] for _ in range(2))
    leave = private.public.residues.leave
    ciphers = [leave(wire.read(r, private.public, "layer 1/reply").cells) for r in (first, second)]
    assert not set(ciphers[0]) & set(ciphers[1])


def test_pools_serve_the_gate(private):
    patches = linear_patches((6,), 3)
    w, x = torch.arange(18).reshape(3, 6) - 9, torch.arange(6) - 3
    client, server = sides(private, patches, w, 6)
    with BlindingPool(private, 16, 8) as ours, BlindingPool(private.public, 16, 8) as theirs:
        reply, masks = server.reply(client.request(x, ours), theirs)
    assert torch.equal(client.finish(reply) + server.finish(torch.zeros_like(x), masks), w @ x)


def test_what_does_not_fit_is_refused(private, other):
    patches = linear_patches((6,), 3)
    w, x = torch.ones(3, 6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    client, server = sides(private, patches, w, 4)
    narrow, _ = sides(private, linear_patches((5,), 3), torch.ones(3, 5, dtype=torch.int64), 4)
    wide, wide_server = sides(private, patches, w, 9)
    for work in (
        lambda: server.reply(narrow.request(x[:5])), lambda: client.finish(wide_server.reply(wide.request(x))[0]),
        lambda: client.finish(client.request(x)), lambda: server.reply(server.reply(client.request(x))[0]),
        lambda: server.reply(sides(other, patches, w, 4)[0].request(x)),
    ):  # fmt: skip
        with pytest.raises(ProtocolError):
            work()
    for work in (
        lambda: client.request(x[:5]), lambda: client.request(x.float()), lambda: sides(private, patches, w * 8, 4),
        lambda: sides(private, patches, w * -9, 4), lambda: sides(private, patches, w.float(), 4),
        lambda: sides(private, patches, w[:, :5], 4), lambda: GateShape(patches, 63), lambda: GateShape(patches, 8, 1),
        lambda: conv2d_patches((1, 1, 2, 2), (1, 1, 3, 3)),
        lambda: conv2d_patches((1, 3, 4, 4), (2, 1, 3, 3), groups=2),
        lambda: GateShape(patches, 8).slots(100),
    ):  # fmt: skip
        with pytest.raises(InputError):
            work()
