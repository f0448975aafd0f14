"""Models whose Python code asks for values: what the error says; their assertions: who checks them, and when."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import securemodel
from protocols.errors import InputError
from securemodel.errors import CompileError

TWO = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}


class Scored(nn.Module):
    """What `code` makes of the scores of a layer, which are secret."""

    def __init__(self, code) -> None:
        super().__init__()
        self.layer, self.code = nn.Linear(4, 3), code

    def forward(self, x):
        return self.code(self.layer(x))


class Table(nn.Module):
    """What `code` makes of whole numbers and of their rows of a table."""

    def __init__(self, code=lambda n, rows: rows) -> None:
        super().__init__()
        self.table, self.code = nn.Embedding(9, 3), code

    def forward(self, n):
        return self.code(n, self.table(n))


def branch(y):
    if y.sum() > 0:
        return y
    return -y


def ternary(y):
    return y if y.sum() > 0 else -y


def loop(y):
    while y.sum() > 1:
        y = y / 2
    return y


def counted(y):
    for _ in range(int(y.max())):
        y = y + 1
    return y


def asserted(y):
    assert (y > -100).all(), "too small"
    return y


def checked(y):
    if y.min() < -100:
        raise ValueError("too small")
    return y


def contains(y):
    return y if 3 in y else -y


def text(y):
    return y * len(f"{y.sum():.3f}")


NEEDS_VALUES = {
    branch: ("`if`", "if y.sum() > 0:", "torch.where"),
    ternary: ("a choice", "return y if y.sum() > 0 else -y", "torch.where"),
    loop: ("loop", "while y.sum() > 1:", "torch.where"),
    counted: ("loop", "for _ in range(int(y.max())):", "fixed number of steps"),
    asserted: ("`assert`", "assert (y > -100).all()", "torch._assert_async"),
    checked: ("check", "if y.min() < -100:", "torch._assert_async"),
    contains: ("`in`", "if 3 in y", "any()"),
    text: ("text", 'f"{y.sum():.3f}"', "leave tensors out"),
    (lambda y: y * bool(y.max() > 0)): ("`bool`", "bool(y.max() > 0)", "torch.where"),
    (lambda y: y[: int(y.max())]): ("`int`", "int(y.max())", "fixed number"),
    (lambda y: y * float(y.max())): ("`float`", "float(y.max())", "keep it a tensor"),
    (lambda y: [y, -y][y.argmax()]): ("position", "[y, -y][y.argmax()]", "stack the choices"),
    (lambda y: y * torch.from_numpy(y.numpy())): ("`numpy`", "y.numpy()", "keep it a tensor"),
}


@pytest.mark.parametrize("code", NEEDS_VALUES, ids=lambda code: NEEDS_VALUES[code][0])
def test_code_that_needs_values_is_shown_with_what_to_write_instead(code, capfd) -> None:
    with pytest.raises(CompileError) as caught:
        securemodel.compile(Scored(code), torch.zeros(2, 4), **TWO)
    report = securemodel.check(Scored(code), torch.zeros(2, 4))
    assert not report and len(report.problems) == 1, "check reports it, and raises nothing"
    for message in (str(caught.value), str(report)):
        assert "test_values_in_code.py:" in message
        for part in NEEDS_VALUES[code]:
            assert part in message, message
        assert not any(word in message for word in ("TORCH", "Caused by", "data-dependent", "symbol", "u0", "export"))
    printed = capfd.readouterr()
    assert not printed.out and not printed.err, "torch printed something"


SECRET_NUMBERS = {
    (lambda y: y * y.max().item()): "Python",
    (lambda y: y * y.flatten().tolist()[0]): "Python",
    (lambda y: torch.nonzero(y)): "size",
    (lambda y: torch.unique(y)): "size",
    (lambda y: y[y > 0]): "size",
}


@pytest.mark.parametrize("code", SECRET_NUMBERS)
def test_numbers_and_sizes_made_of_secrets_are_reported_with_a_reason(code) -> None:
    report = securemodel.check(Scored(code), torch.zeros(2, 4))
    assert SECRET_NUMBERS[code] in report.problems[0].reason and report.problems[0].remedy
    assert not report.unchecked, "torch's own assertions are not the model's"


def test_an_error_that_the_model_catches_is_told_and_not_taken_for_a_choice() -> None:
    """The program would always go the way that the model goes without values."""

    def guarded(y):
        try:
            return 2 * y if y.sum() > 0 else y
        except Exception:
            return y

    with pytest.raises(CompileError, match=r"return 2 \* y if y\.sum\(\) > 0(.|\n)*torch\.where"):
        securemodel.compile(Scored(guarded).eval(), torch.zeros(2, 4), **TWO)


def test_an_error_of_the_model_is_told_with_its_line() -> None:
    with pytest.raises(
        CompileError, match=r"(?s)RuntimeError: shape.*where: test_values_in_code.py:\d+.*y.reshape\(7, 7\)"
    ):
        securemodel.check(Scored(lambda y: y.reshape(7, 7)), torch.zeros(2, 4))


# ---- what an owner's values alone decide
def both(model: nn.Module, *inputs: torch.Tensor, **owners) -> None:
    program = securemodel.compile(model.eval(), inputs, **{**TWO, **owners})
    with securemodel.local(program) as session:
        torch.testing.assert_close(session.run(*inputs), model(*inputs).detach(), atol=2**-9, rtol=0)


OWNED_NUMBERS = {
    "item": lambda n, rows: rows * n.max().item(),
    "picked": lambda n, rows: rows + n[n > 1].sum(),
    "unique": lambda n, rows: rows + n.unique().float().mean(),
    "as a size": lambda n, rows: rows + torch.ones(n.max().item()).sum(),
}


@pytest.mark.parametrize("name", OWNED_NUMBERS)
def test_sizes_and_numbers_of_an_owner_are_its_own_business(name) -> None:
    both(Table(OWNED_NUMBERS[name]), torch.tensor([2, 1, 2]))


def test_a_size_that_only_its_owner_knows_may_not_leave_it() -> None:
    report = securemodel.check(Table(lambda n, rows: n[n > 1]), torch.tensor([2, 1]))
    assert "size" in report.problems[0].reason
    report = securemodel.check(Table(lambda n, rows: rows ** n.max().item()), torch.tensor([2, 1]))
    assert not report and "a number that depends on values" in report.problems[0].reason


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 3)
        self.register_buffer("at", torch.tensor([[0, 1, 0, 1, 1, 0, 0, 1]]))

    def forward(self, positions):
        return self.table(torch.gather(self.at, 1, positions))


def test_a_table_is_read_at_whole_numbers_that_were_read_from_a_table() -> None:
    both(Positions(), torch.tensor([[3, 4, 5, 0]]))


OWNED_REALS = {
    "a divisor": lambda n, t, y: y / t.item() + 1 / t.item(),
    "a factor": lambda n, t, y: y * t.item() - t.item() + n.max().item(),
    "beside a secret": lambda n, t, y: (t.item() - y, t.item() / (y.abs() + 1), y * t.item() ** 0.5, y > t.item()),
    "an argument": lambda n, t, y: (
        y.clamp(max=t.item()),
        y.clamp(-t.item(), t.item()),
        y.masked_fill(n == 2, t.item()),
        torch.add(y, y, alpha=t.item()),
        torch.lerp(y, 2 * y, t.item()),
        torch.where(y > 0, y, t.item()),
    ),
    "written in the code": lambda n, t, y: (y / torch.tensor(4.0).item(), *y.tensor_split(torch.tensor([1, 2]), 1)),
}


class Mixed(nn.Module):
    """What `code` makes of a hospital's whole numbers, a number of the bank, and secrets."""

    def __init__(self, code) -> None:
        super().__init__()
        self.layer, self.code = nn.Linear(3, 3), code
        self.register_buffer("number", torch.tensor(1.5))

    def forward(self, x, n):
        return self.code(n, self.number, self.layer(x))


