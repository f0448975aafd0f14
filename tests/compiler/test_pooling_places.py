"""Where the largest values of windows stand, the first of equals, as torch has it."""

import pytest
import torch
import torch.nn.functional as F
from running import IDLE_THIRD, TWO, check_agrees
from test_positions import Owned, assert_right

EQUAL = torch.tensor([0.0, 1, 1, 2, 2, 0, 2, 1, 1, 0, 2, 2, 1, 1, 0, 0]).repeat(2).reshape(1, 2, 4, 4)

PLACES = {
    "windows": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "windows that overlap": lambda x: F.max_pool2d(x, 3, 1, 1, return_indices=True),
    "a volume": lambda x: F.max_pool3d(x, (1, 2, 3), 1, return_indices=True),
    "bins": lambda x: F.adaptive_max_pool2d(x, (3, 2), return_indices=True),
    "back again": lambda x: F.max_unpool2d(*F.max_pool2d(x, 3, 1, return_indices=True), 3, 1),
}


@pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])
@pytest.mark.parametrize("name", PLACES)
def test_the_first_of_equals(name, settings):
    check_agrees(PLACES[name], (EQUAL,), 0.0, settings=settings)


@pytest.mark.parametrize("owner", ["h", "b"])
def test_unpooling_to_places_of_one_party(owner):
    places = torch.tensor([[[[0, 3], [8, 15]], [[1, 2], [2, 9]]]])
    assert_right(Owned(lambda x, n: F.max_unpool2d(x[:, :, :2, :2], n, 2)), (EQUAL, places), inputs=("h", owner))
