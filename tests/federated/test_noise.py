"""Noise of every aggregator, what it promises, and budgets that count it."""

import math

import numpy as np
import pytest
from rounds import arrays, play, task

from protocols.errors import ConfigError, InputError
from securemodel import edge
from securemodel.edge.updates import share_update
from securemodel.errors import CompileError
from securemodel.federated import Budget, Protection, mean, trimmed_mean, weighted_mean
from securemodel.federated.budgets import exceeded
from securemodel.federated.noise import with_noise

HALF = Protection(multiplier=0.5, norm=2.0)


def test_noise_is_drawn_once_a_round(tmp_path):
    total = np.array([5, 2**64 - 7, 0], np.uint64)
    first = with_noise(tmp_path, HALF, total, 2.0**-16, 1)
    assert np.array_equal(with_noise(tmp_path, HALF, total, 2.0**-16, 1), first)
    assert (first != total).all() and first.dtype == total.dtype
    with pytest.raises(InputError, match="another size"):
        with_noise(tmp_path, HALF, total[:2], 2.0**-16, 1)
    (tmp_path / "noise").chmod(0o644)
    with pytest.raises(ConfigError, match="noise of a round"):
        with_noise(tmp_path, HALF, total, 2.0**-16, 1)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_noise_has_the_size_that_is_promised(tmp_path, dtype):
    count, unit = 4000, 2.0**-8
    drawn = with_noise(tmp_path, HALF, np.zeros(count, dtype), unit, 3).view(np.dtype(dtype).str.replace("u", "i"))
    expected = 0.5 * 2 * (3 * 2.0 / unit + math.sqrt(count) / 2)
    assert HALF.scale(unit, count, 3) == expected
    assert abs(drawn.std() / expected - 1) < 0.1 and abs(drawn.mean()) < 0.1 * expected  # 9 and 6 deviations


def test_epsilon_is_that_of_one_mechanism_with_less_noise():
    """Ten Gaussian mechanisms of 1.1 are one of 1.1 / sqrt(10); 15.8 is what the library says of it."""
    assert Protection(1.1, 1.0, 1e-5).epsilon(10) == pytest.approx(15.7827, abs=1e-3)
    assert Protection(1.1, 1.0, 1e-5).epsilon(1) < 5


@pytest.mark.parametrize(
    "wrong", [(0, 1, 1e-5), (math.nan, 1, 1e-5), (1, 0, 1e-5), (1, -1, 1e-5), (1, 1, 0), (1, 1, 1)]
)
def test_what_is_no_noise(wrong):
    with pytest.raises(InputError):
        Protection(*wrong)


def test_noise_needs_room_beside_the_sum():
    assert task(mean(), protection=HALF, bits=64).protection == HALF
    with pytest.raises(CompileError, match="with this noise do not fit 32 bits"):
        task(mean(), protection=Protection(4.0, 64.0), bits=32, frac_bits=24)
    with pytest.raises(InputError, match="modulo 2\\^16"):
        task(mean(), protection=Protection(4.0, 64.0), levels=127)
    narrow, wide = task(mean(), protection=HALF), task(mean(), protection=Protection(4.0, 640.0))
    assert (narrow.ring[0], wide.ring[0]) == (32, 64), "the ring is chosen with room for the noise"


def test_clients_check_the_norm_that_noise_is_for():
    made = task(weighted_mean(), protection=Protection(1.0, 0.5), bits=64, max_weight=9)
    card = made.card(1, ["A" * 43] * 2)
    update = arrays(0)
    with pytest.raises(edge.InputError, match="norm"):
        share_update(card, update)
    small = {name: x if name == "batches" else (x / 16).astype(x.dtype) for name, x in update.items()}
    share_update(card, small, weight=9)
    with pytest.raises(CompileError, match="noise"):
        task(trimmed_mean(0.2), protection=Protection(1.0, 0.5))


@pytest.mark.parametrize("wrong", [{"rounds": -1}, {"rounds": 1.5}, {"epsilon": math.nan}, {"epsilon": 0.0}])
def test_what_is_no_budget(wrong):
    """A bound that is not a number would be none: nothing is above it."""
    with pytest.raises(InputError, match="no budget"):
        Budget(**wrong)


def test_budgets():
    assert exceeded(Budget(), 10**6, None) == ""
    assert exceeded(Budget(rounds=3), 2, None) == ""
    assert "its budget is 3" in exceeded(Budget(rounds=3), 3, None)
    assert "no noise" in exceeded(Budget(epsilon=1.0), 0, None)
    protection = Protection(5.0, 1.0)
    most = next(n for n in range(1000) if exceeded(Budget(epsilon=3.0), n, protection))
    assert protection.epsilon(most) <= 3.0 < protection.epsilon(most + 1)


def test_aggregators_of_one_process_add_noise_too():
    updates = {client: arrays(at) for at, client in enumerate("abc")}
    made = task(mean(), protection=Protection(1.0, 8.0), bits=64)
    one, two = play(made, updates).aggregate, play(made, updates).aggregate
    assert one is not None and two is not None
    assert not np.array_equal(one["weight"], two["weight"])
