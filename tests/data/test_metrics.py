"""Metrics as secure programs: what they are in the clear, of labels of a third party, with ties and secret weights."""

from __future__ import annotations

import pytest
import torch
from metrics_running import securely
from sklearn import metrics as sk
from torch import Tensor

from securemodel.data import metrics
from securemodel.data.measured import Metric, weight_unit, whole_weights

COUNTS = ["accuracy", "confusion", "precision", "recall", "f1"]


def _rows(n: int, seed: int = 0, ties: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """(labels, the first owner's, the second owner's part of the score), of multiples of 1/8 where there are ties."""
    made = torch.Generator().manual_seed(seed)
    first, second = torch.randn(n, generator=made), torch.randn(n, generator=made)
    label = (torch.rand(n, generator=made) < torch.sigmoid(first + second - 0.5)).long()
    grid = 8 if ties else 2**10
    return label, torch.round(first * grid) / grid, torch.round(second * grid) / grid


def _same(mine: list, clear: list, bound: float) -> None:
    for made, true in zip(mine, clear, strict=True):
        assert (made.value is None) == (true.value is None) and made.why == true.why, made.name
        if made.value is not None:
            assert abs(made.value - true.value) <= bound, made.name
        if made.error is not None:
            assert abs(made.error - true.error) <= bound
        assert made.curve.keys() == true.curve.keys()
        for name, column in made.curve.items():
            if name == "matrix":
                assert column == true.curve[name]
            else:
                assert torch.allclose(torch.tensor(column), torch.tensor(true.curve[name]), atol=bound)


@pytest.mark.parametrize("parties", [2, 3])
def test_counts_are_equal(parties: int) -> None:
    label, first, second = _rows(101)
    asked = metrics.named(COUNTS)
    mine, shown = securely(asked, label, first, second, parties)
    _same(mine, [m.measure(label, first + second) for m in asked], 0)
    assert mine[4].value == pytest.approx(sk.f1_score(label, first + second >= 0))
    assert sorted(shown[4]) == ["den", "num"] and sorted(shown[0]) == ["num"]  # all that F1 and accuracy tell


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("minimum", [1, 20])
def test_the_order_from_bins(parties: int, minimum: int) -> None:
    label, first, second = _rows(120)
    asked = metrics.named(["auc", "ks", "roc", "lift"])
    mine, shown = securely(asked, label, first, second, parties, minimum)
    _same(mine, [m.measure(label, first + second, minimum=minimum) for m in asked], 1e-6)
    assert sorted(shown[0]) == ["error", "shown", "value"]  # of AUC one number, how far it is off, and that it is one


@pytest.mark.parametrize("parties", [2, 3])
def test_the_exact_order_with_ties(parties: int) -> None:
    label, first, second = _rows(45)
    asked = metrics.named(["auc", "ks", "average_precision"], exact=True)
    mine, _ = securely(asked, label, first, second, parties)
    assert len((first + second).unique()) < 40
    assert mine[0].value == pytest.approx(sk.roc_auc_score(label, first + second), abs=1e-6)
    _same(mine, [m.measure(label, first + second) for m in asked], 1e-6)


def test_the_exact_order_of_rows_that_only_some_are_there() -> None:
    label, first, second = _rows(40)
    there = (torch.rand(40, generator=torch.Generator().manual_seed(3)) < 0.7).long()
    asked = metrics.named(["auc", "average_precision"], exact=True)
    mine, _ = securely(asked, label, first, second, 3, weight=there)
    kept = there > 0
    assert mine[0].value == pytest.approx(sk.roc_auc_score(label[kept], (first + second)[kept]), abs=1e-6)
    assert mine[1].value == pytest.approx(sk.average_precision_score(label[kept], (first + second)[kept]), abs=1e-4)


@pytest.mark.parametrize("parties", [2, 3])
def test_losses_and_calibration(parties: int) -> None:
    label, first, second = _rows(64, ties=False)
    asked = metrics.named(["log_loss", "brier", "calibration"])
    mine, _ = securely(asked, label, first, second, parties)
    _same(mine, [m.measure(label, first + second) for m in asked], 1e-4)
    assert mine[0].value == pytest.approx(sk.log_loss(label, torch.sigmoid(first + second)), abs=1e-4)


def test_probabilities() -> None:
    label, first, second = _rows(64, ties=False)
    first, second = torch.sigmoid(first) / 2, torch.sigmoid(second) / 2
    asked = [*metrics.named(["f1", "brier", "auc", "roc", "average_precision"], scores="probability")]
    mine, _ = securely(asked, label, first, second)
    _same(mine, [m.measure(label, first + second) for m in asked], 1e-4)
    asked = [metrics.log_loss("probability")]
    mine, _ = securely(asked, label, first, second)
    _same(mine, [m.measure(label, first + second) for m in asked], 1e-3)


def test_regression() -> None:
    target = 1000 * _rows(50, 1, ties=False)[1]
    first, second = target / 2 + 40 * _rows(50, 2)[1], target / 2
    asked = metrics.named(["mse", "rmse", "mae", "r2"], scale=4000.0)
    mine, _ = securely(asked, target, first, second)
    for made, metric in zip(mine, asked, strict=True):
        assert made.value == pytest.approx(metric.measure(target, first + second).value, rel=2e-3, abs=2e-3), made.name


def test_classes() -> None:
    made = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (60,), generator=made)
    first = torch.randn(60, 3, generator=made)
    second = torch.nn.functional.one_hot(label, 3) + torch.randn(60, 3, generator=made)
    asked: list[Metric] = [
        *metrics.named(["accuracy", "confusion", "auc", "brier"], classes=3), metrics.top_k(2, 3),
        metrics.f1(classes=3, average="macro"), metrics.f1(classes=3, average="weighted"),
    ]  # fmt: skip
    mine, _ = securely(asked, label, first, second)
    _same(mine, [m.measure(label, first + second) for m in asked], 5e-3)
    assert mine[0].value == pytest.approx(sk.accuracy_score(label, (first + second).argmax(1)))
    assert mine[5].value == pytest.approx(sk.f1_score(label, (first + second).argmax(1), average="macro"), abs=1e-4)


