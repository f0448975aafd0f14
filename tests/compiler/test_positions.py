"""Reading and writing at positions that one party knows, and at those that nobody does, against torch."""

import pytest
import torch
from running import difference
from torch import nn

import securemodel
from securemodel.errors import UnsupportedOperator

UNIT = 2.0**-16
X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
N, LINES = torch.tensor([1, -1]), torch.arange(2)
GRID = torch.tensor([[[0, 1, 2], [3, 4, 0]], [[1, 1, 1], [1, 2, 2]]])
EDGES = torch.tensor([[0, 1, 2, 3], [1, 1, 2, 0]])


class Owned(nn.Module):
    """A function of a secret and of what one party gives."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.one = function, nn.Parameter(torch.ones(1))

    def forward(self, x, *rest):
        return self.function(x * self.one, *rest)


def reduced(how, with_self=True):
    return lambda x, n: (x * 0.5).scatter_reduce(1, n, x[:, :2], how, include_self=with_self)


def masked(x, mask):
    y = x.clone()
    y[mask] = 1.5
    return y


ROWS = {
    "a position a line": (lambda x, n: x[LINES, n], N),
    "the same from the end": (lambda x, n: x[LINES, -n.abs()], N),
    "two of them": (lambda x, n: x[n[0], n[1]], torch.tensor([[0, 1, 1], [2, -2, 0]])),
    "axes apart": (lambda x, n: x[n[0], :, n[1]], torch.tensor([[0, 1, 1], [2, -2, 0]])),
    "broadcast": (lambda x, n: x[n[:, None], LINES[None]], torch.tensor([0, 1, 1])),
    "last axes": (lambda x, n: x[:, n, n % 3], torch.tensor([[0, 4], [2, 1]])),
    "written": (lambda x, n: x.index_put((LINES, n), torch.tensor(0.25)), N),
    "written twice": (lambda x, n: x.index_put((LINES[:1], n), x[0, :2] * 0 + 0.5), torch.tensor([3, 3])),
    "added": (lambda x, n: x.index_put((LINES[:1], n), x[0, :2], accumulate=True), torch.tensor([3, 3])),
    "added in turned axes": (
        lambda x, n: x.permute(0, 2, 1).index_put((n[0], n[1]), x[:, :, 0], accumulate=True),
        torch.tensor([[1, 1], [2, 2]]),
    ),
    "a mask": (masked, X > 0.3),
    "a mask of lines": (masked, torch.tensor([False, True])),
    "scatter": (
        lambda x, n: (x * 0.5).scatter(1, n, x[:, :2]),
        torch.tensor([[[0, 1, 2], [3, 4, 0]], [[4] * 3, [2] * 3]]),
    ),
    "scatter a number": (lambda x, n: x.scatter(1, n, 2.5), GRID),
    "scatter_add": (lambda x, n: x.scatter_add(1, n, x[:, :2]), GRID),
    "mean": (reduced("mean"), GRID),
    "mean without self": (reduced("mean", False), GRID),
    "sum without self": (reduced("sum", False), GRID),
    "amax": (reduced("amax"), GRID),
    "amin": (reduced("amin"), GRID),
    "amax without self": (reduced("amax", False), GRID),
    "a graph's messages": (lambda x, e: torch.zeros(5, 3).index_add(0, e[1], x[0][e[0]]), EDGES),
}


def assert_right(model, given, **settings):
    settings = {"weights": "b", "outputs": "h", "parties": ("b", "h"), **settings}
    program = securemodel.compile(model, given, **settings)
    expected = model(*given)
    with securemodel.local(program) as session:
        made = session.run(*given)
    assert made.shape == expected.shape and difference(made, expected) < 8 * UNIT


@pytest.mark.parametrize("owner", ["h", "b"])
@pytest.mark.parametrize("name", ROWS)
def test_positions_of_one_party(name, owner):
    function, positions = ROWS[name]
    assert_right(Owned(function), (X, positions), inputs=("h", owner), parties=("b", "h", "idle"))


@pytest.mark.parametrize("how", ["amax", "mean", "sum"])
def test_reductions_at_positions_of_the_program(how):
    assert_right(Owned(lambda x: reduced(how, False)(x, GRID)), (X,), inputs=("h",))


SECRET = {
    "read": lambda x: x[LINES, x[..., 0].argmax(1)],
    "written": lambda x: x.scatter(1, x.argmax(1, keepdim=True), 9.0),
    "written at distinct ones": lambda x: x.scatter(1, x.argsort(1)[:, :2], x[:, 2:4]),
    "added": lambda x: x.scatter_add(1, x.argmax(1, keepdim=True).expand(2, 2, 3), x[:, :2]),
}


@pytest.mark.parametrize("name", SECRET)
def test_positions_that_nobody_knows(name):
    assert_right(Owned(SECRET[name]), (X,), inputs=("h",))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.scatter(1, x.argsort(1)[:, :2], 1.5),
        lambda x: x.scatter_reduce(1, x.argsort(1)[:, :2], x[:, :2], "amax"),
        lambda x: x.scatter_reduce(1, GRID, x[:, :2], "prod"),
    ],
)
def test_what_has_no_secure_version_is_refused(function):
    with pytest.raises(UnsupportedOperator, match="scatter|several"):
        assert_right(Owned(function), (X,), inputs=("h",))
