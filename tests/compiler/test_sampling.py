"""Images read between pixels and bags of rows of a table, at positions of one party and at secret ones, against torch."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_positions import Owned, assert_right
from torch import nn

import securemodel
from securemodel.errors import UnsupportedOperator

DRAWN = torch.Generator().manual_seed(5)
IMAGES = torch.randn(2, 3, 4, 5, generator=DRAWN)
PLACES = torch.rand(2, 3, 2, 2, generator=DRAWN) * 2.4 - 1.2
TABLE = torch.randn(7, 4, generator=DRAWN)
BAGS, FLAT, STARTS = torch.tensor([[0, 1, 1], [4, 6, 2]]), torch.tensor([0, 1, 1, 4, 6, 2]), torch.tensor([0, 2, 2])


@pytest.mark.parametrize("owner", ["h", "b", "public"])
@pytest.mark.parametrize(
    "mode, padding", [*itertools.product(["bilinear", "nearest", "bicubic"], ["zeros", "reflection"])]
)
def test_images_at_positions_of_one_party(mode, padding, owner):
    model = Owned(lambda x, at: F.grid_sample(x, at, mode, padding, align_corners=mode == "nearest"))
    assert_right(model, (IMAGES, PLACES), inputs=("h", owner))


@pytest.mark.parametrize("parties", [("b", "h"), ("b", "h", "idle")], ids=["two", "three"])
def test_a_spatial_transformer(parties):
    model = Owned(lambda turned, x: F.grid_sample(x, F.affine_grid(turned, [2, 3, 3, 4], False), align_corners=False))
    turned = torch.tensor([[[0.8, 0.3, 0.1], [-0.2, 0.9, 0.0]], [[1.1, 0.0, 0.3], [0.0, 1.2, -0.4]]])
    assert_right(model, (turned, IMAGES), inputs=("h", "h"), parties=parties)


@pytest.mark.parametrize("mode, padding", [("bicubic", "zeros"), ("bilinear", "reflection")])
def test_what_secret_positions_cannot_have_is_refused(mode, padding):
    model = Owned(lambda at, x: F.grid_sample(x, at, mode, padding, align_corners=False))
    with pytest.raises(UnsupportedOperator, match="at secret positions"):
        securemodel.compile(model, (PLACES, IMAGES), weights="b", inputs="h", outputs="h")


class Bag(nn.Module):
    """A table in bags."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(7, 4, **options, _weight=TABLE)

    def forward(self, *given):
        return self.table(*given)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_one_party(mode):
    assert_right(Bag(mode=mode), (BAGS,), inputs="h")
    assert_right(Bag(mode=mode), (FLAT, STARTS), inputs=("h", "h"))
    assert_right(Bag(mode=mode, padding_idx=1), (FLAT, STARTS), inputs=("h", "public"))
    ids = Owned(lambda x, n: F.embedding_bag(n, x, STARTS, mode=mode, padding_idx=6))
    assert_right(ids, (TABLE, FLAT), inputs=("h", "b"), parties=("b", "h", "idle"))


def test_bags_with_factors():
    model = Owned(lambda x, n, w: F.embedding_bag(n, x, mode="sum", per_sample_weights=w))
    assert_right(model, (TABLE, BAGS, BAGS * 0.25), inputs=("h", "b", "b"))
    last = Owned(lambda x, n: F.embedding_bag(n, x, torch.tensor([0, 2, 6]), mode="sum", include_last_offset=True))
    assert_right(last, (TABLE, FLAT), inputs=("h", "b"))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_that_nobody_knows(mode):
    assert_right(Owned(lambda x: F.embedding_bag(x.topk(3, 0).indices.T, x, mode=mode)), (TABLE,), inputs=("h",))


def test_padding_that_nobody_knows_is_refused():
    model = Owned(lambda x: F.embedding_bag(x.topk(3, 0).indices.T, x, mode="max", padding_idx=1))
    with pytest.raises(UnsupportedOperator, match="padding"):
        securemodel.compile(model, (TABLE,), weights="b", inputs="h", outputs="h")