def test_secret_weights() -> None:
    label, first, second = _rows(50)
    weight = torch.rand(50, generator=torch.Generator().manual_seed(5))
    unit = weight_unit(50)
    whole = whole_weights(weight, unit)
    asked = metrics.named(["accuracy", "f1", "log_loss", "auc", "roc"])
    mine, shown = securely(asked, label, first, second, weight=whole, unit=unit)
    _same(mine, [m.measure(label, first + second, weight) for m in asked], 1e-4)
    assert sorted(shown[1]) == ["shown", "value"]  # no sum of weights


def test_one_class_alone_is_named() -> None:
    _, first, second = _rows(30)
    asked = metrics.named(["auc", "ks", "roc", "precision"])
    for minimum in (1, 20):
        mine, shown = securely(asked, torch.zeros(30).long(), first, second, minimum=minimum)
        assert all(m.value is None for m in mine[:3])
        assert all("withheld" in m.why or "undefined" in m.why for m in mine[:3])
        assert float(shown[0]["value"]) == 0.0 == float(shown[2]["counts"].abs().sum())


def test_small_groups_tell_nothing() -> None:
    label, first, second = _rows(60)
    label[:] = 0
    label[:5] = 1
    asked = metrics.named(["auc", "recall", "confusion", "calibration"])
    mine, shown = securely(asked, label, first, second, minimum=20)
    assert mine[0].value is None and mine[1].value is None and "withheld" in mine[1].why
    assert float(shown[1]["num"]) == float(shown[1]["den"]) == 0.0
    assert mine[2].curve["matrix"][1] == [None, None]
    hidden = shown[3]["hidden"].flatten() > 0.5
    assert float(shown[3]["positive"][hidden].abs().sum() + shown[3]["scores"][hidden].abs().sum()) == 0.0
