"""Who owns what, who learns what: all arrangements give torch's result, to the named parties only."""

import itertools

import pytest
import torch
from running import TOLERANCE, TWO, Fn, difference, run, tensors
from torch import nn

import securemodel
from securemodel.sessions.session import Session


class Mixed(nn.Module):
    """Weights and two inputs meet in products, sums and activations; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.relu(self.first(x) + self.second(y))
        return both * both.mean(1, keepdim=True), (x[:, :3] * y - y).sum(1)


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(6)
    model, inputs = Mixed().eval(), (torch.randn(3, 4), torch.randn(3, 3))
    with torch.no_grad():
        return model, inputs, model(*inputs)


@pytest.fixture
def learned(monkeypatch):
    """What each party learned in the last run of a local session: {party: outputs}."""
    seen, step = {}, Session._step

    def recording(self, coroutines):
        results = step(self, coroutines)
        seen.clear()
        seen.update({name: value[0] for name, value in results.items() if isinstance(value, tuple)})
        return results

    monkeypatch.setattr(Session, "_step", recording)
    return seen


OWNERS = [
    (weights, (x, y))
    for weights, x, y in itertools.product(("a", "b", "c", "public"), ("a", "b", "public"), ("a", "c", "public"))
    if {weights, x, y} != {"public"}
]


@pytest.mark.parametrize("parties", [("a", "b"), ("c", "a", "b")], ids=["two", "three"])
def test_every_arrangement_of_owners(parties, mixed, capture_once):
    model, inputs, expected = mixed
    for weights, owners in OWNERS:
        if {weights, *owners} - {*parties, "public"}:
            continue
        program = securemodel.compile(model, inputs, weights=weights, inputs=owners, outputs="all", parties=parties)
        off = [difference(m, e) for m, e in zip(run(program, *inputs), expected, strict=True)]
        assert max(off) < TOLERANCE, f"weights of {weights}, inputs of {owners}: {off}"


RECEIVERS = [("a", "b"), ("b", "b"), ("all", "a"), ("c", "all"), ("all", "all"), ("c", "c")]


def test_only_the_named_parties_learn(mixed, learned, capture_once):
    model, inputs, expected = mixed
    for outputs in RECEIVERS:
        program = securemodel.compile(
            model, inputs, weights="a", inputs=("b", "c"), outputs=outputs, parties=("a", "b", "c")
        )
        made = run(program, *inputs)
        assert max(difference(m, e) for m, e in zip(made, expected, strict=True)) < TOLERANCE
        for party in program.parties:
            for receiver, value in zip(outputs, learned[party], strict=True):
                assert (value is not None) == (receiver in (party, "all")), f"{party} and output to {receiver}"


def test_one_name_for_all_outputs(mixed, learned):
    model, inputs, _ = mixed
    run(securemodel.compile(model, inputs, weights="a", inputs=("b", "a"), outputs="b"), *inputs)
    assert [v is None for v in learned["a"]] == [True, True] and [v is None for v in learned["b"]] == [False, False]


def test_everything_of_one_party_for_another():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval(), torch.randn(3, 4)
    for outputs in ("a", "b", "all"):
        program = securemodel.compile(model, x, weights="b", inputs="b", outputs=outputs, parties=("a", "b"))
        assert not any(n.op == "bilinear" for n in program.graph.nodes), "b computes alone and in the clear"
        assert difference(run(program, x)[0], model(x)) < TOLERANCE


def test_what_comes_in_goes_out():
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return x, self.weight, self.weight * 2, torch.ones(3), (x * self.weight), (x * self.weight)

    model, x = Passes(), torch.randn(3, 2)
    made = run(securemodel.compile(model, x, **{**TWO, "outputs": "all"}), x)
    with torch.no_grad():
        assert max(difference(m, e) for m, e in zip(made, tensors(model(x)), strict=True)) < TOLERANCE


def test_inputs_that_nobody_reads():
    x, y = torch.randn(3, 2), torch.randn(3, 5)
    program = securemodel.compile(Fn(lambda x, y: x * 2), (x, y), weights="a", inputs=("a", "b"), outputs="b")
    assert difference(run(program, x, y)[0], x * 2) < TOLERANCE


def test_whole_numbers_stay_whole():
    x, y = torch.tensor([1, -2, (1 << 29) + 1]), torch.tensor([4, 5, -((1 << 29) - 3)])

    def function(x, y):
        return x * y, x - y, x.flip(0) + 6, (x - y) * torch.tensor([1, 2, 3]), x > y, 1 - (x + y)

    program = securemodel.compile(Fn(function), (x, y), weights="a", inputs=("a", "b"), outputs="all")
    for made, expected in zip(run(program, x, y), function(x, y), strict=True):
        assert made.dtype == expected.dtype and torch.equal(made, expected)


def test_tied_weights():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 4)
            self.down = self.up

        def forward(self, x):
            return self.down(torch.relu(self.up(x)))

    model, x = Tied().eval(), torch.randn(3, 4)
    assert difference(run(securemodel.compile(model, x, **TWO), x)[0], model(x)) < TOLERANCE


@pytest.mark.parametrize(
    "frac_bits, width, tolerance", [(8, 64, 0.1), (12, 32, 2.0**-6), (24, 64, 2.0**-18), (16, 24, 2.0**-10)]
)
def test_other_precisions(frac_bits, width, tolerance):
    torch.manual_seed(8)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(5, 4)
    program = securemodel.compile(model, x, **TWO, frac_bits=frac_bits, width=width)
    assert difference(run(program, x)[0], model(x)) < tolerance


def test_inputs_with_different_numbers_of_rows():
    x, y = torch.randn(3, 5), torch.randn(5, 2)
    program = securemodel.compile(Fn(torch.matmul), (x, y), weights="a", inputs=("a", "b"), outputs="b")
    assert difference(run(program, x, y)[0], x @ y) < TOLERANCE


def test_inputs_without_axes():
    x, y = torch.tensor(2.0), torch.tensor(-3.0)
    program = securemodel.compile(Fn(torch.mul), (x, y), weights="a", inputs=("a", "b"), outputs="b")
    assert difference(run(program, x, y)[0], x * y) < TOLERANCE


def test_the_same_example_for_two_inputs():
    example, x, y = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    program = securemodel.compile(
        Fn(lambda x, y: x - 2 * y), (example, example), weights="a", inputs=("a", "b"), outputs="b"
    )
    assert difference(run(program, x, y)[0], x - 2 * y) < TOLERANCE


def test_results_without_elements():
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    program = securemodel.compile(Fn(lambda x, y: (x + y)[:, 4:]), (x, y), weights="a", inputs=("a", "b"), outputs="b")
    assert run(program, x, y)[0].shape == (3, 0)


@pytest.mark.parametrize("changes", [{"weights": "all"}, {"inputs": "all"}, {"parties": ("a", "b", "2c")}], ids=str)
def test_names_that_mean_nothing_here(changes):
    with pytest.raises(securemodel.SecureModelError):
        securemodel.compile(nn.Linear(4, 2), torch.randn(3, 4), **{**TWO, "parties": ("a", "b"), **changes})


@pytest.mark.parametrize("made, text", [("text", "returns a str: return tensors"), (None, "returns no tensor")])
def test_outputs_that_are_no_tensors(made, text):
    with pytest.raises(securemodel.SecureModelError, match=text):
        securemodel.compile(Fn(lambda x: (made,)), torch.randn(3, 4), **TWO)


def test_public_outputs_are_for_all():
    x = torch.randn(3, 4)
    both = [securemodel.compile(nn.Linear(4, 2), x, **{**TWO, "outputs": to}) for to in ("public", "all")]
    assert both[0].header == both[1].header
