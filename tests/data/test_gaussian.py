"""The discrete Gaussian distribution: many draws at a time are those of exact numbers one by one."""

from __future__ import annotations

from bisect import bisect_right
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
import pytest

from protocols import prg
from securemodel.data import gaussian
from securemodel.data.gaussian import LEAST_SCALE, MOST_SCALE, Sampler, draw
from securemodel.data.noise import discrete_gaussian
from securemodel.errors import InputError

SCALES = [LEAST_SCALE, 0.01, 0.3, 1.0, 1.5, 15.999, 16.0, 31.9, 32.0, 1000.0, 1e6 / 3, 2.0**32, 2.0**54 / 3, MOST_SCALE]


def words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (3, count), np.uint64)


def never() -> int:
    raise AssertionError("64 digits are enough")


def one(sampler: Sampler, cell: int, place: int, keep: int, more: gaussian.More) -> int | None:
    """A number of three words by exact arithmetic alone, or None where it is not kept."""
    k, j = sampler.cell(cell, more), place % (1 << sampler._shift)
    if not sampler.keeps(k, j, keep, more):
        return None
    x = (k << sampler._shift) + j
    minus = place >> 63 == 1
    return None if minus and not x else -x if minus else x


@pytest.mark.parametrize("scale", SCALES)
def test_many_are_what_exact_arithmetic_makes_of_each(scale: float) -> None:
    sampler, drawn = Sampler(scale), words(1, 500)
    made = [one(sampler, *map(int, each), never) for each in drawn.T]
    assert sampler.made(drawn, never).tolist() == [x for x in made if x is not None]


@cache
def edges(scale: float, shift: int, cells: int = 450) -> list[Decimal]:
    """The probabilities of cells and all before them, to 120 digits."""
    with localcontext() as context:
        context.prec = 120
        each = [(-(Decimal(k << shift) ** 2) / (2 * Decimal(scale) ** 2)).exp() for k in range(cells)]
        total, sums = sum(each), [Decimal(0)]
        for weight in each:
            sums.append(sums[-1] + weight / total)
        return sums[1:]


@pytest.mark.parametrize("scale", [0.3, 1.5, 40.5, 1e6])
@pytest.mark.parametrize("further", [0, 2**63, 2**64 - 3])
def test_where_64_digits_do_not_decide_more_are_drawn(scale: float, further: int) -> None:
    """Cells whose digits are within one of a probability, and one that is past all of the table."""
    sampler = Sampler(scale)
    exact = edges(scale, sampler._shift)
    begin = int(exact[0] * 2**64)
    with localcontext() as context:
        context.prec = 120
        for digits in [*(begin + off for off in (-2, -1, 0, 1, 2)), int(exact[3] * 2**64), 2**64 - 9]:
            calls = []
            more = lambda calls=calls: calls.append(1) or further
            found = sampler.cell(digits, more)
            real = Decimal(digits) / 2**64 + (Decimal(further) / 2**128 + Decimal(further) / 2**192 if calls else 0)
            assert found == bisect_right(exact, real)
            assert bool(calls) == any(abs(digits - int(edge * 2**64)) <= 1 for edge in exact)
            word = np.array([[digits], [0], [0]], np.uint64)
            assert sampler.made(word, more).tolist() == [found << sampler._shift]


@pytest.mark.parametrize("further", [0, 2**63, 2**64 - 3])
def test_whether_one_is_kept_is_decided_by_as_many_digits_as_it_takes(further: int) -> None:
    scale, k, j = 1e6, 20, 30_000
    sampler = Sampler(scale)
    with localcontext() as context:
        context.prec = 120
        chance = (-Decimal(j * ((k << sampler._shift + 1) + j)) / (2 * Decimal(scale) ** 2)).exp()
        begin = int(chance * 2**64)
        for digits in (begin + off for off in (-2, -1, 0, 1, 2)):
            calls = []
            kept = sampler.keeps(k, j, digits, lambda calls=calls: calls.append(1) or further)
            real = Decimal(digits) / 2**64 + (Decimal(further) / 2**128 + Decimal(further) / 2**192 if calls else 0)
            assert kept == (real < chance) and bool(calls) == (abs(digits - begin) <= 1)
    middle = int(sampler._near[2 * k]) // 2 + int(sampler._near[2 * k - 1]) // 2
    for digits in (begin - 2, begin + 2):  # floats do not tell these apart
        word = np.array([[middle], [j], [digits]], np.uint64)
        assert len(sampler.made(word, never)) == (digits < begin)


def test_what_begins_a_cell_is_always_kept() -> None:
    assert Sampler(1e6).made(np.array([[0], [0], [2**64 - 1]], np.uint64), never).tolist() == [0]


@pytest.mark.parametrize("scale", SCALES)
def test_floats_are_off_by_less_than_the_margin_in_all_cells(scale: float) -> None:
    sampler = Sampler(scale)
    cells, last = len(sampler._near) // 2 + 1, (1 << sampler._shift) - 1
    for k in {0, 1, cells // 2, cells}:
        for j in {0, 1 % (last + 1), last // 3, last}:
            with localcontext() as context:
                context.prec = 60
                x = Decimal(j * ((k << sampler._shift + 1) + j)) / (2 * Decimal(scale) ** 2)
                assert x <= Decimal("0.9")
                found = sampler._chance(np.array([k], np.uint64), np.array([j], np.uint64))[0]
                assert abs(Decimal(float(found)) - (-x).exp()) < Decimal(2.0**-44)


@pytest.mark.parametrize("scale", [0.3, 1.5, 20.25, 40.5])
def test_as_often_as_the_distribution_says(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian, "new_key", lambda: prg.insecure_test_key(3, "gaussian"))
    count = 200_000
    drawn, most = draw(scale, count), int(8 * scale) + 2
    x = np.arange(-most, most + 1)
    share = np.exp(-(x**2) / (2 * scale**2))
    share /= share.sum()
    seen = np.array([(drawn == each).sum() for each in x])
    assert seen.sum() == count
    often = count * share > 5
    off = ((seen - count * share) ** 2 / (count * share))[often].sum()
    assert off < often.sum() + 5 * np.sqrt(2 * often.sum())


def test_large_ones_are_as_the_normal_distribution_and_even_to_the_last_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import kstest

    monkeypatch.setattr(gaussian, "new_key", lambda: prg.insecure_test_key(4, "gaussian"))
    drawn = draw(2.0**40 / 3, 100_000)
    assert kstest(drawn / (2.0**40 / 3), "norm").pvalue > 1e-3
    for bits in (1, 4, 30):
        low = drawn % (1 << bits) / (1 << bits)
        assert abs(low.mean() - (0.5 - 0.5 / (1 << bits))) < 0.005
    assert len(np.unique(drawn)) > 99_990


@pytest.mark.parametrize("count", [0, 1, 17, 20_000])
def test_as_many_as_were_asked_for(count: int) -> None:
    drawn = discrete_gaussian(3.0, count)
    assert drawn.shape == (count,) and drawn.dtype.is_signed and (count < 20_000 or drawn.unique().numel() > 15)
    assert not discrete_gaussian(0.0, count).any()


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), 2.0**59, 2.0**-65])
def test_a_scale_that_is_none(scale: float) -> None:
    with pytest.raises(InputError, match="noise of scale"):
        discrete_gaussian(scale, 3)
