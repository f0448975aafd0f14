"""A small DCGAN for handwritten digits (Radford et al., 2016): a generator draws from random vectors, a critic judges."""

from __future__ import annotations

import torch
from torch import nn

LATENT, WIDE, NARROW = 8, 24, 12


def generator() -> nn.Module:
    """Vectors [N, 8] -> images [N, 1, 28, 28], from -1 (paper) to 1 (ink)."""
    return nn.Sequential(
        nn.Unflatten(1, (LATENT, 1, 1)),
        nn.ConvTranspose2d(LATENT, WIDE, 7, bias=False),
        nn.BatchNorm2d(WIDE),
        nn.ReLU(),
        nn.ConvTranspose2d(WIDE, NARROW, 4, 2, 1, bias=False),
        nn.BatchNorm2d(NARROW),
        nn.ReLU(),
        nn.ConvTranspose2d(NARROW, 1, 4, 2, 1),
        nn.Tanh(),
    ).apply(start)


def critic() -> nn.Module:
    """Images [N, 1, 28, 28] -> scores [N], above 0 where they look real."""
    return nn.Sequential(
        nn.Conv2d(1, NARROW, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(NARROW, WIDE, 4, 2, 1, bias=False),
        nn.BatchNorm2d(WIDE),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDE, 1, 7),
        nn.Flatten(0),
    ).apply(start)


def start(module: nn.Module) -> None:
    """Small weights at the beginning."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, std=0.05)


def latent(count: int, seed: int) -> torch.Tensor:
    """Random vectors to draw images from."""
    return torch.randn(count, LATENT, generator=torch.Generator().manual_seed(seed))
