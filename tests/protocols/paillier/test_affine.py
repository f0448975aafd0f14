"""A matrix on packed rows of encrypted numbers: exactness, edges of limits, wrong messages, and what the client sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError, ProtocolError
from protocols.paillier import keys, wire
from protocols.paillier.affine import AffineClient, AffineServer, AffineShape
from protocols.paillier.cipher import decrypt, trivial

KEY = keys.insecure_generate(512)
OTHER = keys.insecure_generate(512)
SHAPE = AffineShape(3, 2, 5, 8, 4.0, 2.0, 512)


def numbers(rng: np.random.Generator, shape: tuple[int, ...], limit: float, edges: bool) -> np.ndarray:
    """Numbers up to a limit; with `edges` only the limit, its opposite and zero."""
    return rng.choice([-limit, limit, 0.0], shape) if edges else rng.uniform(-limit, limit, shape)


def made_up(shape: AffineShape, seed: int, edges: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, A, b) of a shape."""
    rng, rows = np.random.default_rng(seed), () if shape.shared else (shape.rows,)
    x = numbers(rng, (shape.rows, shape.inputs), shape.input_limit, edges)
    matrix = numbers(rng, (*rows, shape.outputs, shape.inputs), shape.weight_limit, edges)
    return x, matrix, numbers(rng, (*rows, shape.outputs), shape.bias_limit, edges)


def run(shape: AffineShape, x: np.ndarray, matrix: np.ndarray, bias: np.ndarray) -> np.ndarray:
    request = AffineClient(KEY, shape).request(x, "run 1")
    reply = AffineServer(shape, matrix, bias).reply(KEY.public, request, "run 1")
    assert (len(request), len(reply)) == (shape.request_bytes, shape.reply_bytes)
    return AffineClient(KEY, shape).finish(reply, "run 1")


def expected(x: np.ndarray, matrix: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (np.broadcast_to(matrix, (len(x), *matrix.shape[-2:])) @ x[..., None])[..., 0] + bias


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 6), st.integers(1, 9), st.integers(1, 30), st.integers(4, 20), st.sampled_from([0.5, 8.0, 300.0]),
    st.booleans(), st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_the_result_is_the_map_up_to_the_stated_rounding(k, m, rows, frac_bits, limit, shared, edges, seed):
    shape = AffineShape(k, m, rows, frac_bits, limit, limit, 512, shared)
    assert shape.slot_width * shape.lanes * shape.merged <= 511
    assert shape.lanes * shape.groups >= rows and (shared or shape.lanes == 1)
    x, matrix, bias = made_up(shape, seed, edges)
    half = 2.0 ** -(frac_bits + 1)
    sizes = np.abs(x).sum(1)[:, None] + np.abs(np.broadcast_to(matrix, (rows, m, k))).sum(2) + k * half
    allowed = half * sizes + 2 * half**2 + 1e-12 * shape.bias_limit
    assert np.all(np.abs(run(shape, x, matrix, bias) - expected(x, matrix, bias)) <= allowed)


@pytest.mark.parametrize("rows, outputs", [(1, 1), (1, 40), (19, 1), (19, 3)])
@pytest.mark.parametrize("sign", [1, -1])
def test_all_numbers_at_their_limits_fill_every_slot_and_none_overflows(rows, outputs, sign):
    shape = AffineShape(5, outputs, rows, 8, 4.0, 2.0, 512)
    x, matrix = np.full((rows, 5), 4.0), np.full((outputs, 5), sign * 2.0)
    made = run(shape, x, matrix, np.full(outputs, sign * shape.bias_limit))
    assert np.array_equal(made, np.full((rows, outputs), sign * 80.0))
    assert 80.0 * 2**16 == shape.bound


@pytest.mark.parametrize("bad", [np.nextafter(4.0, 5), -4.001, np.nan, np.inf])
def test_an_input_above_the_limit_is_refused(bad):
    x, _, _ = made_up(SHAPE, 0)
    x[4, 2] = bad
    with pytest.raises(InputError, match="above the limit 4"):
        AffineClient(KEY, SHAPE).request(x)


@pytest.mark.parametrize("bad", [2.001, -np.inf, np.nan])
def test_a_weight_or_bias_above_the_limit_is_refused(bad):
    _, matrix, bias = made_up(SHAPE, 0)
    for which, factor in ((matrix, 1), (bias, SHAPE.bias_limit / 2)):
        kept, which.flat[-1] = which.flat[-1], bad * factor
        with pytest.raises(InputError, match="above the limit"):
            AffineServer(SHAPE, matrix, bias)
        which.flat[-1] = kept
    AffineServer(SHAPE, matrix, bias)


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="do not fit a key"):
        AffineShape(10**6, 1, 1, 24, 2.0**30, 2.0**30, 128)
    with pytest.raises(InputError, match="none may be 0"):
        AffineShape(0, 1, 1, 8, 1.0, 1.0, 512)
    with pytest.raises(InputError, match="expected"):
        AffineServer(SHAPE, np.zeros((3, 2)), np.zeros(2))


