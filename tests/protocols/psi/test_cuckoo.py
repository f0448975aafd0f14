"""Ids in bins: they always fit, and how likely it is that they do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from protocols.errors import ProtocolError
from protocols.psi import cuckoo
from protocols.psi.cuckoo import bins_for, hashed, placed

SESSION = bytes(32)


def _choose(n: float, k: float) -> float:
    """The logarithm of a binomial coefficient."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _ways_to_cover(t: int, bins: int) -> float:
    """A bound on the logarithm of how many ways t ids have to take three of `bins` bins each, so that each is taken twice.

    3t places are given to bins: (3t)! times the coefficient of z^3t in (e^z - 1 - z)^bins, which is at most its value at
    any z, over z^3t; each way is counted 6^t times. And no more than all ways that there are.
    """
    z = 1e-9 if 3 * t < 2 * bins else 1.0
    for _ in range(60):  # Newton's steps for the z that gives the smallest bound; any z gives one
        e = math.expm1(z)
        mean, off = z * e / (e - z), 3 * t / bins
        slope = (e + z * (e + 1)) / (e - z) - z * e * e / (e - z) ** 2
        z = max(z / 4, z - (mean - off) / max(slope, 1e-12))
    bound = math.lgamma(3 * t + 1) - t * math.log(6) - 3 * t * math.log(z) + bins * math.log(math.expm1(z) - z)
    return min(bound, t * _choose(bins, 3))


def log2_of_failure(rows: int, bins: int) -> float:
    """The logarithm of a bound on the probability that some t ids have t-1 bins among them, each taken twice or more."""
    sizes = range(4, rows + 1)
    step = max(1, rows // 2000)  # between these sizes the terms are smooth: each one stands for `step`
    few = [t for t in sizes if t < 200 or t % step == 0]
    terms = [
        _choose(rows, t) + _choose(bins, t - 1) + _ways_to_cover(t, t - 1) - t * _choose(bins, 3) + math.log(step)
        for t in few
        if t - 1 <= bins
    ]
    most = max(terms, default=-math.inf)
    return (most + math.log(sum(math.exp(term - most) for term in terms))) / math.log(2) if terms else -math.inf


@pytest.mark.parametrize(
    "rows", [1, 3, 4, 5, 8, 16, 32, 50, 64, 100, 128, 200, 256, 400, 512, 700, 1000, 1448, 2000, 3000, 4096, 6000, 8192,
             12_000, 16_384, 50_000, 100_000, 1_000_000]
)  # fmt: skip
def test_ids_do_not_fit_with_a_probability_below_two_to_minus_forty(rows):
    assert log2_of_failure(rows, bins_for(rows)) < -40


def test_fewer_bins_would_not_do():
    assert log2_of_failure(64, 64 + 64) > -40 and log2_of_failure(4096, 5000) > -40


def test_the_bound_holds_where_failures_are_seen():
    """With few bins, as many sets do not fit as the bound allows, and not none."""
    failed, trials, rows, bins = 0, 2000, 12, 14
    for trial in range(trials):
        ids = [f"{trial} {row}".encode() for row in range(rows)]
        made = hashed(ids, SESSION, 0, bins)
        failed += cuckoo.place_in_bins(made.choices, bins) is None
    assert 0 < failed / trials < 2 ** log2_of_failure(rows, bins)


def test_bins_are_one_and_three_tenths_for_each_id():
    assert [bins_for(rows) for rows in (1, 10, 11, 1000, 1_000_000)] == [130, 141, 143, 1428, 1_300_128]


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 1000])
def test_every_id_is_in_one_of_its_bins(rows):
    ids = [f"id {row}".encode() for row in range(rows)]
    made = placed(ids, SESSION, bins_for(rows))
    assert made.attempt == 0
    assert np.array_equal(made.hashed.choices[np.arange(rows), made.numbers], made.bins)
    assert np.array_equal(made.rows[made.bins], np.arange(rows)) and (made.rows >= 0).sum() == rows


def test_other_hashes_are_taken_where_ids_do_not_fit():
    """Twelve ids in twelve bins: the first attempt mostly fails, and the one that is told is the one that went well."""
    attempts = set()
    for trial in range(20):
        ids = [f"{trial} {row}".encode() for row in range(12)]
        made = placed(ids, SESSION, 12)
        attempts.add(made.attempt)
        again = hashed(ids, SESSION, made.attempt, 12)
        assert np.array_equal(again.choices, made.hashed.choices)
        assert sorted(made.bins) == list(range(12))
    assert max(attempts) > 0


def test_equal_ids_end(monkeypatch):
    with pytest.raises(ProtocolError, match="4 ids do not fit into 131 bins"):
        placed([b"same"] * 4, SESSION, 131)


def test_sessions_and_attempts_have_hashes_of_their_own():
    ids = [b"one", b"two"]
    first = hashed(ids, SESSION, 0, 1000)
    for other in (hashed(ids, bytes([1]) * 32, 0, 1000), hashed(ids, SESSION, 1, 1000)):
        assert not np.array_equal(first.numbers, other.numbers) and not np.array_equal(first.choices, other.choices)
    assert int(first.numbers[:, 1].max()) < 1 << 63, "a number is below 2^127"
