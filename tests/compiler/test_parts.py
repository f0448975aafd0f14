"""Models whose parts belong to different owners."""

import pytest
import torch
from running import TOLERANCE, difference, run
from torch import nn

import securemodel
from securemodel.compiler.ir import program_text
from securemodel.compiler.owners import owner_of
from securemodel.compiler.reading import parse_program
from securemodel.errors import CompileError, ProgramError


class Parts(nn.Module):
    """An encoder, a head, and a vector that meets both before any input is there."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 3)
        self.query = nn.Parameter(torch.randn(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x)) + torch.relu(self.head(self.encoder(self.query)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(9)
    return Parts().eval()


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))


def compiled(model, weights, **changes):
    return securemodel.compile(model, X, **{"weights": weights, "inputs": "hospital", "outputs": "hospital", **changes})


@pytest.mark.parametrize(
    "weights, parties",
    [
        ({"encoder": "lab", "head": "bank", "query": "hospital"}, ("lab", "bank", "hospital")),
        ({"": "bank", "encoder": "lab"}, ("bank", "lab", "hospital")),
        ({"encoder": "public", "": "bank"}, ("bank", "hospital")),
        ({"encoder.0": "lab", "encoder": "bank", "encoder.1.running_mean": "bank", "": "hospital"}, None),
        ({"encoder": "hospital", "": "bank"}, ("hospital", "bank")),
        ({"": "bank"}, ("bank", "hospital")),
    ],
)
def test_every_owner_gives_its_part(model, weights, parties):
    program = compiled(model, weights)
    assert parties is None or program.parties == parties
    with torch.no_grad():
        assert difference(run(program, X)[0], model(X)) < TOLERANCE
    owners = {n.attrs["name"][6:]: n.owner for n in program.graph.nodes if n.attrs.get("name", "").startswith("state:")}
    assert {name: owner_of(program.header.weights, name) for name in owners} == owners


def test_two_runs_after_one_load(model):
    """What both parts compute before the inputs are there serves every run."""
    program = compiled(model, {"encoder": "lab", "": "bank"})
    with torch.no_grad(), securemodel.local(program) as session:
        for factor in (1, -2):
            assert difference(session.run(factor * X), model(factor * X)) < TOLERANCE
    assert program.plan().load.rounds > 1


def test_the_longest_prefix_counts():
    weights = (("encoder", "a"), ("encoder.0", "b"), ("encoder.0.weight", "c"), ("", "d"))
    found = [owner_of(weights, name) for name in ("encoder.1.bias", "encoder.0.bias", "encoder.0.weight")]
    assert found == ["a", "b", "c"]
    assert owner_of(weights, "encoder.01.bias") == "a" and owner_of(weights, "encoders.bias") == "d"
    assert owner_of(weights[:1], "encoders.bias") is None


def test_text_is_read_back(model):
    program = compiled(model, {"encoder": "lab", "": "bank"})
    header, graph = parse_program(program.text())
    assert header == program.header and program_text(header, graph) == program.text()
    assert header.weights == (("encoder", "lab"), ("", "bank"))
    assert '"weights":"bank"' in compiled(model, "bank").text()


@pytest.mark.parametrize("field", ['["bank"]', '[["","bank",""]]', '[["",3]]', "3", "null"])
def test_damaged_owners_are_refused(model, field):
    text = compiled(model, "bank").text().replace('"weights":"bank"', f'"weights":{field}')
    with pytest.raises(ProgramError, match="damaged"):
        parse_program(text)


@pytest.mark.parametrize(
    "weights, says",
    [
        ({"encoder": "lab"}, "no owner of 'query', 'head.weight', 'head.bias'"),
        ({}, "no owner of 'query'.* and 7 more|no owner of 'query'"),
        ({"": "bank", "enc": "lab"}, "prefix 'enc', but no parameter .* begin with 'query', 'encoder', 'head'"),
        ({"": "bank", "encoder.": "lab"}, "prefix 'encoder.'"),
        ({"": 3}, "neither the name"),
        (["bank"], "neither the name"),
        ({"": "bank", "head": "dealer"}, "bad party names 'dealer'"),
    ],
)
def test_what_is_not_covered_is_named(model, weights, says):
    with pytest.raises(CompileError, match=says):
        compiled(model, weights)


def test_one_tensor_has_one_owner():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)
            self.down.weight = self.up.weight

        def forward(self, x):
            return self.down(torch.relu(self.up(x)))

    tied = Tied().eval()
    with pytest.raises(CompileError, match="'up.weight' and 'down.weight' are one tensor"):
        compiled(tied, {"up": "lab", "down": "bank"})
    program = compiled(tied, {"up": "lab", "down": "bank", "down.weight": "lab"})
    with torch.no_grad():
        assert difference(run(program, X)[0], tied(X)) < TOLERANCE
