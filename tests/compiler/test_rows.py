"""Which models may be run in batches of another size: those whose rows do not know of each other."""

import pytest
import torch
from running import TOLERANCE, Fn, difference, run
from torch import nn

import securemodel
from securemodel.compiler.rows import rows_are_independent, rows_stand_alone
from securemodel.errors import InputError


class Biased(nn.Module):
    """Adds a parameter of a given shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias


INDEPENDENT = {
    "linear": nn.Linear(5, 3),
    "relu of minus": lambda x: torch.relu(-x),
    "two layers": nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)),
    "batch norm at evaluation": nn.BatchNorm1d(5),
    "mean along the row": lambda x: x - x.mean(1, keepdim=True),
    "argmax": lambda x: x.argmax(1),
    "several outputs": lambda x: (x + 1, x.sum(1)),
    "bias for all rows": Biased(1, 5),
    "flip along the row": lambda x: x.flip(1),
    "weights times rows": lambda x: (x.unsqueeze(1) @ torch.ones(5, 2)).squeeze(1),
}
DEPENDENT = {
    "mean of the batch": lambda x: x - x.mean(0),
    "hardly": lambda x: x + 1e-9 * x.mean(0),
    "behind a closed relu": lambda x: x * (1 + torch.relu(-x.mean(0))),
    "only if rows are alike": lambda x: torch.relu(1e-3 - (x - x.flip(0)) ** 2) + x,
    "rows compared": lambda x: x > x.mean(0),
    "reversed": lambda x: x.flip(0),
    "rolled": lambda x: x.roll(1, 0),
    "running sum": lambda x: x.cumsum(0),
    "running sum from the end": lambda x: x.flip(0).cumsum(0).flip(0),
    "gram matrix": lambda x: x @ x.T,
    "argmax over rows": lambda x: x.argmax(0),
    "sum of all": lambda x: x.sum(),
    "only the first": lambda x: x[:1],
    "rows doubled": lambda x: torch.cat([x, x]),
    "place in the batch": lambda x: x + torch.tensor([[1.0], [2.0]]),
    "bias per row": Biased(2, 5),
    "fixed number of rows": lambda x: x.view(3, 5),
    "pairs of rows": lambda x: x.reshape(-1, 10),
    "order over rows": lambda x: x.sort(0)[0],
    "statistics of the batch": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "whether any row is large": lambda x: x + (x > 1000).any(0),
    "whether a sum is above a bound": lambda x: x + (x.sum(0) > 50),
}
WHOLE = {
    "largest of the batch": lambda x: x.amax() - x,
    "order over rows": lambda x: x.sort(0)[0],
    "less their mean": lambda x: x.float() - x.float().mean(0),
}


def module(model) -> nn.Module:
    return (model if isinstance(model, nn.Module) else Fn(model)).eval()


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent(name):
    for rows in (1, 2, 3):
        assert rows_are_independent(module(INDEPENDENT[name]), [torch.randn(rows, 5)])
        assert rows_stand_alone(module(INDEPENDENT[name]), [torch.randn(rows, 5)])


def test_rows_that_do_not_stand_alone():
    weights = torch.ones(5, 1)
    for function in (lambda x: (x @ weights).squeeze(), lambda x: x * len(x), lambda x: x - x.mean(0)):
        assert not rows_stand_alone(module(function), [torch.randn(2, 5)])
    assert rows_are_independent(module(lambda x: (x @ weights).squeeze()), [torch.randn(2, 5)])
    assert rows_stand_alone(module(lambda x: (x @ weights).squeeze(1)), [torch.randn(2, 5)])


@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent(name):
    assert not rows_are_independent(module(DEPENDENT[name]), [torch.randn(3, 5)])


@pytest.mark.parametrize("example", [torch.zeros(2, 4).long(), torch.ones(2, 4).long(), torch.arange(8).reshape(2, 4)])
@pytest.mark.parametrize("name", WHOLE)
def test_dependent_whole_numbers(name, example):
    assert not rows_are_independent(module(WHOLE[name]), [example])


def test_masks_that_forbid_a_whole_row():
    """Whose softmax is no number, whatever stands beside it."""

    def forbid(mix):
        return Fn(lambda x, mask: torch.softmax(mix(x).masked_fill(~mask, -torch.inf), -1))

    given = torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool)
    assert rows_are_independent(forbid(lambda x: x), given) and rows_stand_alone(forbid(lambda x: x), given)
    assert not rows_are_independent(forbid(lambda x: x - x.mean(0)), given)
    assert not rows_are_independent(Fn(lambda x, mask: x * torch.nan), given)


def test_dependent_booleans():
    assert not rows_are_independent(module(lambda x: x ^ x.any(0)), [torch.zeros(2, 4).bool()])


def test_several_inputs_need_as_many_rows():
    add = module(lambda x, y: x[:, :1] + y[:, :1])
    assert rows_are_independent(add, [torch.randn(2, 5), torch.randn(2, 3)])
    assert not rows_are_independent(add, [torch.randn(2, 5), torch.randn(1, 3)])
    assert not rows_are_independent(module(lambda x, y: x * y), [torch.randn(2, 5), torch.tensor(1.0)])


def test_tokens():
    table = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    assert rows_are_independent(table, [torch.tensor([[1, 9], [0, 3]])])
    assert not rows_are_independent(module(lambda i: i.flip(0)), [torch.tensor([[1, 9], [0, 3], [4, 5]])])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    return model, securemodel.compile(model, torch.randn(3, 5), weights="a", inputs="b", outputs="b")


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7])
def test_a_batch_of_any_size_is_its_rows_one_by_one(network, rows):
    model, program = network
    x = torch.randn(rows, 5)
    with torch.no_grad(), securemodel.local(program) as session:
        together, expected = session.run(x), model(x)
        apart = torch.cat([session.run(row.unsqueeze(0)) for row in x])
    assert difference(together, expected) < TOLERANCE
    assert difference(apart, expected) < TOLERANCE


def test_dependent_rows_run_at_their_size_only():
    model = module(lambda x, y: torch.relu(x + y - x.mean(0)))
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    program = securemodel.compile(model, (x, y), weights="a", inputs=("a", "b"), outputs="b")
    assert difference(run(program, x, y)[0], model(x, y)) < TOLERANCE
    with pytest.raises(InputError, match="rows\\s+depend on each other"):
        run(program, x[:2], y[:2])
