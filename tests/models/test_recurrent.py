"""LSTM, GRU and RNN layers give what torch gives: layers, directions, layouts, states and lengths."""

import pytest
import torch
from both import THREE, TWO, Model, difference
from torch import nn

import securemodel
from securemodel.sequences import recurrent

BOUND = 2.0**-12
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "everything": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
CASES = [
    *(pytest.param(KINDS[kind], OPTIONS[name], id=f"{kind}, {name}") for kind in KINDS for name in OPTIONS),
    pytest.param(nn.RNN, {"nonlinearity": "relu", "bidirectional": True}, id="rnn, relu"),
    pytest.param(nn.LSTM, {"proj_size": 2, "num_layers": 2}, id="lstm, projected"),
]


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(8)


@pytest.mark.parametrize("kind, options", CASES)
def test_a_layer(kind, options):
    assert difference(kind(5, 4, **options), (torch.randn(3, 2, 5),)) < BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_among_three_parties(kind):
    assert difference(KINDS[kind](5, 4, batch_first=True), (torch.randn(2, 3, 5),), THREE) < BOUND


@pytest.mark.parametrize("owner", ["a", "b", "public"])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_states(kind, owner):
    layer = KINDS[kind](5, 4, 2, bidirectional=True)
    states = [torch.randn(4, 2, 4) for _ in range(2 if kind == "lstm" else 1)]
    settings = {**TWO, "inputs": ("b", *[owner] * len(states))}
    model = Model(layer, lambda layer, x, *given: layer(x, given if len(given) > 1 else given[0]))
    assert difference(model, (torch.randn(3, 2, 5), *states), settings) < BOUND


def packed(layer: nn.RNNBase, x: torch.Tensor, lengths: torch.Tensor, state=None):
    """torch's own way."""
    steps = x.shape[1 if layer.batch_first else 0]
    given = nn.utils.rnn.pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted=False)
    made, end = layer(given, state)
    return nn.utils.rnn.pad_packed_sequence(made, layer.batch_first, total_length=steps)[0], end


def flat(made) -> list[torch.Tensor]:
    return securemodel.compiler.capture.tensors_in(made)


@pytest.mark.parametrize("kind, options", CASES)
def test_lengths_in_the_clear(kind, options):
    layer, lengths = kind(5, 4, **options), torch.tensor([2, 4, 1])
    x = torch.randn(3, 4, 5) if layer.batch_first else torch.randn(4, 3, 5)
    for made, right in zip(flat(recurrent(layer, x, lengths)), flat(packed(layer, x, lengths)), strict=True):
        torch.testing.assert_close(made, right)


@pytest.mark.parametrize("owner", ["public", "b", "a"])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind, owner):
    layer = KINDS[kind](5, 4, bidirectional=True, batch_first=True)
    given = (torch.randn(3, 4, 5), torch.tensor([2, 4, 1]))
    assert difference(Model(layer, recurrent), given, {**TWO, "inputs": ("b", owner)}) < BOUND


def test_lengths_and_initial_states():
    layer, x, lengths = nn.LSTM(5, 4, 2, batch_first=True), torch.randn(3, 4, 5), torch.tensor([3, 4, 2])
    states = (torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    model = Model(layer, lambda layer, x, lengths, *given: recurrent(layer, x, lengths, given))
    for made, right in zip(flat(model(x, lengths, *states)), flat(packed(layer, x, lengths, states)), strict=True):
        torch.testing.assert_close(made, right)
    assert difference(model, (x, lengths, *states), {**TWO, "inputs": ("b", "public", "b", "a")}) < BOUND


def test_public_lengths_cost_no_round():
    layer, x, lengths = nn.GRU(5, 4, batch_first=True), torch.randn(3, 4, 5), torch.tensor([3, 4, 2])
    with_lengths = securemodel.compile(Model(layer, recurrent), (x, lengths), **{**TWO, "inputs": ("b", "public")})
    assert with_lengths.plan().rounds == securemodel.compile(layer, x, **TWO).plan().rounds


def test_packing_itself_cannot_be_captured_and_the_error_says_what_to_do():
    given = (torch.randn(3, 4, 5), torch.tensor([3, 4, 2]))
    with pytest.raises(securemodel.SecureModelError, match="for packed sequences use securemodel.sequences.recurrent"):
        securemodel.compile(Model(nn.GRU(5, 4, batch_first=True), packed), given, **TWO)
