"""Noise on totals: every party adds its own, of the size that was asked for; what it leaves to be told."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securemodel.data import noise as module
from securemodel.data.counting import group_by, histogram, value_counts
from securemodel.data.noise import Noise, Spent, discrete_gaussian, spent
from securemodel.data.statistics import describe
from securemodel.errors import InputError
from tests.data.stand_in import WAYS, category, integer, number, table

pytest.importorskip("opendp")

COLUMNS = [category("city", ["a", "b", "c"]), number("buys", "shop"), integer("age", "shop")]


def frame(rows: int = 600) -> pd.DataFrame:
    random = np.random.default_rng(1)
    return pd.DataFrame({"city": random.integers(0, 3, rows), "buys": random.normal(0, 3, rows).clip(-10, 10),
                         "age": random.integers(0, 101, rows)}).astype(float)  # fmt: skip


def test_the_distribution_is_the_discrete_gaussian():
    """Its probabilities are proportional to exp(-x^2 / 2 scale^2) on whole numbers."""
    scale, count = 1.5, 4_000
    drawn = discrete_gaussian(scale, count)
    x = np.arange(-30, 31)
    share = np.exp(-(x**2) / (2 * scale**2))
    share /= share.sum()
    seen = np.array([(drawn == k).sum().item() for k in x])
    off = (seen - count * share) ** 2 / (count * share)
    assert off[np.abs(x) <= 5].sum() < 40  # 11 cells
    assert len(set(discrete_gaussian(1e6, 50).tolist())) > 40  # and no two draws are alike
    assert not torch.equal(discrete_gaussian(1e6, 5), discrete_gaussian(1e6, 5))


@pytest.mark.parametrize(("way", "clear"), [*((way, True) for way in WAYS), ("known", False)])
def test_every_party_draws_and_all_of_it_is_in_the_counts(way, clear, monkeypatch):
    """Each party's noise counts: with draws that a test knows, the result is off by their sum."""
    drawn = []
    monkeypatch.setattr(
        module,
        "discrete_gaussian",
        lambda scale, count: drawn.append(scale) or torch.full((count,), 7 * 3 ** (len(drawn) - 1)),
    )
    parties = ("bank", "shop", "registry")
    joint, right = table(COLUMNS, frame(), way, 1, clear=clear, parties=parties)
    found = value_counts(joint, "city", noise=2.0)
    wanted = right.city.value_counts().sort_index() + 7 * (1 + 3 + 9)
    assert list(found.numbers) == wanted.tolist()
    assert drawn == [2.0 * math.sqrt(2.0)] * 3
    assert found.spent.rho == 1 / 8


def test_noise_of_sums_is_as_large_as_what_one_row_changes(monkeypatch):
    scales = []
    monkeypatch.setattr(
        module, "discrete_gaussian", lambda scale, count: scales.extend([scale] * count) or torch.zeros(count).long()
    )
    joint, right = table([integer("age", "shop", 0, 100), number("buys")], frame())
    found = describe(joint, ["age"], noise=1.0)
    assert scales == 2 * [1.0, 100.0, 2500.0]  # of ages less 50
    assert found.frame["age"].drop(["count", "missing"]).tolist() == pytest.approx([right.age.mean(), right.age.std()])
    assert found.spent.rho == 3 / 2
    scales.clear()
    group_by(joint, "age", "buys", noise=1.0)
    unit = 2.0**24
    assert scales[:3] == pytest.approx([math.sqrt(2.0), 2 * unit, math.sqrt(2.0) * unit**2], rel=0.9)
    assert len(scales) == 2 * 3 * 101


def test_noisy_statistics_are_near():
    joint, right = table(COLUMNS, frame(3000), "rows", 1, clear=False)
    found = describe(joint, noise=0.5)
    assert set(found.frame.index) == {"count", "missing", "mean", "std"}
    assert found.frame["age"]["mean"] == pytest.approx(right.age.mean(), abs=1.0)
    assert found.frame["age"]["mean"] != right.age.mean()
    assert "the noise of one party is counted" in str(found)
    bins = histogram(joint, "buys", 4, noise=0.5)
    assert sum(bins.numbers) == pytest.approx(3000, abs=30)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 50), st.integers(1, 100))
def test_what_is_spent_is_opendps(multiplier, totals):
    told = spent(Noise(multiplier), totals)
    assert told.rho == pytest.approx(totals / (2 * multiplier**2))
    epsilon = told.epsilon(1e-6)
    # Bun and Steinke, TCC 2016, proposition 1.3: an upper bound that the library's is below
    assert 0 < epsilon <= told.rho + 2 * math.sqrt(told.rho * math.log(1e6)) + 1e-6


def test_what_is_spent_adds_up():
    assert (Spent(0.1) + Spent(0.2)).rho == pytest.approx(0.3)
    with pytest.raises(InputError, match="delta=0"):
        Spent(0.1).epsilon(0)


def test_noise_that_is_none_is_an_error():
    joint, _ = table(COLUMNS, frame())
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="a noise of"):
            value_counts(joint, "city", noise=bad)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opendp.prelude", None)
    joint, _ = table(COLUMNS, frame())
    with pytest.raises(InputError, match=r"securemodel\[privacy\]"):
        value_counts(joint, "city", noise=1.0)
