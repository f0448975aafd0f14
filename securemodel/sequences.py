"""Recurrent layers over sequences of different lengths, in a form that torch.export can follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_STEPS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
State = tuple[torch.Tensor, ...]


def recurrent(
    layer: nn.RNNBase, x: torch.Tensor, lengths: torch.Tensor, state: torch.Tensor | State | None = None
) -> tuple[torch.Tensor, torch.Tensor | State]:
    """What nn.LSTM, nn.GRU or nn.RNN gives for sequences of these lengths: (outputs, last state).

    The same as packing (pack_padded_sequence), running and padding with `total_length` of all steps, which torch.export
    cannot capture: outputs past a sequence's end are 0, and its last state is that of its last step.
    x: [batch, steps, features] with batch_first, else [steps, batch, features]; lengths: whole numbers, [batch].
    Public lengths cost nothing; those of one party cost a product at each step.
    """
    x = x.transpose(0, 1) if layer.batch_first else x
    there = torch.arange(x.shape[0], device=x.device).unsqueeze(1) < lengths.to(x.device)
    there = there.unsqueeze(2)
    directions, last = 1 + layer.bidirectional, []
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            at = number * directions + direction
            made, end = _direction(layer, at, x, there, _initial(layer, at, x, state))
            outputs.append(made)
            last.append(end)
        x = torch.cat(outputs, 2)
    ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return x.transpose(0, 1) if layer.batch_first else x, ends if layer.mode == "LSTM" else ends[0]


def _initial(layer: nn.RNNBase, at: int, x: torch.Tensor, state: torch.Tensor | State | None) -> State:
    if state is not None:
        return tuple(part[at] for part in (state if isinstance(state, tuple) else (state,)))
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size) if layer.mode == "LSTM" else (layer.hidden_size,)
    return tuple(x.new_zeros(x.shape[1], size) for size in sizes)


def _direction(
    layer: nn.RNNBase, at: int, x: torch.Tensor, there: torch.Tensor, state: State
) -> tuple[torch.Tensor, State]:
    """One layer in one direction; a state stays as it is where a sequence has no such step."""
    order = range(x.shape[0])
    outputs: dict[int, torch.Tensor] = {}
    backward = layer.bidirectional and at % 2 == 1
    for step in reversed(order) if backward else order:
        parts = tuple(part.unsqueeze(0) for part in state)
        given = parts if layer.mode == "LSTM" else parts[0]
        weights = layer.all_weights[at]
        _, *made = _STEPS[layer.mode](x[step : step + 1], given, weights, layer.bias, 1, 0.0, False, False, False)
        state = tuple(torch.where(there[step], new[0], old) for new, old in zip(made, state, strict=True))
        outputs[step] = state[0] * there[step]
    return torch.stack([outputs[step] for step in order]), state
