"""What random projections prove of an update: honest ones pass, others do not, for every ring element."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from securemodel.edge.updates import Layout
from securemodel.federated import Task, norm_bounded_mean, projections
from securemodel.federated.projections import Bounds, bounds, matrix, slack

ROWS, BITS, NORM = 64, 32, 1000.0


def passes(x: np.ndarray, bits: int, of: Bounds, seed: bytes) -> bool:
    """The checks of `programs.Admit` in the clear, on projections modulo 2^bits."""
    y = x.astype(np.int64) @ matrix(seed, ROWS, 0, x.size).astype(np.int64)
    y = ((y + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)) if bits < 64 else y
    unit = of.unit / 2.0**of.frac_bits * 2.0 ** (64 - bits)
    root = of.root + of.rest / unit
    return bool((np.abs(y) <= of.reach).all() and math.sqrt(float((y.astype(float) ** 2).sum())) <= root)


def shapes(size: int) -> dict[str, np.ndarray]:
    """Directions of norm 1: a single number, few, all alike, many of different sizes."""
    few, rng = np.zeros(size), np.random.default_rng(3)
    few[:3] = 1
    many = rng.normal(size=size) * np.geomspace(1, 1e-3, size)
    found = {"one": np.eye(1, size)[0], "few": few, "all": np.ones(size), "many": many}
    return {name: x / np.linalg.norm(x) for name, x in found.items()}


@pytest.mark.parametrize("bits", [32, 64])
def test_honest_updates_pass_and_large_ones_do_not(bits: int) -> None:
    of = bounds(NORM, 256, ROWS, 1, bits)
    for name, direction in shapes(256).items():
        for _ in range(25):
            assert passes(np.rint(direction * NORM), bits, of, os.urandom(32)), name
            for times in (slack(ROWS) * 1.02, 20, 1000, 100_000):
                assert not passes(np.rint(direction * of.norm * times), bits, of, os.urandom(32)), (name, times)


@pytest.mark.parametrize("bits", [32, 64])
def test_no_ring_element_hides(bits: int) -> None:
    """Elements whose multiples or squares are small or zero modulo 2^bits."""
    of = bounds(NORM, 256, ROWS, 1, bits)
    half = 1 << (bits - 1)
    for value in (-half, half - 1, half // 2, -half // 2, half // 4, half // 2 + 1, 1 << (bits // 2), 3 << (bits // 2)):
        for count in (1, 2, 3, 256):
            for signs in (1, -1):
                x = np.zeros(256, np.int64)
                x[:count] = value * np.where(np.arange(count) % 2, signs, 1)
                assert not passes(x, bits, of, os.urandom(32)), (value, count, signs)


def test_the_matrix_is_what_is_said_and_follows_from_its_seed() -> None:
    made = matrix(bytes(32), 64, 0, 4096)
    shares = [float((made == value).mean()) for value in (-1, 0, 1)]
    assert np.allclose(shares, [0.25, 0.5, 0.25], atol=0.01)
    assert np.array_equal(made, matrix(bytes(32), 64, 0, 4096))
    assert not np.array_equal(made, matrix(bytes(32), 64, projections.PIECE, projections.PIECE + 4096))
    assert not np.array_equal(made, matrix(b"1" * 32, 64, 0, 4096))


@pytest.mark.parametrize("a", [0.3, 0.7, 1.0, 1.2, 2.0, 5.0])
def test_the_worst_update_is_one_number_or_many_alike(a: float) -> None:
    """E |cos(a g / sqrt(p))|^2p over p >= 1 and a normal g, also where g is on the lattice that the ring makes of it."""
    for step in (1e-3, 0.16 / a):
        g = np.arange(-12, 12, step)
        density = np.exp(-g * g / 2)
        density /= density.sum()
        powers = np.concatenate([np.linspace(1, 6, 60), np.geomspace(6, 1e4, 40)])
        worst = max(float((density * np.abs(np.cos(a * g / math.sqrt(p))) ** (2 * p)).sum()) for p in powers)
        assert worst <= projections._factor(a) * (1 + 1e-9)


@pytest.mark.parametrize("rows", [64, 128, 1024])
def test_updates_of_a_million_numbers_take_32_bits(rows: int) -> None:
    """And the lattice that the ring makes of a normal number is as fine as the test above has it."""
    layout = Layout.of({"x": np.zeros(1_000_000, np.float32)})
    task = Task("t", norm_bounded_mean(600.0, rows=rows), layout, slots=100)
    assert task.ring == (32, 16)
    best = [
        a
        for a in np.geomspace(0.3, 12, 400)
        if -projections.SAFETY * math.log(2) / rows > math.log(projections._factor(a))
    ]
    a = min(best, key=lambda a: a * a / (-projections.SAFETY * math.log(2) / rows - math.log(projections._factor(a))))
    assert math.pi * slack(rows) * task.bounds.norm / (2**32 * a) <= 0.16 / a


def test_more_rows_leave_less_slack() -> None:
    found = [slack(rows) for rows in (64, 96, 128, 256)]
    assert found == sorted(found, reverse=True) and 4.5 < found[0] < 4.7 and found[3] < 2.1
