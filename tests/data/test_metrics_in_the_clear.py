"""Metrics of rows in the clear are scikit-learn's: with ties, one class, tiny sets and weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from torch import Tensor

from securemodel.data import metrics
from securemodel.data.curves import BINS, place, threshold_of
from securemodel.errors import InputError

HERE = settings(max_examples=40, deadline=None)


@st.composite
def scored(draw, least: int = 1, most: int = 40, weighted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(labels, logits on a coarse grid, so that many are equal, weights)."""
    n = draw(st.integers(least, most))
    label = torch.tensor(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    score = torch.tensor(draw(st.lists(st.integers(-30, 30), min_size=n, max_size=n))).double() / 4
    weight = torch.tensor(draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))).double() / 8
    return label, score, weight


def _both(label: Tensor) -> bool:
    return 0 < int(label.sum()) < len(label)


@given(scored(), st.sampled_from([-2.0, 0.0, 0.25]))
@HERE
def test_decisions(rows: tuple[Tensor, Tensor, Tensor], threshold: float) -> None:
    label, score, weight = rows
    called = score >= threshold
    for make, theirs in (
        (metrics.precision, sk.precision_score), (metrics.recall, sk.recall_score), (metrics.f1, sk.f1_score),
    ):  # fmt: skip
        mine = make(threshold).measure(label, score)
        true = theirs(label, called, zero_division=math.nan)
        assert (
            (mine.value is None and "undefined" in mine.why) if math.isnan(true) else mine.value == pytest.approx(true)
        )
        assert mine.threshold == threshold
    assert metrics.accuracy(threshold).measure(label, score).value == pytest.approx(sk.accuracy_score(label, called))
    matrix = metrics.confusion(threshold).measure(label, score).curve["matrix"]
    assert matrix == sk.confusion_matrix(label, called, labels=[0, 1]).tolist()
    assume(float(weight.sum()) > 0)
    weighed = metrics.accuracy(threshold).measure(label, score, weight).value
    assert weighed == pytest.approx(sk.accuracy_score(label, called, sample_weight=weight), abs=1e-6)


