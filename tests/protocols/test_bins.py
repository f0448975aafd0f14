"""Cuckoo hashing and lines modulo 2^127 - 1: every build equals the twin, and the twin its formula."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import kernels
from protocols.kernels import bins as kernel
from protocols.kernels.twins import bins as twins
from protocols.kernels.twins.bins import PRIME

NATIVE = [name for name in kernels.info()["available"] if name != "twins"]
WORDS = (0, 1, 2, 0xFFFF, 1 << 16, (1 << 62) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1)
SESSION = bytes(range(32))


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """128 bits each, many of them at the edges."""
    wild = rng.integers(0, 1 << 64, (*shape, 2), dtype=np.uint64)
    return np.where(rng.random((*shape, 2)) < 0.5, wild, rng.choice(np.array(WORDS, np.uint64), (*shape, 2)))


def whole(words: np.ndarray) -> list[int]:
    return [int(low) | int(high) << 64 for low, high in words.reshape(-1, 2)]


seeds, counts = st.integers(0, 2**32), st.sampled_from([0, 1, 5, 16, 17, 70])


@pytest.mark.parametrize("variant", NATIVE)
@settings(deadline=None, max_examples=40)
@given(seed=seeds, n=counts)
def test_lines_equal_their_twins(variant, seed, n):
    rng = np.random.default_rng(seed)
    a, r, c, y = (numbers(rng, n) for _ in range(4))
    known = numbers(rng, 9, 3).reshape(9, 6)
    choices = rng.integers(0, 9, (n, 3))
    with kernels.use(variant):
        assert np.array_equal(kernel.line_offsets(a, r, c), twins.line_offsets(a, r, c))
        assert np.array_equal(kernel.line_shifts(a, r), twins.line_shifts(a, r))
        assert np.array_equal(kernel.line_values(y, choices, known), twins.line_values(y, choices, known))
        for size in (12, 16):
            arguments = a, rng.integers(0, 1 << 40, n), rng.integers(0, 3, n), SESSION, size
            assert np.array_equal(kernel.line_tags(*arguments), twins.line_tags(*arguments))


@pytest.mark.parametrize("variant", [*NATIVE, "twins"])
def test_every_pair_of_edges(variant):
    edges = np.array(list(itertools.product(WORDS, repeat=2)), np.uint64)
    first, second = edges.repeat(len(edges), 0), np.tile(edges, (len(edges), 1))
    with kernels.use(variant):
        made = whole(kernel.line_offsets(first, second, np.zeros_like(first)))
        gaps = whole(kernel.line_shifts(first, second))
    pairs = list(zip(whole(first), whole(second), strict=True))
    assert made == [-x * y % PRIME for x, y in pairs]
    assert gaps == [(x - y) % PRIME for x, y in pairs]


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_a_line_goes_through_what_was_dealt(seed):
    """F(x) = c where d = x - r and a r + b = c, and for other arguments not."""
    rng = np.random.default_rng(seed)
    a, r, c, x, other = (numbers(rng, 4) for _ in range(5))
    known = np.concatenate([a, kernel.line_shifts(x, r), kernel.line_offsets(a, r, c)], 1)
    at = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]])
    made = kernel.line_values(x, at, known)
    assert [n % PRIME for n in whole(made[:, 0])] == [n % PRIME for n in whole(c)]
    moved = whole(kernel.line_values(other, at, known)[:, 0])
    for value, end, slope, p, q in zip(moved, whole(c), whole(a), whole(other), whole(x), strict=True):
        assert value == (end + slope * (p - q)) % PRIME


def test_tags_are_hashes():
    value = np.array([[7, 1]], np.uint64)
    message = SESSION + (7 + (1 << 64)).to_bytes(16, "little") + (5).to_bytes(8, "little") + (2).to_bytes(8, "little")
    wanted = hashlib.blake2s(message, digest_size=16, person=b"sm align").digest()
    assert kernel.line_tags(value, np.array([5]), np.array([2]), SESSION, 16).tobytes() == wanted


# ---- bins
@pytest.mark.parametrize("variant", NATIVE)
@settings(deadline=None, max_examples=40)
@given(seed=seeds, n=st.integers(0, 60), more=st.integers(3, 40))
def test_bins_equal_their_twins(variant, seed, n, more):
    rng, bins = np.random.default_rng(seed), n + more
    random = rng.integers(0, 1 << 64, (n, 3), dtype=np.uint64)
    random = np.where(rng.random(random.shape) < 0.3, rng.choice(np.array(WORDS, np.uint64), random.shape), random)
    with kernels.use(variant):
        choices = kernel.three_bins(random, bins)
        seats = kernel.place_in_bins(choices, bins)
    assert np.array_equal(choices, twins.three_bins(random, bins))
    assert np.array_equal(seats, twins.place_in_bins(choices, bins))


def check_placed(choices: np.ndarray, seats: np.ndarray) -> None:
    """Every item has one of its bins, and no bin two."""
    used = np.nonzero(seats >= 0)[0]
    items, numbers_ = seats[used] // 3, seats[used] % 3
    assert np.array_equal(np.sort(items), np.arange(len(choices)))
    assert np.array_equal(choices[items, numbers_], used)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 200))
def test_items_are_placed_close_to_the_limit(seed, n):
    rng, bins = np.random.default_rng(seed), n + n // 5 + 3
    choices = kernel.three_bins(rng.integers(0, 1 << 64, (n, 3), dtype=np.uint64), bins)
    assert all(len(set(row)) == 3 for row in choices.tolist()) and choices.max() < bins
    seats = kernel.place_in_bins(choices, bins)
    if seats is not None:
        check_placed(choices, seats)


@settings(deadline=None, max_examples=100)
@given(seeds, st.integers(3, 7), st.integers(1, 7))
def test_a_way_is_found_where_there_is_one(seed, bins, n):
    """None exactly where some items have fewer bins among them than they are (Hall)."""
    choices = kernel.three_bins(np.random.default_rng(seed).integers(0, 1 << 64, (n, 3), dtype=np.uint64), bins)
    rows = [set(row) for row in choices.tolist()]
    subsets = (s for size in range(1, n + 1) for s in itertools.combinations(rows, size))
    possible = all(len(set.union(*subset)) >= len(subset) for subset in subsets)
    seats = kernel.place_in_bins(choices, bins)
    assert (seats is not None) == possible
    if seats is not None:
        check_placed(choices, seats)


def test_the_three_bins_are_equally_likely():
    random = np.random.default_rng(1).integers(0, 1 << 64, (60_000, 3), dtype=np.uint64)
    triples = kernel.three_bins(random, 5)
    seen = np.unique(triples, axis=0, return_counts=True)[1]
    assert len(seen) == 60 and abs(seen - 1000).max() < 6 * math.sqrt(1000)


@pytest.mark.parametrize(
    "call",
    [
        lambda n: kernel.three_bins(n.reshape(-1, 3), 2),
        lambda n: kernel.three_bins(n, 9),
        lambda n: kernel.place_in_bins(np.array([[0, 1, 9]]), 9),
        lambda n: kernel.place_in_bins(np.array([[0, 1, -1]]), 9),
        lambda n: kernel.line_shifts(n, n[:2]),
        lambda n: kernel.line_values(n, np.zeros((3, 3), np.int64), np.zeros((0, 6), np.uint64)),
        lambda n: kernel.line_tags(n, np.zeros(3, np.int64), np.zeros(3, np.int64), b"short", 12),
        lambda n: kernel.line_tags(n, np.zeros(3, np.int64), np.zeros(3, np.int64), SESSION, 13),
        lambda n: kernel.line_offsets(n.astype(np.int64), n, n),
    ],
)
def test_wrong_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"must|fewer|have"):
        call(np.zeros((3, 2), np.uint64))
