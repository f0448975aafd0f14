"""Models of the sizes that GPUs are measured with, from plain PyTorch and with random weights; each also in small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.models import VGG16_PLAN, Residual


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm and a shortcut, four times as wide at the end (He et al. 2015)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        shapes = ((channels, width, 1, 1, 0), (width, width, 3, stride, 1), (width, 4 * width, 1, 1, 0))
        self.convolutions = nn.ModuleList(nn.Conv2d(*shape, bias=False) for shape in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(shape[1]) for shape in shapes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != 4 * width:
            reduced = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(reduced, nn.BatchNorm2d(4 * width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for at, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(y))
            y = torch.relu(y) if at < 2 else y
        return torch.relu(y + self.shortcut(x))


def resnet(blocks: tuple[int, ...], bottleneck: bool, width: int = 64, classes: int = 1000) -> nn.Module:
    """ResNet for images: ResNet-18 has (2, 2, 2, 2) plain blocks, ResNet-50 (3, 4, 6, 3) bottlenecks."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = width
    for stage, count in enumerate(blocks):
        now = width << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(channels, now, stride) if bottleneck else Residual(channels, now, stride))
            channels = 4 * now if bottleneck else now
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def vgg16(side: int, hidden: int, classes: int, plan: tuple[int, ...] = VGG16_PLAN) -> nn.Module:
    """VGG16 for square images: `plan` has channels of convolutions, 0 for a pool."""
    layers: list[nn.Module] = []
    channels = 3
    for width in plan:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        channels = width or channels
    inner = channels * (side >> plan.count(0)) ** 2
    head = [nn.Linear(inner, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    model = nn.Sequential(*layers, nn.Flatten(), *head)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return model


def encoder(layers: int, width: int, heads: int) -> nn.Module:
    """BERT's layers, from embedded tokens on."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True)
    inner = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return nn.Sequential(nn.LayerNorm(width, eps=1e-12), inner)


class DecoderLayer(nn.Module):
    """A layer of GPT-2: each token attends to those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attended, self.projected = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.attended(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.projected(mixed)
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))


def decoder(layers: int, width: int, heads: int) -> nn.Module:
    """GPT-2's layers, from embedded tokens on."""
    return nn.Sequential(*(DecoderLayer(width, heads) for _ in range(layers)), nn.LayerNorm(width))