@given(st.integers(1, 30), st.integers(3, 5), st.integers(0, 2**32 - 1))
@HERE
def test_decisions_of_classes(n: int, classes: int, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    label, score = torch.randint(0, classes, (n,), generator=made), torch.randn(n, classes, generator=made)
    called = score.argmax(1)
    for average in ("macro", "micro", "weighted"):
        for make, theirs in (
            (metrics.precision, sk.precision_score), (metrics.recall, sk.recall_score), (metrics.f1, sk.f1_score),
        ):  # fmt: skip
            mine = make(classes=classes, average=average).measure(label, score).value
            assert mine == pytest.approx(theirs(label, called, average=average, zero_division=0), abs=1e-6)
    matrix = metrics.confusion(classes=classes).measure(label, score).curve["matrix"]
    assert matrix == sk.confusion_matrix(label, called, labels=range(classes)).tolist()
    best = metrics.top_k(2, classes).measure(label, score).value
    assert best == pytest.approx(sk.top_k_accuracy_score(label, score, k=2, labels=range(classes)))


def test_a_class_without_calls_counts_as_zero_and_is_named() -> None:
    label, score = torch.tensor([0, 1, 2]), torch.eye(3)[[0, 1, 1]]
    made = metrics.precision(classes=3).measure(label, score)
    assert made.value == pytest.approx(0.5) and "1 classes" in made.notes[0]


@given(scored(weighted=True))
@HERE
def test_losses(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    label, score, weight = rows
    p = torch.sigmoid(score)
    for given_weight in (None, weight if float(weight.sum()) > 0 else None):
        kwargs = {} if given_weight is None else {"sample_weight": given_weight}
        log_loss = sk.log_loss(label, p, labels=[0, 1], **kwargs)
        brier = sk.brier_score_loss(label, p, labels=[0, 1], **kwargs)
        assert metrics.log_loss().measure(label, score, given_weight).value == pytest.approx(log_loss, abs=1e-5)
        assert metrics.log_loss("probability").measure(label, p, given_weight).value == pytest.approx(
            log_loss, abs=1e-3
        )
        assert metrics.brier().measure(label, score, given_weight).value == pytest.approx(brier, abs=1e-5)
        assert metrics.brier("probability").measure(label, p, given_weight).value == pytest.approx(brier, abs=1e-5)


@given(scored(least=2), st.sampled_from([1.0, 300.0]))
@HERE
def test_regression(rows: tuple[Tensor, Tensor, Tensor], size: float) -> None:
    _, target, weight = rows
    target, guess = target * size, target * size + size * weight
    assert metrics.mse(8 * size).measure(target, guess).value == pytest.approx(sk.mean_squared_error(target, guess))
    assert metrics.mae(8 * size).measure(target, guess).value == pytest.approx(sk.mean_absolute_error(target, guess))
    assert metrics.rmse(8 * size).measure(target, guess).value == pytest.approx(
        sk.root_mean_squared_error(target, guess)
    )
    made = metrics.r2(8 * size).measure(target, guess)
    scale = 2.0 ** math.ceil(math.log2(8 * size))
    variance = float(target.var(correction=0)) / scale**2
    if variance < 2.0**-16:
        assert made.value is None and "hardly differ" in made.why
    else:
        bound = 2.0**-24 / variance
        assert made.value == pytest.approx(sk.r2_score(target, guess), abs=bound, rel=bound)


@given(scored())
@HERE
def test_the_exact_order(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    label, score, _ = rows
    names = ("auc", "ks", "average_precision")
    auc, ks, precision = (m.measure(label, score) for m in metrics.named(names, exact=True))
    if not _both(label):
        assert all(m.value is None and "undefined" in m.why for m in (auc, ks, precision))
        return
    assert auc.value == pytest.approx(sk.roc_auc_score(label, score), abs=1e-6)
    assert ks.value == pytest.approx(ks_2samp(score[label == 1], score[label == 0]).statistic, abs=1e-6)
    assert precision.value == pytest.approx(sk.average_precision_score(label, score), abs=1e-4)


@given(scored(least=4))
@HERE
def test_the_exact_order_of_present_rows(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    label, score, weight = rows
    there = (weight > 0.3).long()
    assume(_both(label[there > 0]))
    kept, of = label[there > 0], score[there > 0]
    auc, ks, precision = (
        m.measure(label, score, there) for m in metrics.named(["auc", "ks", "average_precision"], exact=True)
    )
    assert auc.value == pytest.approx(sk.roc_auc_score(kept, of), abs=1e-6)
    assert ks.value == pytest.approx(ks_2samp(of[kept == 1], of[kept == 0]).statistic, abs=1e-6)
    assert precision.value == pytest.approx(sk.average_precision_score(kept, of), abs=1e-4)


@given(scored())
@HERE
def test_the_order_from_bins_is_within_what_it_says(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    label, score, weight = rows
    names = ("auc", "ks", "average_precision", "lift")
    made = {m.name: m.measure(label, score) for m in metrics.named(names)}
    if not _both(label):
        assert all(m.value is None for m in made.values())
        return
    bins = torch.floor(place(score, "logit"))
    assert made["auc"].value == pytest.approx(sk.roc_auc_score(label, bins), abs=1e-6)
    assert made["average_precision"].value == pytest.approx(sk.average_precision_score(label, bins), abs=1e-5)
    assert made["ks"].value == pytest.approx(ks_2samp(bins[label == 1], bins[label == 0]).statistic, abs=1e-6)
    true = {
        "auc": sk.roc_auc_score(label, score),
        "ks": ks_2samp(score[label == 1], score[label == 0]).statistic,
        "average_precision": sk.average_precision_score(label, score),
    }
    for name, exact in true.items():
        assert abs(made[name].value - exact) <= made[name].error + 1e-5
    assume(_both(label[weight > 0]))
    weighed = metrics.auc().measure(label, score, weight).value
    assert weighed == pytest.approx(sk.roc_auc_score(label, bins, sample_weight=weight), abs=1e-6)


@given(scored(least=20), st.sampled_from([0.1, 0.5, 1.0]))
@HERE
def test_lift(rows: tuple[Tensor, Tensor, Tensor], top: float) -> None:
    label, score, _ = rows
    assume(_both(label))
    made, bins = metrics.lift(top=top).measure(label, score), torch.floor(place(score, "logit"))
    count = max(1, round(len(label) * top))
    within = [label[bins == b].double().mean() for b in bins.tolist()]  # each row counts as its bin does
    best = torch.tensor(within)[bins.argsort(descending=True, stable=True)[:count]].mean() / label.double().mean()
    assert made.value == pytest.approx(float(best), abs=1e-5)


@given(scored(least=2))
@HERE
def test_curves(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    label, score, _ = rows
    assume(_both(label))
    roc = metrics.roc().measure(label, score).curve
    bins = torch.floor(place(score, "logit"))
    for at in range(0, BINS + 1, 17):
        called = bins >= BINS - at
        assert roc["true_positive_rate"][at] == pytest.approx(float(called[label == 1].double().mean()))
        assert roc["false_positive_rate"][at] == pytest.approx(float(called[label == 0].double().mean()))
    pr, gains = metrics.pr().measure(label, score).curve, metrics.gains().measure(label, score).curve
    assert pr["recall"] == roc["true_positive_rate"] == gains["gain"] and gains["rows"][-1] == 1.0
    assert pr["precision"][-1] == pytest.approx(float(label.double().mean()))


@pytest.mark.parametrize("scores", ["logit", "probability", (-3.0, 5.0)])
def test_the_threshold_of_an_edge_is_where_the_bin_begins(scores) -> None:
    for b in range(1, BINS):
        at = threshold_of(b / BINS, scores)
        beside = torch.tensor([at + 1e-9, at - 1e-9], dtype=torch.float64)
        assert torch.floor(place(beside, scores)).tolist() == [b, b - 1]


@given(scored(least=2))
@HERE
def test_calibration(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    label, score, _ = rows
    p = torch.sigmoid(score)
    made = metrics.calibration("probability", 7).measure(label, p).curve
    observed, predicted = calibration_curve(label, p, n_bins=7)
    assert np.allclose(made["observed"], observed) and np.allclose(made["predicted"], predicted)


@given(st.integers(50, 3000), st.sampled_from([2, 20, 33]), st.floats(0.1, 4), st.integers(0, 2**32 - 1))
@HERE
def test_no_cell_of_a_curve_is_of_fewer_rows_than_the_minimum(n: int, minimum: int, spread: float, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    label = (torch.rand(n, generator=made) < 0.4).long()
    score = torch.randn(n, generator=made) * spread
    roc = metrics.roc().measure(label, score, minimum=minimum)
    if min(int(label.sum()), n - int(label.sum())) < minimum:
        assert "withheld" in roc.why and not roc.curve
        return
    n1, n0 = int(label.sum()), n - int(label.sum())
    counts = np.array(roc.curve["true_positive_rate"]) * n1 + np.array(roc.curve["false_positive_rate"]) * n0
    assert np.diff(counts).min() >= minimum - 1e-6
    assert counts[-1] == pytest.approx(n)


def test_small_cells_are_withheld_and_so_is_what_tells_them() -> None:
    label = torch.tensor([0] * 40 + [1] * 60)
    score = torch.cat([torch.ones(3), -torch.ones(37), torch.ones(35), -torch.ones(25)])
    made = metrics.confusion(0.0).measure(label, score, minimum=5)
    assert made.curve["matrix"] == [[None, None], [25, 35]] and "2 cells" in made.notes[0]
    assert "withheld" in metrics.precision(2.0).measure(label, score, minimum=5).why


def test_unknown_names_are_listed_together() -> None:
    with pytest.raises(InputError, match="gini, auk") as caught:
        metrics.named(["auc", "gini", "auk"])
    assert "average_precision" in str(caught.value)
    with pytest.raises(InputError, match="lift"):
        metrics.named(["lift"], classes=3)


def test_weights_are_refused_by_sorting() -> None:
    label, score = torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="without exact=True"):
        metrics.auc(exact=True).measure(label, score, torch.tensor([0.5, 1.0, 1.0]))
