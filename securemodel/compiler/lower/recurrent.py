"""LSTM, GRU and plain recurrent layers, unrolled over the steps.

The inputs of all steps are multiplied at once; the gates of one step share their openings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.layers import linear
from securemodel.compiler.lower.layout import select
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.smooth import sigmoid, tanh

aten = torch.ops.aten

State = tuple[Value, ...]
Cell = Callable[[Builder, Value, Value, State], State]


def _chunks(g: Builder, x: Value, count: int) -> list[Value]:
    size = x.shape[-1] // count
    return [g.slice(x, x.ndim - 1, i * size, (i + 1) * size) for i in range(count)]


def _lstm_cell(g: Builder, given: Value, recurrent: Value, state: State) -> State:
    """i, f, o = sigmoid; c' = f c + i tanh(.); h' = o tanh(c')."""
    size = given.shape[-1] // 4
    total = g.add(given, recurrent)
    opened = sigmoid(g, g.linear("cat", g.slice(total, 1, 0, 2 * size), g.slice(total, 1, 3 * size, 4 * size), dim=1))
    candidate = tanh(g, g.slice(total, 1, 2 * size, 3 * size))
    i, f, o = _chunks(g, opened, 3)
    cell = g.rescale(g.add(g.mul(f, state[1]), g.mul(i, candidate)))
    return g.rescale(g.mul(o, tanh(g, cell))), cell


def _gru_cell(g: Builder, given: Value, recurrent: Value, state: State) -> State:
    """r, z = sigmoid; n = tanh(given + r recurrent); h' = n + z (h - n)."""
    (new,), size = state, given.shape[-1] // 3
    gates = sigmoid(g, g.add(g.slice(given, 1, 0, 2 * size), g.slice(recurrent, 1, 0, 2 * size)))
    r, z = _chunks(g, gates, 2)
    inner = g.mul(r, g.rescale(g.slice(recurrent, 1, 2 * size, 3 * size)))
    candidate = tanh(g, g.add(g.slice(given, 1, 2 * size, 3 * size), inner))
    return (g.rescale(g.add(candidate, g.mul(z, g.sub(new, candidate)))),)


def _rnn_tanh_cell(g: Builder, given: Value, recurrent: Value, state: State) -> State:
    return (tanh(g, g.add(given, recurrent)),)


def _rnn_relu_cell(g: Builder, given: Value, recurrent: Value, state: State) -> State:
    return (g.relu(g.add(given, recurrent)),)


def _direction(g: Builder, cell: Cell, x: Value, state: State, weights: Sequence[Value], backward: bool):
    """One layer in one direction over x [steps, batch, features]; returns (outputs of all steps, last state).

    `weights`: of the input and of the state, their biases, and a projection of the new state, as far as there are any.
    """
    projection = weights[-1] if len(weights) % 2 else None
    biases = weights[2:4] if len(weights) > 3 else (None, None)
    given = linear(g, x, weights[0], biases[0])
    order = range(x.shape[0])
    outputs: dict[int, Value] = {}
    for step in reversed(order) if backward else order:
        recurrent = linear(g, state[0], weights[1], biases[1])
        state = cell(g, select(g, given, 0, step), recurrent, state)
        if projection is not None:
            state = (g.rescale(linear(g, state[0], projection)), *state[1:])
        outputs[step] = g.reshape(state[0], (1, *state[0].shape))
    return g.linear("cat", *[outputs[step] for step in order], dim=0), state


def _layers(g: Builder, cell: Cell, x: Value, states: Sequence[Value], params, layers, bidirectional, first):
    if x.ndim != 3:
        raise CannotLower("a sequence without a batch axis", "give it one: x.unsqueeze(1), or (0) with batch_first")
    x = g.linear("permute", x, dims=[1, 0, 2]) if first else x
    directions = 1 + bidirectional
    per = len(params) // (layers * directions)
    last: list[State] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            state = tuple(select(g, s, 0, at) for s in states)
            made, end = _direction(g, cell, x, state, params[at * per : (at + 1) * per], direction == 1)
            outputs.append(made)
            last.append(end)
        x = g.linear("cat", *outputs, dim=2) if bidirectional else outputs[0]
    ends = [
        g.linear("cat", *[g.reshape(end[i], (1, *end[i].shape)) for end in last], dim=0) for i in range(len(states))
    ]
    return (g.linear("permute", x, dims=[1, 0, 2]) if first else x, *ends)


@lowers(aten.lstm.input)
def lstm(g: Builder, x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """LSTM (Hochreiter and Schmidhuber 1997): several layers, both directions."""
    return _layers(g, _lstm_cell, x, hx, params, num_layers, bidirectional, batch_first)


@lowers(aten.gru.input)
def gru(g: Builder, x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """GRU (Cho et al. 2014): several layers, both directions."""
    return _layers(g, _gru_cell, x, [hx], params, num_layers, bidirectional, batch_first)


@lowers(aten.rnn_tanh.input)
def rnn_tanh(g: Builder, x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """Recurrent layers with tanh."""
    return _layers(g, _rnn_tanh_cell, x, [hx], params, num_layers, bidirectional, batch_first)


@lowers(aten.rnn_relu.input)
def rnn_relu(g: Builder, x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    """Recurrent layers with ReLU."""
    return _layers(g, _rnn_relu_cell, x, [hx], params, num_layers, bidirectional, batch_first)
