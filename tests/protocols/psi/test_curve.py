"""Hashes of ids are points of the curve; keys, products of keys and points are as RFC 7748 has them."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import kernels
from protocols.errors import ProtocolError
from protocols.kernels import curve25519
from protocols.psi import curve, lanes, worker
from protocols.psi.curve import BadPoint, check_points, hash_to_curve, joined, multiply, new_key, new_keys, parted
from protocols.psi.workers import Workers

P, A = 2**255 - 19, 486662
SMALL = {
    "0": 0,
    "1": 1,
    "order 8": 325606250916557431795983626356110631294008115727848805560023387167927233504,
    "order 8, the other": 39382357235489614581723060781553021112529911719440698176882885853963445705823,
    "p - 1": P - 1,
}


LIMB = 2**51
EDGES = [
    number.to_bytes(32, "little")
    for number in (
        *SMALL.values(), 2, 9, P - 2, P, P + 1, P + 18, 2**255 - 1, 2**255, 2**256 - 1, LIMB - 1, LIMB, LIMB + 1,
        sum((LIMB - 1) << 51 * k for k in range(4)), (LIMB - 1) << 204, 2**254, 2**64 - 1, 2**52 - 1, 2**255 - 2**51,
    )
]  # fmt: skip


def point(number: int) -> bytes:
    return number.to_bytes(32, "little")


@pytest.mark.parametrize("with_gmp", [True, False])
def test_hashes_are_on_the_curve(with_gmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gmpy2")
    if not with_gmp:
        monkeypatch.setattr(curve, "jacobi", None)
    for number in range(40):
        u = int.from_bytes(hash_to_curve(b"%d" % number, b"salt"), "little")
        assert u < P and pow(u**3 + A * u**2 + u, (P - 1) // 2, P) == 1


def test_gmp_and_python_hash_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gmpy2")
    items = [b"", b"x", bytes(100), *(os.urandom(9) for _ in range(40))]
    fast = [hash_to_curve(item, b"s" * 32) for item in items]
    monkeypatch.setattr(curve, "jacobi", None)
    assert fast == [hash_to_curve(item, b"s" * 32) for item in items]
    assert len(set(fast)) == len(items) and fast != [hash_to_curve(item, b"t" * 32) for item in items]


def test_keys_commute_and_the_third_does_what_two_do() -> None:
    start = hash_to_curve(b"x", b"s")
    for _ in range(20):
        first, second, both = new_keys()
        other = new_key()
        assert multiply(multiply(start, first), second) == multiply(start, both)
        assert multiply(multiply(start, other), both) == multiply(multiply(multiply(start, second), first), other)
        assert len({first, second, both}) == 3
        assert both[0] % 8 == 0 and both[31] >> 6 == 1  # the form that RFC 7748 gives to keys


def test_many_points_and_short_products() -> None:
    key, points = new_key(), [hash_to_curve(b"%d" % number, b"s") for number in range(7)]
    whole = multiply(b"".join(points), key)
    assert whole == b"".join(multiply(each, key) for each in points)
    cut = multiply(b"".join(points), key, 16)
    assert cut == b"".join(whole[at : at + 16] for at in range(0, len(whole), 32))
    assert multiply(b"", key) == b""


@pytest.mark.parametrize("name", SMALL)
def test_points_of_small_order_are_refused(name: str) -> None:
    good = hash_to_curve(b"x", b"s")
    with pytest.raises(BadPoint):
        multiply(good + point(SMALL[name]) + good, new_key())


@pytest.mark.parametrize("number", [P, P + 1, P + 18, 2**255 - 1, 2**255, 2**255 + 9, 2**256 - 1])
def test_numbers_that_are_no_coordinates_are_refused(number: int) -> None:
    good = hash_to_curve(b"x", b"s")
    check_points(good + point(P - 1) + point(2**64 - 1) + point(2**255 - 1 - (1 << 64)))
    for data in (point(number), good + point(number), point(number) + good):
        with pytest.raises(BadPoint):
            check_points(data)


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_lists_for_workers(items: list[bytes]) -> None:
    assert parted(joined(items)) == items


@settings(deadline=None, max_examples=20)
@given(st.lists(st.binary(min_size=1, max_size=9), max_size=5), st.sampled_from([16, 32]))
def test_a_worker_answers_in_order(items: list[bytes], size: int) -> None:
    key, salt = new_key(), b"s" * 32
    points = b"".join(hash_to_curve(item, salt) for item in items)
    tasks = [
        (worker.BLIND, 32, key + salt + joined(items)),
        (worker.MULTIPLY, size, key + points),
        (worker.MULTIPLY, size, key + points + bytes(32)),
        (worker.MULTIPLY, size, key),
    ]
    reading = io.BytesIO(b"".join(worker.TASK.pack(task, width, len(data)) + data for task, width, data in tasks))
    writing = io.BytesIO()
    worker.serve(reading, writing)
    writing.seek(0)
    answers = []
    while head := writing.read(worker.DONE.size):
        status, length = worker.DONE.unpack(head)
        answers.append((status, writing.read(length)))
    expected = [(worker.WELL, multiply(points, key)), (worker.WELL, multiply(points, key, size))]
    assert answers == [*expected, (worker.BAD_POINT, b""), (worker.WELL, b"")]


@pytest.mark.parametrize("variant", ["twins", kernels.info()["variant"]])
def test_workers_compute_what_this_process_does(variant: str) -> None:
    key, salt = new_key(), os.urandom(32)
    items = [b"%d" % number for number in range(50)]
    with kernels.use(variant), Workers(2) as several, Workers(0) as none:
        for workers in (several, none):
            made = list(workers.ahead(5, lambda at, w=workers: w.blind(items[10 * at : 10 * at + 10], key, salt)))
            assert b"".join(made) == curve.blind(items, key, salt)
            asked = [workers.multiply(made[0], key, 16) for _ in range(5)]
            assert {each.result() for each in asked} == {multiply(made[0], key, 16)}
            with pytest.raises(BadPoint):
                workers.multiply(bytes(32), key).result()
        processes = [each._process for each in several._all]
        assert len(processes) == (0 if curve25519.lanes() else 2)
    assert all(each.poll() is not None for each in processes)


def test_few_multiplications_start_no_process() -> None:
    with Workers.for_work(100, 4) as few:
        assert few.count == 0


def test_a_process_that_is_gone_is_a_named_error() -> None:
    with kernels.use("twins"), Workers(1) as workers:
        workers._all[0]._process.kill()
        workers._all[0]._process.wait()
        with pytest.raises(ProtocolError, match="a process that multiplies points for this party has ended"):
            workers.multiply(hash_to_curve(b"x", b"s"), new_key()).result()


needs_lanes = pytest.mark.skipif(not curve25519.lanes(), reason="this CPU, or this build, has no kernels for points")


def rows(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(-1, 32)


@needs_lanes
@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from(EDGES)), max_size=20), st.integers(1, 3))
def test_kernels_multiply_as_openssl_does(points: list[bytes], threads: int) -> None:
    key = new_key()
    made = curve25519.x25519(rows(b"".join(points)), key, threads)
    for point, product in zip(points, made, strict=True):
        try:
            expected = multiply(point, key)
        except BadPoint:
            expected = bytes(32)
        assert product.tobytes() == expected


@needs_lanes
def test_kernels_multiply_as_the_rfc_says() -> None:
    """RFC 7748, section 5.2: the first vector, and the iteration."""
    scalar = bytearray.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    scalar[0] &= 248
    scalar[31] = scalar[31] & 127 | 64
    u = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    expected = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert curve25519.x25519(rows(u), bytes(scalar)).tobytes().hex() == expected
    k = u = b"\x09" + bytes(31)
    for _ in range(1000):
        form = bytes([k[0] & 248, *k[1:31], k[31] & 127 | 64])
        k, u = curve25519.x25519(rows(u), form).tobytes(), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


@needs_lanes
@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from(EDGES)), max_size=20))
def test_kernels_know_what_is_on_the_curve(points: list[bytes]) -> None:
    found = curve25519.on_curve(rows(b"".join(points)))
    for point, on in zip(points, found, strict=True):
        u = (int.from_bytes(point, "little") & (2**255 - 1)) % P
        assert on == (pow(u**3 + A * u**2 + u, (P - 1) // 2, P) == 1)


@needs_lanes
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_kernels_hash_as_python_does(count: int) -> None:
    items = [b"%d" % number for number in range(count)]
    assert lanes.hash_all(items, b"s" * 32).tobytes() == b"".join(hash_to_curve(item, b"s" * 32) for item in items)


@needs_lanes
def test_kernels_refuse_what_they_cannot_read() -> None:
    key = new_key()
    for points in (np.zeros((2, 31), np.uint8), np.zeros(32, np.uint8), np.zeros((1, 32), np.int8)):
        with pytest.raises(ValueError, match="points must be"):
            curve25519.x25519(points, key)
        with pytest.raises(ValueError, match="points must be"):
            curve25519.on_curve(points)
    for bad in (key[:31], bytes([key[0] | 1]) + key[1:], key[:31] + bytes([key[31] | 128]), bytes(32)):
        with pytest.raises(ValueError, match="a key has 32 bytes"):
            curve25519.x25519(rows(bytes(32)), bad)
    with pytest.raises(BadPoint):
        lanes.multiply(hash_to_curve(b"x", b"s") + bytes(32), key)
    assert curve25519.x25519(rows(hash_to_curve(b"x", b"s") * 4)[::2], key).shape == (2, 32)  # not contiguous