def both_of_mixed(code, n=(2, 1, 2)) -> None:
    model, inputs = Mixed(code).eval(), (torch.randn(2, 3), torch.tensor(n))
    program = securemodel.compile(model, inputs, **TWO)
    with securemodel.local(program) as session, torch.no_grad():
        torch.testing.assert_close(session.run(*inputs), model(*inputs), atol=2**-9, rtol=0)


@pytest.mark.parametrize("name", OWNED_REALS)
def test_a_number_of_an_owner_is_its_value_beside_secrets(name) -> None:
    both_of_mixed(OWNED_REALS[name])


def more(y):
    return y + 1, y > 0


def less(y):
    return y * 2, y < 0


def nested(y):
    return torch.cond(y.max() > 1, more, less, (y,))


CONDITIONS = {
    "a secret": lambda n, t, y: torch.cond(y.sum() > 0, more, less, (y,)),
    "the hospital's": lambda n, t, y: torch.cond(n.sum() > 3, more, less, (y,)),
    "a number of the hospital": lambda n, t, y: torch.cond(n.max().item() > 1, more, less, (y,)),
    "the bank's": lambda n, t, y: torch.cond(t > 2, more, less, (y,)),
    "a constant": lambda n, t, y: torch.cond(torch.tensor([True]), more, less, (y,)),
    "one in another": lambda n, t, y: torch.cond(n.sum() > 3, nested, less, (y,)),
    "of owned values alone": lambda n, t, y: y + torch.cond(n.sum() > 3, more, less, (n,))[0].sum(),
}


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("n", [(2, 1, 2), (-2, 1, -2)], ids=["above", "below"])
def test_both_branches_of_a_condition_are_computed_and_one_is_chosen(name, n) -> None:
    both_of_mixed(CONDITIONS[name], n)


