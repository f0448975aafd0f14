"""A small DCGAN for handwritten digits: a generator draws images from random vectors, a discriminator judges them.

The layers are those of Radford et al., "Unsupervised representation learning with deep convolutional generative
adversarial networks" (2016), sized for 28 x 28 pixels: transposed convolutions with batch normalization and ReLU, tanh
at the end; convolutions with leaky ReLU on the other side.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

LATENT = 16


class Gan(nn.Module):
    """latent [N, 16] -> (images [N, 1, 28, 28], from -1 (paper) to 1 (ink); scores [N], above 0 if they look real)."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(LATENT, 64, 7, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 1, 7),
        )

    def draw(self, latent: torch.Tensor) -> torch.Tensor:
        return self.generator(latent[:, :, None, None])

    def judge(self, images: torch.Tensor) -> torch.Tensor:
        return self.discriminator(images).flatten()

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.draw(latent)
        return images, self.judge(images)


def load_trained() -> Gan:
    """The network with its trained weights, ready for inference."""
    model = Gan()
    model.load_state_dict(load_file(Path(__file__).with_name("gan.safetensors")))
    return model.eval()
