"""Run by test_triton.py in a process of its own, as `python triton_cases.py streams`."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from protocols import kernels
from protocols.gates.sign import groups, opened_planes
from protocols.kernels import Piece, cpu, gpu, twins, variant
from protocols.kernels.checks import TABLE_SIZES
from protocols.kernels.gpu import bilinear, keystream, launch, openings, planes, tables

KEY, NONCE = bytes(range(32)), bytes.fromhex("000000090000004a00000000")
EDGES = [0, 1, -1, 0x7F, 0x80, 0x7F7F7F7F7F7F7F7F, 0xFFFF, 1 << 31, 1 << 62, 2**63 - 1, -(2**63)]
GENERATOR = torch.Generator().manual_seed(3)


def ring(*shape: int) -> torch.Tensor:
    """Ring values of which about half are edge values."""
    wild = torch.randint(-(2**63), 2**63 - 1, shape, generator=GENERATOR)
    edges = torch.tensor(EDGES)[torch.randint(len(EDGES), shape, generator=GENERATOR)]
    return torch.where(torch.rand(shape, generator=GENERATOR) < 0.5, wild, edges)


def equal(found: torch.Tensor, expected: torch.Tensor, what: object) -> None:
    same = found.dtype == expected.dtype and found.shape == expected.shape
    assert same and torch.equal(found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), what


@contextmanager
def changed(module: Any, **values: int) -> Iterator[None]:
    """Other sizes of tiles than those that are tuned for a GPU, so that small operands have several."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    yield
    vars(module).update(before)


def streams() -> None:
    block = keystream.chacha20(torch.zeros(16, dtype=torch.int32), KEY, NONCE, offset=1)
    assert [int(word) & 0xFFFFFFFF for word in block[:4]] == [0xE4E7F110, 0x15593BD1, 0x1FDD0F50, 0xC47120A3]
    with changed(keystream, LANES=4):
        out, last = torch.arange(40, dtype=torch.int64), (1 << 32) - 5
        found = keystream.chacha20(out.clone(), KEY, NONCE, "sub", last)
        equal(found, kernels.chacha20(out.clone(), KEY, NONCE, "sub", last), "the end of a stream")
        cases = (
            (torch.int64, "set", 5), (torch.int64, "set", 0), (torch.int64, "add", 40), (torch.int64, "xor", 9),
            (torch.int32, "add", 7), (torch.int32, "sub", 8), (torch.int16, "add", 9), (torch.int16, "sub", 12),
            (torch.uint8, "add", 80), (torch.uint8, "sub", 1), (torch.uint8, "xor", 3),
        )  # fmt: skip
        outs = [ring(size + 3).to(dtype)[3:] for dtype, _, size in cases]  # some begin at odd places
        expected, nonces, modes = (
            [out.clone() for out in outs],
            os.urandom(12 * len(outs)),
            [mode for _, mode, _ in cases],
        )
        keystream.chacha20_many(outs, KEY, nonces, modes)
        kernels.chacha20_many(expected, KEY, nonces, modes)
        for case, found, right in zip(cases, outs, expected, strict=True):
            equal(found, right, case)


def products() -> None:
    for m, k, n in ((5, 70, 9), (2, 0, 3), (0, 4, 2), (3, 4, 0)):
        a, b, out = ring(m, k), ring(k, n), ring(m, n)
        equal(bilinear.matmul(a, b), a @ b, (m, k, n))
        equal(bilinear.matmul(a.t().contiguous().t(), b, out.clone(), "sub"), out - a @ b, (m, k, n))
    most = torch.full((2, 300), 0x7F7F7F7F7F7F7F7F), torch.full((300, 2), -0x7F7F7F7F7F7F7F80)
    equal(bilinear.matmul(*most), most[0] @ most[1], "largest digits")
    for tiles, depth in ((0, 64), (1 << 20, 1 << 14)):  # one part or four, K in several pieces or one
        with changed(bilinear, _MANY_TILES=tiles, _MOST_DEPTH=depth, ROWS=16, COLUMNS=16):
            a, b, out = ring(2, 5, 70), ring(70, 18).expand(2, 70, 18), ring(2, 5, 18)
            equal(bilinear.matmul(a, b, out.clone(), "add"), out + a @ b, tiles)
            equal(bilinear.matmul(a, b[0]), a @ b[0], tiles)
    a, b = ring(2, 1, 3, 4), ring(1, 3, 4, 2)
    equal(bilinear.matmul(a.expand(2, 3, 3, 4), b.expand(2, 3, 4, 2)), a @ b, "batches")
    x, w = ring(2, 4, 6, 5), ring(6, 2, 3, 3)
    settings = ((1, 2), ((1, 0), (1, 1)), (1, 1), 2)
    equal(bilinear.conv2d(x, w, *settings), kernels.conv2d(x, w, *settings), "convolution")
    a, b = ring(3, 5).to(torch.int32), torch.tensor([[1, -5], [0, 7], [-1, -1], [127, 0], [3, -128]], dtype=torch.int8)
    equal(bilinear.sign_product(a, b), kernels.sign_product(a, b), "signs")


