"""FedAvg of ten sites with unequal digits: as in the clear, and where sites lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch

from benchmarks.fedavg import Federation, Lies, Training, fedavg, tuned
from benchmarks.federated import DIGITS, Case, measure
from securemodel.federated import Aggregation, mean, norm_bounded_mean, trimmed_mean

BOUND = 2.0
DATA = Federation.of(DIGITS, 10, 0.4, alpha=2.0, every=2)
TRAINING = Training(5, hidden=16, rate=0.5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a network is not faster on more, and much slower beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def accuracy(aggregation: Aggregation | None, poisoned: int = 0, without: int = 0) -> float:
    """After five rounds; the first sites lie, or are left out."""
    data = replace(DATA, sites=DATA.sites[without:])
    return fedavg(data, TRAINING, aggregation, bound=BOUND, lies=Lies(poisoned))[0]


def test_as_good_as_in_the_clear() -> None:
    assert accuracy(None) > 0.5
    assert abs(accuracy(mean()) - accuracy(None)) <= 0.002


def test_sites_that_lie_beyond_the_bound_are_as_if_they_were_not_there() -> None:
    assert accuracy(mean(), poisoned=2) < 0.2
    assert abs(accuracy(norm_bounded_mean(BOUND), poisoned=2) - accuracy(None, without=2)) <= 0.002


def test_a_trimmed_mean_learns_where_the_mean_fails() -> None:
    assert accuracy(trimmed_mean(0.2), poisoned=2) > accuracy(mean(), poisoned=2) + 0.1


def test_liars_do_not_move_the_bound_that_a_histogram_gives() -> None:
    assert 0.5 < tuned(DATA, TRAINING, Lies()) <= tuned(DATA, TRAINING, Lies(2)) < 4.0


@pytest.mark.parametrize("aggregation", ["mean", "bounded", "trimmed"])
def test_rounds_of_the_benchmark_come_to_the_clear_aggregate(aggregation: str) -> None:
    row = measure(Case("small", 10, 1000, 0.3, aggregation))
    assert row.error is not None and row.error < 2**-16
    assert 0 < row.cpu_seconds and row.sent_bytes < 8 * 1000 + 2000
