"""Plain PyTorch models of the benchmark cases, with random weights."""

from __future__ import annotations

import torch
from torch import nn

VGG16_PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


def mlp() -> nn.Module:
    """784-128-128-10 with ReLU (network A of SecureML, Mohassel and Zhang 2017)."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def lenet5() -> nn.Module:
    """LeNet-5 for 28x28 images, with max pooling."""
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), *head)


def vgg16_cifar() -> nn.Module:
    """The thirteen convolutions of VGG16 on 32x32 images, five max pools, 256-256-10."""
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16_PLAN:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = nn.Sequential(*layers, nn.Flatten(), *head)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return model


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second_norm(self.second(torch.relu(self.first_norm(self.first(x)))))
        return torch.relu(y + self.shortcut(x))


def resnet18_cifar() -> nn.Module:
    """ResNet-18 with a 3x3 stem for 32x32 images and 10 classes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            layers.append(Residual(channels, width, 2 if stage and not block else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class WithParameter(nn.Module):
    """An operator on a client's value plus a parameter: the sum is secret to everybody."""

    def __init__(self, operator, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))
        self.operator = operator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operator(x + self.shift)


class Sequence(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def encoder_layer() -> nn.Module:
    """One layer of a BERT-like encoder: hidden 384, 12 heads, feed-forward 1536, GELU."""
    return nn.TransformerEncoderLayer(384, 12, 1536, activation="gelu", batch_first=True)


def minilm6() -> nn.Module:
    """Six such layers, as MiniLM-L6 has them, with random weights."""
    return nn.TransformerEncoder(encoder_layer(), 6, enable_nested_tensor=False)


def bert_base() -> nn.Module:
    """BERT-base from embedded tokens on: their normalization and twelve layers, with random weights."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True)
    return nn.Sequential(nn.LayerNorm(768, eps=1e-12), nn.TransformerEncoder(layer, 12, enable_nested_tensor=False))


class Operator(nn.Module):
    """A function of inputs only."""

    def __init__(self, operator) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.operator(*inputs)


class RecurrentClassifier(nn.Module):
    """Classes of sequences from the last output of an LSTM (40 features, 128 hidden)."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(40, 128, batch_first=True), nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(x)[0][:, -1])


class EncoderClassifier(nn.Module):
    """Classes of token sequences from two encoder layers (hidden 64, 4 heads, 128 inside, GELU, 64 tokens known)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(64, 64), nn.Parameter(0.1 * torch.randn(32, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(tokens) + self.positions).mean(1))


def forest(trees: int = 100, depth: int = 6, columns: int = 20) -> nn.Module:
    """A forest of full trees with one output, each condition on a column and a threshold of its own."""
    from securemodel.models.forest import Trees
    from securemodel.models.sources import code_less

    made, inner = Trees(1, single=True), 2**depth - 1
    for _ in range(trees):
        reads = torch.randint(columns, (inner,)).tolist()
        codes, leaves = code_less(torch.randn(inner).numpy()), torch.randn(inner + 1).double().numpy()
        split = lambda node, reads=reads, codes=codes: (
            None if node >= inner else (made.number(reads[node], codes[node]), 2 * node + 1, 2 * node + 2)
        )
        made.add(split, lambda node, leaves=leaves: leaves[node - inner : node - inner + 1])
    return made.module([range(columns)], 1 / trees)