def test_loops_of_torch_are_reported_with_their_line() -> None:
    loop = lambda y: torch._higher_order_ops.while_loop(lambda y: y.sum() < 9, lambda y: (y + 1,), (y,))
    report = securemodel.check(Scored(loop), torch.zeros(2, 4))
    assert not report and "loop of torch" in report.problems[0].reason
    assert "test_values_in_code.py:" in report.problems[0].source


@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_decompositions_of_secret_matrices_are_named(name) -> None:
    report = securemodel.check(Scored(lambda y: getattr(torch.linalg, name)(y.T @ y)), torch.zeros(2, 4))
    assert not report and "linalg" in report.problems[0].operator


def test_an_owner_may_invert_its_matrix() -> None:
    both_of_mixed(lambda n, t, y: y @ torch.linalg.inv(torch.eye(3) * t))


# ---- values that follow from the code alone
def shared_memory(y):
    mask = torch.zeros(4)
    mask[:2].add_(1)
    return y * int(mask.sum())


def like_a_secret(y):
    mask = torch.ones_like(y)
    mask[0, 0] = 0
    return y if mask.sum() == y.numel() else y * 3


def counted_positions(y):
    places = torch.arange(3)
    return y[:, torch.arange(places[2] - places[0])]


KNOWN = {
    "if": lambda y: y if torch.arange(4)[0] > 0 else y * 2,
    "loop": lambda y: sum(y * n for n in torch.arange(3).tolist()),
    "in": lambda y: y if 2 in torch.arange(3) else y * 2,
    "shared memory": shared_memory,
    "like a secret": like_a_secret,
    "a size": counted_positions,
}


@pytest.mark.parametrize("code", KNOWN.values(), ids=KNOWN)
def test_code_may_ask_for_values_that_it_makes_itself(code) -> None:
    torch.manual_seed(6)
    model, x = Scored(code), torch.randn(2, 4)
    program = securemodel.compile(model, x, **TWO)
    with torch.no_grad(), securemodel.local(program) as session:
        assert (session.run(x) - model(x)).abs().max() < 1e-3


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (7, 3), (3, 7), (2, 2, 2)], ids=str)
def test_diagonals_are_filled_as_torch_fills_them(shape, wrap) -> None:
    code = lambda y: (y.sum() + torch.zeros(shape)).fill_diagonal_(2, wrap=wrap)
    torch.manual_seed(7)
    model, x = Scored(code), torch.randn(2, 4)
    program = securemodel.compile(model, x, **TWO)
    with torch.no_grad(), securemodel.local(program) as session:
        assert (session.run(x) - model(x)).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["cov", "corrcoef"])
@pytest.mark.parametrize("shape", [(2, 3), (6,), (1, 6)], ids=str)
def test_covariances_are_those_of_torch(shape, name) -> None:
    """torch asks on the way whether there are enough observations."""
    torch.manual_seed(7)
    for code in (getattr(torch, name), lambda y: getattr(y, name)()):
        model, x = Scored(lambda y, code=code: code(y.reshape(shape))), torch.randn(2, 4)
        program = securemodel.compile(model, x, **TWO)
        with torch.no_grad(), securemodel.local(program) as session:
            made, expected = session.run(x), model(x)
        assert made.shape == expected.shape
        assert (made - expected).abs().max() < 2.0**-10


