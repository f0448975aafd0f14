"""What is measured on a GPU: functions, models and training steps, large ones, and as many small ones for a dry run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import models as known
from benchmarks.cases import PARTIES, Case
from benchmarks.gpu import models
from benchmarks.measure import compiled
from benchmarks.steps import StepCase, Training, step_program
from securemodel import Program

Work = Case | StepCase
Make = Callable[[str], Work]


def _case(make: Callable[[], nn.Module], *shapes: tuple[int, ...], inputs=PARTIES[1:], draw=torch.randn) -> Make:
    """A model with seeded weights on seeded inputs of 16 fractional bits."""

    def build() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        torch.manual_seed(0)  # benchmark data, not protocol randomness
        model = make().eval()
        return model, tuple((draw(*shape) * 2**16).round() / 2**16 for shape in shapes)

    return lambda name: Case(name, build, inputs)


def _relu(elements: int) -> Make:
    return _case(lambda: known.WithParameter(torch.relu), (elements,))


def _matmul(side: int) -> Make:
    return _case(lambda: known.Operator(torch.matmul), (side, side), (side, side), inputs=PARTIES)


def _image(make: Callable[[], nn.Module], side: int) -> Make:
    return _case(make, (1, 3, side, side), draw=torch.rand)


def _tokens(make: Callable[[], nn.Module], count: int, width: int) -> Make:
    return _case(make, (1, count, width))


def _training(make: Callable[[], nn.Module], *shape: int) -> Make:
    """A step of stochastic gradient descent on images of ten classes."""

    def build() -> Training:
        torch.manual_seed(0)
        model = make()
        batch = torch.rand(shape), torch.randint(10, shape[:1])
        return Training(model, torch.optim.SGD(model.parameters(), lr=0.05), F.cross_entropy, batch)

    return lambda name: StepCase(name, build)


_PLAN = (4, 0, 4, 0)
_ROWS: dict[str, tuple[str, Make, Make]] = {
    "relu_2^20": ("functions", _relu(1 << 20), _relu(300)),
    "matmul1024": ("functions", _matmul(1024), _matmul(16)),
    "relu_2^24": ("functions", _relu(1 << 24), _relu(500)),
    "matmul4096": ("functions", _matmul(4096), _matmul(20)),
    "encoder_layer": ("models", _tokens(known.encoder_layer, 32, 384), _tokens(lambda: models.encoder(1, 8, 2), 4, 8)),
    "resnet18_cifar": ("models", _image(known.resnet18_cifar, 32), _image(lambda: models.resnet((1,), False, 4, 10), 12)),
    "vgg16_cifar": ("models", _image(known.vgg16_cifar, 32), _image(lambda: models.vgg16(8, 8, 10, _PLAN), 8)),
    "minilm6": ("models", _tokens(known.minilm6, 32, 384), _tokens(lambda: models.encoder(1, 8, 2), 3, 8)),
    "bert_base_128": ("models", _tokens(known.bert_base, 128, 768), _tokens(lambda: models.encoder(1, 8, 2), 5, 8)),
    "gpt2_128": ("models", _tokens(lambda: models.decoder(12, 768, 12), 128, 768),
                 _tokens(lambda: models.decoder(1, 8, 2), 4, 8)),
    "lenet5_train_b128": ("models", _training(known.lenet5, 128, 1, 28, 28),
                          _training(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 10)), 2, 1, 4, 4)),
    "vgg16_cifar_train_b8": ("models", _training(known.vgg16_cifar, 8, 3, 32, 32),
                             _training(lambda: models.vgg16(4, 4, 10, (2, 0)), 2, 3, 4, 4)),
    "resnet18_224": ("models", _image(lambda: models.resnet((2, 2, 2, 2), False), 224),
                     _image(lambda: models.resnet((1, 1), False, 2, 10), 16)),
    "resnet50_224": ("models", _image(lambda: models.resnet((3, 4, 6, 3), True), 224),
                     _image(lambda: models.resnet((1,), True, 2, 10), 12)),
    "vgg16_224": ("models", _image(lambda: models.vgg16(224, 4096, 1000), 224),
                  _image(lambda: models.vgg16(8, 4, 10, _PLAN), 8)),
}  # fmt: skip
"""By name, from the quick to the slow: where it belongs, and how it is made in large and in known."""

BETWEEN = ("relu_2^20", "encoder_layer", "resnet18_cifar", "bert_base_128")
"""What is measured between processes and threads, too."""


def named(name: str, dry: bool) -> Work:
    """The work of this name; with a dry run, the small one."""
    _, large, small = _ROWS[name]
    return (small if dry else large)(name)


def names(kind: str) -> tuple[str, ...]:
    """All "functions" or all "models"."""
    return tuple(name for name, row in _ROWS.items() if row[0] == kind)


def program_of(work: Work) -> tuple[Program, Sequence[torch.Tensor]]:
    """The program of a case, or of a training step that takes its batch as inputs, and the inputs of a run."""
    if isinstance(work, StepCase):
        return step_program(work, PARTIES, "exact", resident=False)
    return compiled(work, "plain")
