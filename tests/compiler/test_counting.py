"""Counts, order and places of values that are equal, against torch."""

import pytest
import torch
import torch.nn.functional as F
from running import IDLE_THIRD, TWO, check_agrees
from test_positions import Owned, assert_right

import securemodel
from securemodel.errors import UnsupportedOperator

UNIT = 2.0**-16
BOUNDS = torch.tensor([-1.0, 0.0, 0.5, 0.5, 2.0])
AT_BOUNDS = torch.tensor([[-1.0, 0.0, 0.5, 2.0], [-1.0 - UNIT, 0.5 - UNIT, 0.5 + UNIT, 3.0]])
EQUAL = torch.tensor([[1.0, 2, 2, 3, 1, 2], [0, 0, 1, 1, 5, 5], [3, 3, -3, -3, 2, 2]])

TIES = {
    "bucketize": lambda x: (torch.bucketize(x, BOUNDS), torch.bucketize(x, BOUNDS, right=True)),
    "searchsorted": lambda x: (torch.searchsorted(x[0], x), torch.searchsorted(x[0], x, side="right")),
    "a number": lambda x: (torch.bucketize(0.5, x[0]), torch.bucketize(0.5, x[0], right=True)),
    "histc": lambda x: torch.histc(x, 4, -1.0, 2.0),
}
PLACES = {
    "mode": lambda x: (*x.mode(1), *x.mode(0, keepdim=True)),
    "cummax": lambda x: (*x.cummax(1), *x.cummin(0)),
    "stable": lambda x: (*x.sort(dim=1, stable=True), *x.sort(dim=1, descending=True, stable=True)),
    "stable whole numbers": lambda x: (*x.round().long().sort(stable=True), x.argsort(dim=0, stable=True)),
    "median": lambda x: (x.median(), x.nanmedian(1).values),
}


@pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])
@pytest.mark.parametrize("name", TIES)
def test_values_at_bounds_are_counted_where_torch_has_them(name, settings):
    check_agrees(TIES[name], (AT_BOUNDS,), 0.0, settings=settings)


@pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])
@pytest.mark.parametrize("name", PLACES)
def test_equal_values_stand_where_torch_has_them(name, settings):
    check_agrees(PLACES[name], (EQUAL,), 0.0, settings=settings)


@pytest.mark.parametrize("owner", ["h", "b"])
def test_bounds_and_classes_of_one_party(owner):
    assert_right(Owned(torch.bucketize), (AT_BOUNDS, BOUNDS), inputs=("h", owner))
    weighted = Owned(lambda x, n: torch.bincount(n, x, minlength=6))
    assert_right(weighted, (EQUAL[0], torch.tensor([0, 1, 1, 4, 0, 1])), inputs=("h", owner))
    targets = torch.tensor([[3, 0, -1, 1, 2, 0], [1, -1, 2, 2, 2, 2], [-1, 0, 0, 0, 0, 0]])
    assert_right(Owned(F.multilabel_margin_loss), (EQUAL * 0.5, targets), inputs=("h", owner))


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: torch.histc(x, 4), "range"),
        (lambda x: torch.bincount(x.argmax(1)), "minlength"),
        (lambda x: x.unique(), "depends on secret values"),
    ],
)
def test_what_depends_on_secret_values_is_refused(function, reason):
    with pytest.raises(UnsupportedOperator, match=reason):
        securemodel.compile(Owned(function), (EQUAL,), weights="b", inputs="h", outputs="h")
