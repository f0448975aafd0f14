"""Image classifiers in plain PyTorch with random weights whose activations stay of order one.

Convolutions and linear layers are initialized after He et al. 2015; batch norms then take the statistics of
random images, as training would leave them.
"""

from __future__ import annotations

import torch
from torch import nn


def lenet5() -> nn.Module:
    """LeNet-5 with ReLU and max pooling, [N,1,28,28] -> [N,10]."""
    return _initialized(
        nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
        )
    )  # fmt: skip


def alexnet_cifar10() -> nn.Module:
    """AlexNet fitted to 32x32 images as the MPC papers have it, [N,3,32,32] -> [N,10]."""
    return _initialized(
        nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4, padding=9), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10),
        )
    )  # fmt: skip


def vgg16_cifar10() -> nn.Module:
    """The convolutions of VGG16 and a small head, [N,3,32,32] -> [N,10]."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return _initialized(nn.Sequential(*layers, *head))


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    widening = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the 3x3 one has the stride."""

    widening = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width),
        )  # fmt: skip
        self.shortcut = _shortcut(channels, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


def _resnet(block: type[nn.Module], counts: tuple[int, ...], classes: int, small_images: bool) -> nn.Module:
    if small_images:
        stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    else:
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks: list[nn.Module] = []
    channels = 64
    for stage, count in enumerate(counts):
        for index in range(count):
            blocks.append(block(channels, 64 << stage, 2 if stage and not index else 1))
            channels = (64 << stage) * block.widening
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return _initialized(nn.Sequential(*stem, *blocks, *head))


def resnet18_cifar10() -> nn.Module:
    """ResNet-18 with a 3x3 stem, [N,3,32,32] -> [N,10]."""
    return _resnet(Basic, (2, 2, 2, 2), 10, small_images=True)


def resnet18() -> nn.Module:
    """ResNet-18, [N,3,224,224] -> [N,1000]."""
    return _resnet(Basic, (2, 2, 2, 2), 1000, small_images=False)


def resnet50() -> nn.Module:
    """ResNet-50, [N,3,224,224] -> [N,1000]."""
    return _resnet(Bottleneck, (3, 4, 6, 3), 1000, small_images=False)


def _initialized(model: nn.Module) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = None  # statistics become those of the one batch below
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()
