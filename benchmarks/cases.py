"""The cases: what is computed, on which inputs, owned by whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks import evaluation, models, steps
from benchmarks.peers.common import FUNCTION_ELEMENTS, FUNCTIONS

PARTIES = ("alice", "bob")
_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Case:
    """One measurement. `build` gives the model and its inputs, seeded; alice owns weights, `inputs` the inputs.

    `clear` gives what is timed in the clear in place of the model. `items`: images or sequences of a run whose costs are told apart.
    `margin`: that of a program that is tuned on these inputs; 0 for one that is not.
    """

    name: str
    build: Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]
    inputs: tuple[str, ...] = ("bob",)
    width: int = 64
    peer: str | None = None
    clear: Callable[[], Callable[[], None]] | None = None
    items: int = 1
    margin: float = 0.0

    @property
    def peer_name(self) -> str:
        """The case of the same work in benchmarks.peers."""
        return self.peer or self.name


def _representable(x: torch.Tensor) -> torch.Tensor:
    """The nearest values of 16 fractional bits, none of them 0: errors then come from the computation alone."""
    x = (x * 2**16).round()
    return torch.where(x == 0, 1.0, x) / 2**16


def _seeded(make: Callable[[], nn.Module], *shapes: Sequence[int], draw: Callable = torch.randn):
    def build():
        torch.manual_seed(0)  # benchmark data, not protocol randomness
        model = make().eval()
        return model, tuple(_representable(draw(*shape)) for shape in shapes)

    return build


def _sign(x: torch.Tensor) -> torch.Tensor:
    return x > 0


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of columns of two parties, scaled by their owners to mean 0 and deviation 1."""
    return a.T @ b / len(a)


def _case(name: str, make, *shapes, inputs=("bob",), draw=torch.randn, **rest) -> Case:
    return Case(name, _seeded(make, *shapes, draw=draw), inputs, **rest)


_BOTH = ("alice", "bob")
_OPERATORS = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
}


def _function(name: str) -> Case:
    """A function of as many elements, drawn as for the peers."""
    kind, *numbers = FUNCTIONS[name]
    if kind == "normal":
        draw = lambda *shape: torch.randn(shape) * numbers[0]
    else:
        draw = lambda *shape: torch.rand(shape) * (numbers[1] - numbers[0]) + numbers[0]
    return _case(name, lambda: models.WithParameter(_OPERATORS[name]), (FUNCTION_ELEMENTS,), draw=draw)


ALL: tuple[Case | steps.StepCase, ...] = (
    _case("product", lambda: models.Operator(torch.mul), (_ELEMENTS,), (_ELEMENTS,), inputs=_BOTH),
    _case("relu", lambda: models.WithParameter(torch.relu), (_ELEMENTS,)),
    _case("relu_w32", lambda: models.WithParameter(torch.relu), (_ELEMENTS,), width=32, peer="relu"),
    _case("sign", lambda: models.WithParameter(_sign), (_ELEMENTS,)),
    _case("matmul512", lambda: models.Operator(torch.matmul), (512, 512), (512, 512), inputs=_BOTH),
    _case("matmul1024", lambda: models.Operator(torch.matmul), (1024, 1024), (1024, 1024), inputs=_BOTH),
    _case("conv", lambda: nn.Conv2d(64, 64, 3, padding=1, bias=False), (1, 64, 56, 56)),
    _case("maxpool", lambda: models.WithParameter(nn.MaxPool2d(2)), (16, 32, 32, 32)),
    _case("mlp_b128", models.mlp, (128, 784), draw=torch.rand),
    _case("lenet5_b1", models.lenet5, (1, 1, 28, 28), draw=torch.rand),
    _case("lenet5_b32", models.lenet5, (32, 1, 28, 28), draw=torch.rand),
    _case("lenet5_b128", models.lenet5, (128, 1, 28, 28), draw=torch.rand),
    _case("vgg16_b1", models.vgg16_cifar, (1, 3, 32, 32), draw=torch.rand),
    _case("vgg16_b16", models.vgg16_cifar, (16, 3, 32, 32), draw=torch.rand, items=16),
    _case("resnet18_b1", models.resnet18_cifar, (1, 3, 32, 32), draw=torch.rand),
    _case("resnet18_b16", models.resnet18_cifar, (16, 3, 32, 32), draw=torch.rand, items=16),
    *(_function(name) for name in FUNCTIONS),
    _case("softmax", lambda: models.WithParameter(lambda x: torch.softmax(x, 1)), (1000, 128)),
    _case("argmax", lambda: models.WithParameter(lambda x: x.argmax(1)), (10_000, 10)),
    _case("sort", lambda: models.WithParameter(lambda x: x.sort()[0]), (10_000,)),
    _case("correlation", lambda: models.Operator(_correlation), (100_000, 10), (100_000, 10), inputs=_BOTH),
    _case("forest", models.forest, (1000, 20)),
    _case("lstm", lambda: models.Sequence(nn.LSTM(40, 128, batch_first=True)), (16, 20, 40)),
    _case("encoder_layer", models.encoder_layer, (1, 32, 384)),
    _case("minilm6", models.minilm6, (1, 32, 384)),
    _case("bert_base_128", models.bert_base, (1, 128, 768)),
    *(Case(name, build, ("alice", "bob", "bob"), clear=clear) for name, (build, clear) in evaluation.ALL.items()),
    *steps.ALL,
)
_TUNED = {"relu": 4.0, "gelu": 4.0, "softmax": 4.0, "lenet5_b128": 4.0}
ALL += tuple(
    replace(case, name=f"{case.name}_tuned", margin=_TUNED[case.name], peer=case.peer_name)
    for case in ALL
    if isinstance(case, Case) and case.name in _TUNED
)
BY_NAME = {case.name: case for case in ALL}
