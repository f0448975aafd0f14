"""Pooling changes places with the activation before it, and so do their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from securemodel.compiler.lowering import pool_before_activation
from securemodel.training import capture_step

aten = torch.ops.aten


class Network(nn.Module):
    def __init__(self, reads_activation: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)
        self.reads_activation, self.twice = reads_activation, twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = F.relu(self.conv1(x))
        pooled = F.max_pool2d(large, 3 if self.twice else 2, 2)
        more = large.sum((1, 2, 3)) if self.reads_activation else 0
        return F.max_pool2d(F.relu(self.conv2(pooled)), 2).flatten(1).sum(1) + more


def captured_of(**options: bool):
    torch.manual_seed(4)
    model = Network(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return capture_step(step, model, optimizer, (torch.randn(4, 1, 14, 14),)), model


def results(captured, x: torch.Tensor) -> list[torch.Tensor]:
    """The graph's outputs; public numbers of the step are 0.1."""
    module = torch.fx.GraphModule(nn.Module(), captured.captured.graph)
    given = []
    for node in captured.captured.graph.nodes:
        if node.op == "placeholder":
            name = captured.captured.states.get(node.name)
            start = captured.states[name].start if name else torch.tensor(0.1)
            given.append(x if node.name == captured.captured.inputs[0] else start)
    return [out for out in module(*given) if isinstance(out, torch.Tensor)]


def activated(captured) -> list[tuple[int, ...]]:
    kinds = (aten.relu.default, aten.threshold_backward.default)
    return [tuple(n.meta["val"].shape) for n in captured.captured.graph.nodes if n.target in kinds]


@pytest.mark.parametrize("twice", [False, True], ids=["windows apart", "windows that overlap"])
def test_the_results_are_the_same_and_fewer_numbers_are_compared(twice):
    captured, _ = captured_of(twice=twice)
    x = torch.randn(4, 1, 14, 14)
    assert (x[:, :, :5, :5].mul_(0.0) == 0).all(), "windows of equal values, too"
    before, count = results(captured, x), sum(map(torch.Size.numel, map(torch.Size, activated(captured))))
    pool_before_activation(captured.captured.graph)
    captured.captured.graph.lint()
    after = results(captured, x)
    assert len(before) == len(after) and all(map(torch.equal, before, after))
    assert sum(map(torch.Size.numel, map(torch.Size, activated(captured)))) * 3 < count


def test_windows_below_zero_have_no_gradient():
    captured, _ = captured_of()
    with torch.no_grad():
        for name, state in captured.states.items():
            if name.endswith("conv1.bias"):
                state.start.fill_(-100.0)
    pool_before_activation(captured.captured.graph)
    outputs = results(captured, torch.randn(4, 1, 14, 14))
    (place,) = [s.output for name, s in captured.states.items() if name.endswith("conv1.weight")]
    assert torch.equal(outputs[place], next(s.start for n, s in captured.states.items() if n.endswith("conv1.weight")))


def test_an_activation_that_something_else_reads_stays():
    captured, _ = captured_of(reads_activation=True)
    pool_before_activation(captured.captured.graph)
    assert (4, 3, 12, 12) in activated(captured) and (4, 2, 2, 2) in activated(captured)