def messages(context: str = "s/1") -> tuple[bytes, bytes]:
    x, matrix, bias = made_up(SHAPE, 1)
    request = AffineClient(KEY, SHAPE).request(x, context)
    return request, AffineServer(SHAPE, matrix, bias).reply(KEY.public, request, context)


def answer(request: bytes, key: keys.PublicKey = KEY.public, shape: AffineShape = SHAPE) -> bytes:
    _, matrix, bias = made_up(shape, 1)
    return AffineServer(shape, matrix, bias).reply(key, request, "s/1")


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("at", [0, 9, 30, 60, 100, -40, -1])
def test_a_changed_message_is_noticed_at_both_ends(at):
    request, reply = messages()
    with pytest.raises(ProtocolError, match="not an encrypted array"):
        answer(changed(request, at % len(request)))
    with pytest.raises(ProtocolError, match="not an encrypted array"):
        AffineClient(KEY, SHAPE).finish(changed(reply, at % len(reply)), "s/1")


def test_cut_replayed_and_exchanged_messages_and_other_keys_are_noticed():
    request, reply = messages()
    old, old_reply = messages("s/0")
    client = AffineClient(KEY, SHAPE)
    for bad in (request[:-1], request[:200], b"", old, reply):
        with pytest.raises(ProtocolError):
            answer(bad)
    for bad in (reply[:-1], b"", old_reply, request):
        with pytest.raises(ProtocolError):
            client.finish(bad, "s/1")
    with pytest.raises(ProtocolError, match="is for the key"):
        answer(request, OTHER.public)
    with pytest.raises(ProtocolError, match="is for the key"):
        AffineClient(OTHER, SHAPE).finish(reply, "s/1")
    assert client.finish(reply, "s/1").shape == (5, 2)


@pytest.mark.parametrize(
    "other",
    [replace(SHAPE, rows=4), replace(SHAPE, frac_bits=7), replace(SHAPE, input_limit=5.0), replace(SHAPE, inputs=4)],
)
def test_messages_of_another_shape_are_refused(other):
    x, _, _ = made_up(other, 1)
    with pytest.raises(ProtocolError, match="request does not fit the program"):
        answer(AffineClient(KEY, other).request(x, "s/1"))
    with pytest.raises(ProtocolError, match="answer does not fit the program"):
        AffineClient(KEY, replace(SHAPE, outputs=40)).finish(messages()[1], "s/1")


def test_slots_that_hold_no_answer_are_noticed():
    _, reply = messages()
    read = wire.read(reply, KEY.public, "s/1/reply")
    lifted = KEY.public.residues.multiply(read.cells, trivial(KEY.public, [mpz(1) << 509] * len(read.cells)))
    with pytest.raises(ProtocolError, match="does not divide into"):
        AffineClient(KEY, SHAPE).finish(wire.write(replace(read, cells=lifted), "s/1/reply"), "s/1")


def test_every_ciphertext_of_an_answer_is_blinded_afresh():
    x, _, _ = made_up(SHAPE, 1)
    request, server = AffineClient(KEY, SHAPE).request(x, "s"), AffineServer(SHAPE, np.zeros((2, 3)), np.zeros(2))
    seen = set()
    for _ in range(20):
        cells = wire.read(server.reply(KEY.public, request, "s"), KEY.public, "s/reply").cells
        seen |= set(KEY.public.residues.leave(cells))
    assert len(seen) == 20 * SHAPE.reply_cells and 1 not in seen


def blinding(server: AffineServer, request: bytes) -> tuple[list, list[int]]:
    """(plaintexts, what is left of the ciphertexts without them) of an answer: all that the client can see."""
    cells = wire.read(server.reply(KEY.public, request, "s"), KEY.public, "s/reply").cells
    plain, public = decrypt(KEY, cells), KEY.public
    left = public.residues.multiply(cells, trivial(public, [-v for v in plain]))
    return plain, [int(c) for c in public.residues.leave(left)]


def test_what_the_client_sees_depends_on_the_scores_alone():
    """Two matrices with the same scores: equal plaintexts, all slots, and blinding of the same distribution."""
    shape = AffineShape(2, 3, 4, 8, 4.0, 2.0, 512)
    x = np.array([[1.0, 1.0], [2.0, 2.0], [-0.5, -0.5], [0.0, 0.0]])
    first, bias = np.array([[1.5, 0.25], [-1.0, 0.5], [0.0, 0.0]]), np.array([1.0, 0.0, -2.0])
    request = AffineClient(KEY, shape).request(x, "s")
    samples = []
    for matrix in (first, first[:, ::-1].copy()):
        server = AffineServer(shape, matrix, bias)
        views = [blinding(server, request) for _ in range(400)]
        samples.append((views[0][0], np.bincount([left[0] >> 300 & 15 for _, left in views], minlength=16)))
        assert all(view[0] == views[0][0] for view in views)
    (plain, counts), (other_plain, other_counts) = samples
    assert plain == other_plain
    statistic = ((counts - other_counts) ** 2 / np.maximum(1, counts + other_counts)).sum()
    assert statistic < 60  # chi-squared of 15 degrees: exceeded once in two million
