"""Reading and writing at positions that one party knows, and at those that nobody does, against torch."""

import pytest
import torch
from running import difference
from torch import nn

import securemodel
from securemodel.errors import InputError, UnsupportedOperator

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


def assigned(x, at, value=1.5):
    y = x.clone()
    y[at] = value
    return y


SMALLER = torch.tensor([[[0, 1], [3, 4], [1, 1]]])
PLACES = torch.tensor([[3, -1], [4, 28]])
MASK = X > 0.3


ROWS = {
    "a position a line": (lambda x, n: x[LINES, n], N),
    "the same from the end": (lambda x, n: x[LINES, -n.abs()], N),
    "two of them": (lambda x, n: x[n[0], n[1]], torch.tensor([[0, 1, 1], [2, -2, 0]])),
    "axes apart": (lambda x, n: x[n[0], :, n[1]], torch.tensor([[0, 1, 1], [2, -2, 0]])),
    "of 32 bits": (lambda x, n: x[0, n] + nn.functional.embedding(n % 2, x[:, 0]), torch.tensor([[0, 4]]).int()),
    "written to, of 32 bits": (lambda x, n: x.index_put((n,), X.new_tensor(1.0)), N.int()),
    "broadcast": (lambda x, n: x[n[:, None], LINES[None]], torch.tensor([0, 1, 1])),
    "last axes": (lambda x, n: x[:, n, n % 3], torch.tensor([[0, 4], [2, 1]])),
    "written": (lambda x, n: x.index_put((LINES, n), torch.tensor(0.25)), N),
    "written twice": (lambda x, n: x.index_put((LINES[:1], n), x[0, :2] * 0 + 0.5), torch.tensor([3, 3])),
    "added": (lambda x, n: x.index_put((LINES[:1], n), x[0, :2], accumulate=True), torch.tensor([3, 3])),
    "added in turned axes": (
        lambda x, n: x.permute(0, 2, 1).index_put((n[0], n[1]), x[:, :, 0], accumulate=True),
        torch.tensor([[1, 1], [2, 2]]),
    ),
    "a mask": (assigned, MASK),
    "a mask of lines": (assigned, torch.tensor([False, True])),
    "a mask of a later axis": (lambda x, n: assigned(x, (slice(None), n), x[0, 0]), MASK[0, :, 0]),
    "as many as a mask has": (lambda x, n: x.masked_scatter(n, x * 0.5), MASK),
    "one position": (lambda x, n: x[:, n[1]], N),
    "elements": (lambda x, n: x.take(n), PLACES),
    "elements written": (lambda x, n: x.put(n, x[0, :2, :2]), PLACES),
    "an index that is smaller": (lambda x, n: x.gather(1, n), SMALLER),
    "scatter with a smaller index": (lambda x, n: x.scatter(1, n, x * 0.5), SMALLER),
    "scatter_add with a smaller index": (lambda x, n: x.scatter_add(1, n, x), SMALLER),
    "amax with a smaller index": (lambda x, n: x.scatter_reduce(1, n, x, "amax", include_self=False), SMALLER),
    "products": (reduced("prod"), GRID),
    "products without self": (reduced("prod", False), GRID),
    "means of slices": (lambda x, n: x.index_reduce(1, n, x[:, :2], "mean"), torch.tensor([3, 3])),
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
    "slices added": (lambda x, n: x.index_add(1, n, x[:, :2], alpha=2), torch.tensor([3, 3])),
    "slices copied": (lambda x, n: x.index_copy(1, n, x[:, :2]), torch.tensor([3, 0])),
    "beside a mask": (lambda x, n: x[0][torch.tensor([True, False, True, False, False]), n], torch.tensor([2, 0])),
    "written beside a mask": (
        lambda x, n: assigned(x, (LINES, torch.arange(5) == 3, n), 7.0),
        torch.tensor([2, 0]),
    ),
    "repeated": (lambda x, n: x.repeat_interleave(n, 1, output_size=4), torch.tensor([0, 2, 0, 1, 1])),
    "counted": (lambda x, n: torch.bincount(n, minlength=3) * x, torch.tensor([1, 1, 0])),
    "counted by weight": (lambda x, n: torch.bincount(n, x[0, :, 0], minlength=3) * x, torch.tensor([1, 1, 0, 2, 2])),
    "rows of a table of a norm": (
        lambda x, n: nn.functional.embedding(n, x[0] * 3, max_norm=1.0),
        torch.tensor([[1, 4]]),
    ),
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


def first(x):
    return x.argsort(1)[:, :2]


def twice(x):
    return x.argmax(1, keepdim=True).expand(2, 3, 3)


SECRET = {
    "read": lambda x: x[LINES, x[..., 0].argmax(1)],
    "one position": lambda x: x[:, x[0, :, 0].argmax()],
    "one element": lambda x: x.take(x.argmax()),
    "written": lambda x: x.scatter(1, x.argmax(1, keepdim=True), 9.0),
    "written at distinct ones": lambda x: x.scatter(1, first(x), x[:, 2:4]),
    "written twice": lambda x: x.scatter(1, twice(x), x[:, 1:4] * 0.5),
    "a number written twice": lambda x: x.scatter(1, twice(x), 1.5),
    "written in lines": lambda x: assigned(x, (LINES, x[..., 0].argmax(1)), x[:, 2]),
    "written in several axes": lambda x: assigned(x, (x[:, 0, 0].argsort(), x[:, :2, 0].argmax(1)), x[:, 2]),
    "added": lambda x: x.scatter_add(1, x.argmax(1, keepdim=True).expand(2, 2, 3), x[:, :2]),
    "with a smaller index": lambda x: x.scatter(1, x.argmax(1, keepdim=True)[:1, :, :2], 9.0),
    "read with a smaller index": lambda x: x.gather(1, first(x)[:1, :, :2]),
    "a mask of lines": lambda x: assigned(x, x[..., 0] > 0),
    "as many as a mask has": lambda x: x.masked_scatter(x > 0, x * 0.5),
    "read at a mask's numbers": lambda x: x[(x[:, 0, 0] > 0).long()],
    "written at a mask's numbers": lambda x: assigned(x, (x[:, 0, 0] > 0).long()),
    "written in lines at a mask's numbers": lambda x: assigned(x, (LINES, (x[:, 0, 0] > 0).int()), x[:, 2]),
    "where a mask is set": lambda x: torch.nonzero_static(x > 0.5, size=4),
    "fewer than asked for": lambda x: torch.nonzero_static(x[0] > 0.5, size=20, fill_value=-7),
    **{
        f"{how}, with self {with_self}": lambda x, how=how, own=with_self: x.scatter_reduce(
            1, twice(x), x[:, :3], how, include_self=own
        )
        for how in ("sum", "mean", "amax", "amin", "prod")
        for with_self in (True, False)
    },
}


@pytest.mark.parametrize("name", SECRET)
def test_positions_that_nobody_knows(name):
    assert_right(Owned(SECRET[name]), (X,), inputs=("h",))


@pytest.mark.parametrize("name", ["written twice", "mean, with self False", "fewer than asked for"])
def test_positions_that_nobody_knows_among_three(name):
    assert_right(Owned(SECRET[name]), (X,), inputs=("h",), parties=("b", "h", "idle"))


@pytest.mark.parametrize(
    "function, owner",
    [
        (lambda x, n: x[n], "h"),
        (lambda x, n: x[n], "b"),
        (lambda x, n: assigned(x, n, x[n] * 2), "h"),
        (lambda x, n: x[x > 0], "h"),
        (lambda x, n: torch.where(x > 0)[0], "h"),
    ],
)
def test_what_has_no_fixed_size_is_refused(function, owner):
    with pytest.raises(UnsupportedOperator, match="size of .* depends on"):
        assert_right(Owned(function), (X, MASK), inputs=("h", owner))


OUTSIDE = {
    "read": (lambda x, n: x[:, n], -5, 5),
    "read in two axes": (lambda x, n: x[LINES, n], -5, 5),
    "written": (lambda x, n: x.index_put((n, n), torch.tensor(1.0)), -2, 2),
    "scattered": (lambda x, n: x.scatter(1, n.view(2, 1, 1), 1.0), 0, 5),
    "a mean": (lambda x, n: x.scatter_reduce(1, n.view(2, 1, 1), x, "mean"), 0, 5),
    "chosen": (lambda x, n: x.gather(1, n.view(2, 1, 1)), 0, 5),
    "selected": (lambda x, n: x.index_select(1, n), 0, 5),
    "one position": (lambda x, n: x[:, n[1]], -5, 5),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_position_outside_of_its_axis_is_refused_at_its_owner(name):
    function, low, size = OUTSIDE[name]
    given = (X, torch.tensor([0, 1]))
    program = securemodel.compile(Owned(function), given, weights="b", inputs=("h", "h"), outputs="h")
    for wrong in (low - 1, size):
        with securemodel.local(program) as session, pytest.raises(InputError) as caught:
            session.run(X, torch.tensor([0, wrong]))
        assert "input 1: the id or position at [" in str(caught.value)
        assert f"from {low} to {size - 1}" in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, torch.tensor([0, 5])],
        lambda x: x.index_select(1, torch.tensor([0, 5])),
        lambda x: x.gather(1, torch.full((2, 1, 3), 5)),
        lambda x: x.scatter(1, torch.full((2, 1, 3), 5), 1.0),
    ],
)
def test_a_position_outside_of_its_axis_is_refused_in_the_code(function):
    with pytest.raises(UnsupportedOperator, match="outside of its axis"):
        securemodel.compile(Owned(function), (X,), weights="b", inputs="h", outputs="h")


NOT_FROM_THE_END = {
    "added": lambda x, n: x.index_add(1, n, x[:, :2]),
    "copied": lambda x, n: x.index_copy(1, n, x[:, :2]),
    "counted": lambda x, n: torch.bincount(n, minlength=3) * x,
}


@pytest.mark.parametrize("name", NOT_FROM_THE_END)
def test_positions_that_torch_refuses_are_refused_at_their_owner(name):
    good, bad = torch.tensor([0, 1]), torch.tensor([0, -1])
    program = securemodel.compile(Owned(NOT_FROM_THE_END[name]), (X, good), weights="b", inputs=("h", "h"), outputs="h")
    with (
        securemodel.local(program) as session,
        pytest.raises(InputError, match=r"input 1: the id or position at \[1\]"),
    ):
        session.run(X, bad)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_secret_positions_leave_padding_out(mode):
    places = torch.tensor([[1.0, 2.0, 2.0], [0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])

    def bags(x, places):
        return nn.functional.embedding_bag(places.long(), x[0], mode=mode, padding_idx=2)

    class Hidden(Owned):
        def forward(self, x, places):
            return bags(x * self.one, places * self.one)

    assert_right(Hidden(bags), (X, places), inputs=("h", "h"))