def overwritten(y, part):
    mask = torch.zeros(3)
    part(mask)[:2] = y[0, :2]
    return y * int(mask.sum())


SPOILED = {
    "itself": lambda y: overwritten(y, lambda mask: mask),
    "a view": lambda y: overwritten(y, lambda mask: mask.view(3)),
    "copied": lambda y: y * int(torch.zeros(3).copy_(y[0]).sum()),
    "given as out": lambda y: y * int(torch.add(y[0], 1, out=torch.zeros(3)).sum()),
    "random": lambda y: y * int(torch.zeros(3).uniform_().sum()),
    "memory as it was": lambda y: y * int(torch.empty(3).sum()),
}


@pytest.mark.parametrize("code", SPOILED.values(), ids=SPOILED)
def test_what_is_overwritten_is_not_taken_for_what_it_was(code) -> None:
    with pytest.raises(CompileError, match="`int` takes values"):
        securemodel.compile(Scored(code), torch.zeros(2, 4), **TWO)


# ---- assertions
def all_positive(n, rows):
    torch._check_tensor_all(n > 0, lambda: "every n is positive")
    return rows


def bounded(n, rows):
    largest = n.max().item()
    torch._check(largest > 0, lambda: "n has no positive number")
    torch._check(largest < 9)
    return rows * largest


def distinct(n, rows):
    torch._check_value(n.unique_consecutive().numel() >= 2, lambda: "n is constant")
    return rows


def distinct_pair(n, rows):
    """The size can be 2 only, and torch.export numbers its symbols anew."""
    return distinct(n, rows)


def asynchronous(n, rows):
    torch._assert_async((n > 0).all(), "every n is positive")
    return rows


def constrained(n, rows):
    torch._check_tensor_all(n >= 0)
    return rows


CHECKED = {
    all_positive: ([2, 1], [0, 1], "every n is positive"),
    bounded: ([2, 1], [0, 0], "n has no positive number"),
    distinct: ([2, 1, 2], [4, 4, 4], "n is constant"),
    distinct_pair: ([2, 1], [4, 4], "n is constant"),
    asynchronous: ([2, 1], [0, 1], "every n is positive"),
    constrained: ([2, 1], [-1, 1], "a check of the model failed"),
}


@pytest.mark.parametrize("code", CHECKED, ids=lambda code: code.__name__)
def test_an_assertion_of_owned_values_is_made_by_their_owner_with_the_models_message(code) -> None:
    good, bad, message = CHECKED[code]
    model = Table(code).eval()
    both(model, torch.tensor(good))
    assert not securemodel.check(model, torch.tensor(good)).unchecked
    program = securemodel.compile(model, torch.tensor(good), **TWO)
    with securemodel.local(program) as session:
        with pytest.raises(InputError, match=rf"(?s)'hospital': input 0: {message}.*where: test_values_in_code.py"):
            session.run(torch.tensor(bad))
        session.run(torch.tensor(good))  # the session goes on


def test_an_assertion_of_public_values_is_made_by_everybody() -> None:
    program = securemodel.compile(Table(all_positive).eval(), torch.tensor([2, 1]), **{**TWO, "inputs": "public"})
    with securemodel.local(program) as session, pytest.raises(InputError, match="every n is positive"):
        session.run(torch.tensor([0, 1]))


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        torch._check_tensor_all(self.scale > 0, lambda: "scales are positive")
        return x * self.scale


def test_an_assertion_of_weights_is_made_when_they_are_loaded() -> None:
    model, bad = Weighted().eval(), Weighted().eval()
    nn.init.constant_(bad.scale, -1.0)
    program = securemodel.compile(model, torch.zeros(2, 3), **TWO)
    with securemodel.local(program) as session:
        with pytest.raises(InputError, match="(?s)'bank': weight 'scale': scales are positive"):
            session.load(program, bad)
        session.load(program, model)


@pytest.mark.parametrize("code", [c for c in CHECKED if c is not bounded], ids=lambda code: code.__name__)
def test_an_assertion_of_secrets_is_left_out_and_check_says_so(code) -> None:
    report = securemodel.check(Scored(lambda y: code(y, y)), torch.zeros(2, 4))
    assert report and len(report.unchecked) == 1
    assert "left out, as it checks secret values: test_values_in_code.py" in str(report)
    model = Scored(lambda y: code(y, y))
    nn.init.uniform_(model.layer.bias, 8.0, 9.0)
    both(model, torch.randn(2, 4))