def package() -> None:
    """The same kernels as the twins', with equal signatures."""
    assert gpu.__all__ == twins.__all__
    for name in gpu.__all__:
        kernel, twin = (inspect.signature(getattr(module, name)) for module in (gpu, twins))
        assert kernel == twin, name


def same(name: str, *given: Any) -> None:
    """A kernel and its twin give the same; there is no such thing as close."""
    found, expected = (getattr(module, name)(*given) for module in (gpu, twins))
    pairs = zip(found, expected, strict=True) if isinstance(found, (tuple, list)) else [(found, expected)]
    for one, other in pairs:
        equal(one, other, (name, given))


seeds, sizes, sides = st.integers(0, 2**32), st.sampled_from((0, 1, 63, 64, 65, 200)), st.booleans()
few = settings(max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate])


@few
@given(
    seeds, sizes, st.sampled_from((1, 13, 16, 17, 32, 33, 62)), sides, st.sampled_from((0, 1, 1 << 15, (1 << 62) - 1))
)
def pointwise(seed: int, n: int, f: int, first: bool, offset: int) -> None:
    GENERATOR.manual_seed(seed)
    m, a, b, ba, gamma, bgamma = (ring(n) for _ in range(6))
    k, bk = (ring(n).to(kernels.wrap_dtype(f)) for _ in range(2))
    bhat, chat = (ring(-(-n // 64)) for _ in range(2))
    with changed(launch, BLOCK=64):
        same("deal_truncation", m, f)
        same("truncate", m, a, k, f, first)
        same("truncate", m, a, k, f, first, offset, chat, gamma)
        same("select", bhat, m, None, b, ba, first)
        same("select", bhat, m, a, b, ba, first)
        same("select_truncated", bhat, m, a, k, b, ba, bk, f, first, -offset)
        same("select_truncated", bhat, m, a, k, b, ba, bk, f, first, offset, chat, gamma, bgamma)
        same("bit_to_ring", bhat, b, first)
        same("bit_times", bhat, None, n)
        same("bit_times", bhat, m, n)


BITS = ((63, 0), (31, 0), (1, 0), (4, 0), (6, 3), (1, 63), (64, 0), (47, 16), (66, -3), (16, -4), (65, -63))


@few
@given(seeds, sizes, st.sampled_from(BITS), st.sampled_from((0, 1, -1, (1 << 62) - 1)), st.integers(0, 63))
def packed(seed: int, n: int, bits: tuple[int, int], offset: int, bit: int) -> None:
    GENERATOR.manual_seed(seed)
    lam = ring(n)
    m = torch.where(torch.rand(n, generator=GENERATOR) < 0.3, lam, ring(n))
    with changed(launch, BLOCK=64), changed(planes, WORDS=2):
        same("pack_bits", ((lam >> bit) & 1).to(torch.uint8))
        same("pack_bits", (lam & 1).bool())
        same("unpack_bits", ring(-(-n // 64)), n)
        same("msb_plane", lam, bit, offset)
        same("thermometer", lam, *bits)
        therm = twins.thermometer(lam, *bits) ^ ring(-(-bits[0] // 4), n).to(torch.int16)
        same("leaves", m, therm, *bits, offset)


@few
@given(
    seeds,
    st.sampled_from(((2, 0), (5, 0), (5, 2), (16, 0), (16, 4), (17, 1), (7, 3))),
    st.sampled_from((0, 1, 3, 9)),
    sides,
)
def grouped(seed: int, digits: tuple[int, int], words: int, first: bool) -> None:
    GENERATOR.manual_seed(seed)
    layout, inputs = groups(*digits), len(opened_planes(*digits))
    opened, masks, bits = ring(inputs, words), ring(inputs, words), ring(2 * digits[0] - 1, words)
    shares = ring(len(twins.monomials_layer(masks, layout)), words)
    with changed(planes, BLOCK=4):
        same("monomials_layer", masks, layout)
        same("combine_layer", opened, masks, shares, bits, layout, first)
        for k, with_eq in ((2, False), (3, True), (4, False), (4, True)):
            count, products = 2 * k - 2 + with_eq, len(kernels.monomial_sets(k, with_eq))
            opened, masks = ring(count, words), ring(count, words)
            same("monomials", masks, k, with_eq)
            same("combine", opened, masks, ring(products, words), ring(words), k, with_eq, first)


@few
@given(seeds, sizes, st.sampled_from(TABLE_SIZES), st.integers(1, 6), sides, sides)
def looked_up(seed: int, n: int, size: int, columns: int, signed: bool, first: bool) -> None:
    GENERATOR.manual_seed(seed)
    with changed(launch, BLOCK=64), changed(tables, ROWS=16):
        same("unit_vectors", ring(n), size)
        same("unit_lookup", ring(n), ring(n, max(1, size // 64)), ring(columns, size))
        each, shifts, (rest, drop) = lambda: [ring(2, n) for _ in range(3)], (8 * columns, 0, columns), (5 * columns, 7)
        same("deal_spline", each(), ring(2, n), ring(2, n) if signed else None, shifts, rest if first else 0, drop)
        powers = each() if signed else [None, *each()[1:]]
        same("spline", each(), powers, ring(2, n), shifts, first)
        size, cuts = max(16, size), (13, columns, 40)
        same("lookup_around", ring(n), ring(n, max(1, size // 64)), ring(3, 16 * size), rest, cuts)
        same("weighted_around", ring(n), ring(n, size), ring(3, 16 * size), rest, cuts)


def most() -> None:
    """The largest sums of digits that a lookup makes: all bits set, all digits as large as they may be."""
    for digit in (0x7F7F7F7F7F7F7F7F, -0x7F7F7F7F7F7F7F80):
        same("unit_lookup", ring(3), torch.full((3, 4), -1), torch.full((2, 256), digit))


@few
@given(
    seeds,
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8), sides, sides), min_size=1, max_size=4),
    st.sampled_from((0, 3)),
)
def opened(seed: int, wanted: list[tuple[int, int, bool, bool]], words: int) -> None:
    GENERATOR.manual_seed(seed)
    pieces = [Piece(width, bits) for _, width, bits, _ in wanted]
    shares, masks = [ring(n) if shared else None for n, _, _, shared in wanted], [ring(n) for n, *_ in wanted]
    pieces.append(Piece(8, True, (1, 4)))
    shares.append(ring(5, words))
    masks.append(ring(2, words))
    with changed(openings, BLOCK=16):
        (found, sent), (expected, wires) = (module.hide(shares, masks, pieces) for module in (gpu, twins))
        for one, other in zip([*found, *sent], [*expected, *wires], strict=True):
            equal(one, other, wanted)
        wire = torch.cat(wires).flip(0).contiguous()
        gpu.join(found, wire, pieces)
        twins.join(expected, wire, pieces)
        widths = [width for _, width, *_ in wanted]
        cut = twins.narrow(masks[: len(widths)], widths)
        for one, other in zip(gpu.narrow(masks[: len(widths)], widths), cut, strict=True):
            equal(one, other, wanted)
        shapes = [mask.shape for mask in masks[: len(widths)]]
        for one, other in zip(gpu.widen(cut, widths, shapes), twins.widen(cut, widths, shapes), strict=True):
            equal(one, other, wanted)
    for one, other in zip(found, expected, strict=True):
        equal(one, other, wanted)


def engine(*cases: str) -> None:
    """Programs with all their parties, on these kernels: what is sent, and what comes out, is that of the CPU's kernels."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))
    from test_gpu import DEALER, ran
    from test_wire import compiled

    run = {
        **vars(gpu),
        "chacha20": cpu.chacha20,
        "chacha20_many": cpu.chacha20_many,
    }  # others show that these are equal
    for case in cases:
        places = dict.fromkeys((*compiled(case)[0].parties, DEALER), torch.device("cpu"))
        expected = ran(case, places)
        before = variant._by_device.pop(torch.device("cpu"))
        variant._by_device[torch.device("cpu")] = SimpleNamespace(**run)
        found = ran(case, places)
        variant._by_device[torch.device("cpu")] = before
        assert found[0] == expected[0], case
        for one, other in zip(found[1], expected[1], strict=True):
            equal(one, other, case)


KINDS: dict[str, tuple[Callable[..., None], ...]] = {
    "streams": (streams,), "products": (products,), "pointwise": (pointwise,), "planes": (packed, grouped),
    "tables": (looked_up, most), "openings": (opened,), "package": (package,),
}  # fmt: skip

if __name__ == "__main__":
    what, *cases = sys.argv[1:]
    assert os.environ["TRITON_INTERPRET"] == "1"
    if what == "engine":
        engine(*cases)
    for kind in KINDS.get(what, ()):
        kind()
    print("all equal")
