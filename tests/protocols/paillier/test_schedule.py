"""What is multiplied, how often and with which tables depends on public limits alone: operations are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import prod

import gmpy2
import numpy as np
import pytest
import torch

from protocols import kernels
from protocols.kernels import residues as native
from protocols.paillier import encrypt_array, keys, residues, wire
from protocols.paillier.affine import AffineClient, AffineServer, AffineShape
from protocols.paillier.linear_gate import ClientGate, GateShape, ServerGate
from protocols.paillier.patches import conv2d_patches, linear_patches
from protocols.paillier.powers import power_all
from protocols.paillier.residues import Residues, residues_modulo

KINDS = ("dense", "all zero", "sparse", "negative", "one bit", "largest")


def weights(kind: str, shape: tuple[int, ...], top: int) -> np.ndarray:
    """int64 numbers from -top to top - 1."""
    rng = np.random.default_rng(7)
    dense = rng.integers(-top, top, shape)
    made = {
        "dense": dense,
        "all zero": np.zeros(shape, np.int64),
        "sparse": np.where(rng.random(shape) < 0.1, dense, 0),
        "negative": -np.abs(dense),
        "one bit": np.zeros(shape, np.int64),
        "largest": np.full(shape, -top),
    }[kind]
    if kind == "one bit":
        made.flat[-1] = 1
    return made


class Counted:
    """An integer that notes what is done with it: products, and squares where both factors are the same object."""

    def __init__(self, value: int, seen: Counter) -> None:
        self.value, self.seen = gmpy2.mpz(value), seen

    def __mul__(self, other: Counted) -> Counted:
        self.seen["squares" if other is self else "products"] += 1
        self.seen[f"factors of {-(-other.value.bit_length() // 64)} words"] += 1
        return Counted(self.value * other.value, self.seen)

    def __add__(self, other: int) -> Counted:
        return Counted(self.value + other, self.seen)

    def __mod__(self, modulus: int) -> Counted:
        return Counted(self.value % modulus, self.seen)


@pytest.fixture(params=kernels.info()["available"])
def counted(request, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], object]], object]]:
    """Runs a function; returns every call for products, in order, with table and index sizes and what was computed."""
    with kernels.use(request.param):
        seen: list[object] = []
        if request.param == "twins":
            products, leave = Residues.products, Residues.leave
            counts = Counter()

            def noted(self, table, index, squarings=0):
                before = Counter(counts)
                out = products(self, table, index, squarings)
                seen.append((self.modulus, len(table), index.shape, squarings, counts - before))
                return out

            def wrapped(self, values):
                return residues._objects([Counted(v + (self.modulus << 64), counts) for v in values])

            def plain(self, cells):
                return [c.value if isinstance(c, Counted) else c for c in leave(self, cells)]

            monkeypatch.setattr(Residues, "products", noted)
            monkeypatch.setattr(Residues, "enter", wrapped)
            monkeypatch.setattr(Residues, "leave", plain)
        else:
            module, real = native._native(), native._native().residue_products

            class Noted:
                def __getattr__(self, name: str) -> object:
                    return getattr(module, name)

                @staticmethod
                def residue_products(out, table, index, *sizes):
                    made = real(out, table, index, *sizes)
                    seen.append((sizes[:4], made))

            monkeypatch.setattr(native, "_native", Noted)
            rows = native.residue_products

            def sized(table, index, squarings, modulus):
                seen.append(("rows", len(table)))
                return rows(table, index, squarings, modulus)

            monkeypatch.setattr(native, "residue_products", sized)

        def run(work: Callable[[], object]) -> list[object]:
            seen.clear()
            work()
            return list(seen)

        yield run


def same_for_all(counted: Callable, work: Callable[[str], Callable[[], object]]) -> None:
    """Whatever the weights are, the same products of the same tables."""
    made = {kind: counted(work(kind)) for kind in KINDS}
    assert {kind: seen == made["dense"] for kind, seen in made.items()} == dict.fromkeys(KINDS, True)


@pytest.fixture(scope="module")
def key() -> keys.PrivateKey:
    return keys.insecure_generate(512)


def rebuilt(key: keys.PrivateKey) -> keys.PrivateKey:
    """The same key with its tables made anew, for the arithmetic that is in use."""
    made = keys.PrivateKey(*key.insecure_primes(), keys.PublicKey(key.public.n, key.public.h, True))
    made.public.blinding_base, made.public.upper_base, made.blinding_bases  # noqa: B018
    return made


@pytest.mark.parametrize("shared", [True, False])
def test_affine_replies_take_the_same_operations_whatever_the_weights(counted, key, shared: bool) -> None:
    key = rebuilt(key)
    shape = AffineShape(6, 5, 7, 8, 4.0, 2.0, 512, shared)
    request = AffineClient(key, shape).request(np.random.default_rng(0).uniform(-4, 4, (7, 6)), "run")
    rows = () if shared else (7,)

    def work(kind: str) -> Callable[[], object]:
        matrix, bias = (weights(kind, (*rows, *size), 1 << 9) / 2**8 for size in ((5, 6), (5,)))
        server = AffineServer(shape, matrix, bias)
        return lambda: server.reply(key.public, request, "run")

    assert counted(work("dense"))
    same_for_all(counted, work)


@pytest.mark.parametrize(
    "patches", [linear_patches((3, 6), 5), conv2d_patches((1, 2, 5, 5), (4, 1, 3, 3), padding=(1, 1), groups=2)]
)
def test_gates_take_the_same_operations_whatever_the_weights_or_shares(counted, key, patches) -> None:
    key = rebuilt(key)
    layer = GateShape(patches, 10)
    share = torch.from_numpy(weights("dense", patches.input_shape, 1 << 62))
    request = ClientGate(key, layer).request(share)

    def reply(kind: str) -> Callable[[], object]:
        gate = ServerGate(key.public, layer, torch.from_numpy(weights(kind, patches.weight_shape, 1 << 9)))
        return lambda: gate.reply(request)

    same_for_all(counted, reply)


def test_arrays_take_the_same_operations_whatever_the_weights(counted, key) -> None:
    key = rebuilt(key)
    array = encrypt_array(key, np.arange(24).reshape(4, 6), 0, 32)
    packed = encrypt_array(key, np.arange(24).reshape(4, 6), 0, 32, slot_bits=32)
    patches = linear_patches((4, 6), 5)
    top = 1 << 9
    for work in (
        lambda w: array.matmul(w((6, 5)), 0, top),
        lambda w: packed.matmul(w((6, 5)), 0, top),
        lambda w: array.layer(patches, w((5, 6)), 0, top),
        lambda w: array.multiply(w((4, 6)), 0, top),
        lambda w: array.multiply(w(()), 0, top),
        lambda w: array[:1, :1].multiply(w((1, 1)), 0, top),
        lambda w: packed.multiply(w((6,)), 0, top),
        lambda w: array.add(w((4, 6)), top),
        lambda w: wire.write(array.matmul(w((6, 5)), 0, top)),
    ):
        same_for_all(counted, lambda kind, work=work: lambda: work(lambda shape: weights(kind, shape, top)))


def test_encryption_and_decryption_take_the_same_operations_whatever_the_numbers(counted, key) -> None:
    key = rebuilt(key)
    same_for_all(counted, lambda kind: lambda: encrypt_array(key, weights(kind, (3, 4), 1 << 9), 0, 1 << 9))

    def decryption(kind: str) -> Callable[[], object]:
        array = encrypt_array(key, weights(kind, (3, 4), 1 << 9), 0, 1 << 9)
        return lambda: array.decrypt_integers(key)

    same_for_all(counted, decryption)


def test_powers_take_the_same_operations_whatever_the_exponent(counted) -> None:
    modulus = (1 << 521) - 1
    for count in (1, 9):
        bases = [pow(3, 400 + i, modulus) for i in range(count)]
        r = residues_modulo(modulus)
        made = [
            counted(lambda e=exponent, r=r, bases=bases: power_all(r, r.enter(bases), e))
            for exponent in (1 << 255, (1 << 256) - 1, 3 << 254)
        ]
        assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("build", [name for name in kernels.info()["available"] if name != "twins"])
def test_a_kernel_multiplies_as_often_as_its_arguments_say(build: str) -> None:
    with kernels.use(build):
        r = residues_modulo((1 << 521) - 1)
        table = r.enter([1, 5, 7])
        for count, levels, terms, squarings in ((1, 1, 1, 0), (9, 3, 4, 2), (16, 2, 1, 5), (3, 2, 0, 4), (2, 0, 3, 4)):
            groups = -(-count // native.lanes())
            for index in (np.zeros((count, levels, terms), np.int32), np.full((count, levels, terms), 2, np.int32)):
                out = np.empty((count, r.fast.width), np.uint64)
                made = native._native().residue_products(
                    out.ctypes.data, table.ctypes.data, index.ctypes.data, count, levels, terms, squarings,
                    *native._arguments(r.fast),
                )  # fmt: skip
                inner = levels * terms - 1 + squarings * (levels - 1)
                assert made == (groups * inner if levels * terms else 0)
                factors = [2 if index.any() else 0] * terms
                want = prod((5, 7)[f - 1] if f else 1 for f in factors)
                total = 1
                for _ in range(levels):
                    total = total ** (1 << squarings) * want % int(r.modulus)
                assert r.leave(out) == [total] * count
