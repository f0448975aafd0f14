"""What a round opens, hidden, packed and put together in one call: every variant as its twin, and what it means."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import kernels
from protocols.kernels import Piece, twins

EDGES = np.array([0, 1, -1, 0xFFFF, 1 << 62, -(1 << 62), -(1 << 63), (1 << 63) - 1])
COMPILED = [name for name in kernels.info()["available"] if name != "twins"]
PIECES = st.one_of(
    st.tuples(st.integers(1, 8), st.booleans()).map(lambda both: Piece(*both)),
    st.sampled_from([(0,), (1, 2, 4), (4, 0)]).map(lambda rows: Piece(rows=rows)),
)
SIZES = st.sampled_from((1, 2, 7, 64, 1030, 9000))


def ring(g: np.random.Generator, *shape: int) -> torch.Tensor:
    wild = g.integers(-(1 << 63), (1 << 63) - 1, shape, dtype=np.int64, endpoint=True)
    return torch.from_numpy(np.where(g.random(shape) < 0.5, wild, g.choice(EDGES, shape)))


def operands(g: np.random.Generator, piece: Piece, n: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """A share, sometimes zero, and a mask."""
    if piece.rows is not None:
        return ring(g, 5, n), ring(g, len(piece.rows), n)
    return (ring(g, n) if g.random() < 0.8 else None), ring(g, n)


@pytest.mark.parametrize("variant", COMPILED)
@given(st.integers(0, 2**32), st.lists(st.tuples(PIECES, SIZES), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_hide_and_join_equal_their_twins(variant, seed, made):
    g = np.random.default_rng(seed)
    pieces = [piece for piece, _ in made]
    shares, masks = zip(*(operands(g, piece, n) for piece, n in made), strict=True)
    wanted, sent = twins.hide(shares, masks, pieces)
    with kernels.use(variant):
        values, wires = kernels.hide(shares, masks, pieces)
        wire = torch.cat(wires)
        assert torch.equal(wire, torch.cat(sent))
        assert all(map(torch.equal, values, wanted))
        peer = torch.from_numpy(g.integers(0, 256, wire.numel() + 1, dtype=np.uint8))[1:]  # at an odd address
        kernels.join(values, peer, pieces)
    twins.join(wanted, peer, pieces)
    assert all(map(torch.equal, values, wanted))


@pytest.mark.parametrize("variant", kernels.info()["available"])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_two_parties_open_the_low_bytes_of_a_sum(variant, width):
    g = np.random.default_rng(width)
    x, lam, share = ring(g, 9000), ring(g, 9000), ring(g, 9000)
    pieces = [Piece(width)]
    with kernels.use(variant):
        (mine,), _ = kernels.hide([share], [lam], pieces)
        _, theirs = kernels.hide([x - share], [lam * 5], pieces)
        kernels.join([mine], torch.cat(theirs), pieces)
    assert not ((mine - (x + lam * 6)) << (64 - 8 * width)).any()


@pytest.mark.parametrize("variant", kernels.info()["available"])
def test_openings_on_several_threads_and_of_nothing(variant):
    g, threads = np.random.default_rng(1), torch.get_num_threads()
    share, mask, pieces = ring(g, (1 << 20) + 77), ring(g, (1 << 20) + 77), [Piece(3), Piece(5, True)]
    wanted, sent = twins.hide([share] * 2, [mask] * 2, pieces)
    with kernels.use(variant):
        try:
            torch.set_num_threads(3)
            values, wires = kernels.hide([share] * 2, [mask] * 2, pieces)
            kernels.join(values, torch.cat(sent), pieces)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(torch.cat(wires), torch.cat(sent))
        assert kernels.hide([], [], []) == ([], [])
        (empty,), _ = kernels.hide([None], [mask[:0]], [Piece(2)])
        kernels.join([empty], sent[0][:0], [Piece(2)])
    twins.join(wanted, torch.cat(sent), pieces)
    assert all(map(torch.equal, values, wanted))


def test_what_does_not_fit_is_refused_before_memory_is_touched():
    x = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected 6"):
        kernels.hide([x[:5]], [x], [Piece()])
    with pytest.raises(ValueError, match="1 to 8"):
        kernels.hide([x], [x], [Piece(9)])
    for share, rows in ((x.view(3, 2), (0, 3)), (x.view(3, 2), (-1, 0)), (x, (0, 1))):
        with pytest.raises(ValueError, match="do not make 4"):
            kernels.hide([share], [x[:4]], [Piece(rows=rows)])
    with pytest.raises(ValueError, match="48 bytes belong"):
        kernels.join([x], torch.zeros(47, dtype=torch.uint8), [Piece()])
    with pytest.raises(TypeError, match="contiguous"):
        kernels.join([x.view(2, 3).t()], torch.zeros(48, dtype=torch.uint8), [Piece()])


@pytest.mark.parametrize("variant", COMPILED)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 8), SIZES), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_narrow_and_widen_equal_their_twins(variant, seed, made):
    g = np.random.default_rng(seed)
    widths, values = [width for width, _ in made], [ring(g, n) for _, n in made]
    wanted = twins.narrow(values, widths)
    with kernels.use(variant):
        sent = kernels.narrow(values, widths)
        assert all(map(torch.equal, sent, wanted))
        odd = [torch.cat([torch.zeros(1, dtype=torch.uint8), wire])[1:] for wire in sent]  # at odd addresses
        read = kernels.widen(odd, widths, [(1, value.numel()) for value in values])
    assert all(map(torch.equal, read, twins.widen(wanted, widths, [(1, value.numel()) for value in values])))
    for value, width, low in zip(values, widths, read, strict=True):
        assert torch.equal(low.view(-1), value & -1 if width == 8 else value & ((1 << 8 * width) - 1))


@pytest.mark.parametrize("variant", kernels.info()["available"])
def test_what_narrow_and_widen_refuse(variant):
    x, wire = torch.zeros(9, dtype=torch.int64), torch.zeros(16, dtype=torch.uint8)
    with kernels.use(variant):
        assert kernels.narrow([], []) == kernels.widen([], [], []) == []
        with pytest.raises(TypeError, match="int64"):
            kernels.narrow([x.int()], [2])
        for width in (0, 9):
            with pytest.raises(ValueError, match="there are 1 to 8"):
                kernels.narrow([x], [width])
        with pytest.raises(ValueError, match="are 24"):
            kernels.widen([wire], [2], [(9,)])
        with pytest.raises(ValueError, match="there are 1 to 8"):
            kernels.widen([wire], [9], [(1,)])
