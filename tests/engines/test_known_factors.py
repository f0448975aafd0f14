"""Products whose second operand one party knows: one product at each party and the dealer, and the same result."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

import securemodel
from protocols.bilinear import bilinear
from protocols.gates import bilinear as gate
from securemodel.engines.masked.dealing import ALL, masks_needed
from securemodel.engines.masked.masks import known_factors

PARTIES = ("a", "b", "c")


class InputByInput(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y.T


class Both(nn.Module):
    """What is multiplied is also compared: the dealer needs its mask with and without the owner's share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        middle = torch.relu(self.first(x * y))
        return torch.relu(middle) + self.second(middle)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.layers((x + y).reshape(-1, 1, 4, 4))


CASES = {
    "both": (Both, (3, 4)),
    "convolution": (Conv, (2, 16)),
    "input by input": (InputByInput, (3, 4)),
}


def compiled(case: str, parties: tuple[str, ...], owner: str, inputs: tuple[str, str]):
    make, shape = CASES[case]
    torch.manual_seed(0)
    model = make()
    x, y = (torch.randint(-64, 64, shape) / 32 for _ in range(2))
    settings = {"weights": owner, "inputs": inputs, "outputs": "all", "parties": parties}
    return securemodel.compile(model, (x, y), **settings), model, (x, y)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_results_are_those_of_torch_whoever_knows_the_factor(case, count, rank):
    parties = PARTIES[:count]
    program, model, inputs = compiled(case, parties, parties[rank], (parties[-1], parties[0]))
    assert known_factors(program.graph, parties)
    with securemodel.local(program) as session:
        for _ in range(2):
            torch.testing.assert_close(session.run(*inputs), model(*inputs).detach(), rtol=0, atol=2**-9)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_party_and_the_dealer_make_one_product(rank):
    program, _, inputs = compiled("both", PARTIES[:2], PARTIES[rank], ("a", "b"))
    made = []

    def counting(*args, **rest):
        made.append(args)
        return bilinear(*args, **rest)

    with securemodel.local(program) as session:
        session.run(*inputs)
        with patch.object(gate, "bilinear", counting):
            session.run(*inputs)
    layers = [kind for kind, *_ in made if kind == "matmul"]
    assert len(layers) == 2 * 3  # two layers


def test_who_knows_which_factor():
    program, _, _ = compiled("both", PARTIES, "b", ("a", "c"))
    graph, known = program.graph, known_factors(program.graph, PARTIES)
    products = [n for n in graph.nodes if n.op == "bilinear"]
    weights = [n.id for n in products if graph[n.args[1]].phase == "load"]
    assert len(weights) == 2 and all(known[i] == "b" for i in weights)
    (inputs,) = (n for n in products if n.id not in weights)
    assert known[inputs.id] == graph[inputs.args[1]].owner


def test_only_masks_that_are_read_are_made():
    program, _, _ = compiled("both", PARTIES[:2], "a", ("a", "b"))
    graph, known = program.graph, known_factors(program.graph, PARTIES[:2])
    needed = masks_needed(graph, known)
    for node in graph.nodes:
        if node.op == "bilinear" and graph[node.args[1]].phase == "load":
            assert "a" in needed[node.args[0]]
    first, second = (n.args[0] for n in graph.nodes if n.op == "bilinear" and graph[n.args[1]].phase == "load")
    assert needed[first] == {"a"} and needed[second] >= {"a"}
    assert all(needed[n.id] == set() for n in graph.nodes if n.form == "additive" and n.op != "lookup")
    assert any(needed[n.id] == {ALL} for n in graph.nodes)


def test_what_all_mask_or_one_party_masks_alone_is_left_as_it_is():
    class Fn(nn.Module):
        def forward(self, x, y):
            return torch.relu(x + y) @ torch.relu(x - y).T

    x = torch.ones(3, 4)
    program = securemodel.compile(Fn(), (x, x), weights="a", inputs=("a", "b"), outputs="all", parties=PARTIES[:2])
    assert any(n.op == "bilinear" for n in program.graph.nodes)
    assert not known_factors(program.graph, PARTIES[:2])
