"""A small network that reads handwritten digits: LeNet-5 with ReLU and max pooling.

The layers are those of LeCun et al., "Gradient-based learning applied to document recognition" (1998), Figure 2, with
ReLU in place of tanh and maximum in place of average pooling, as later versions have it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

MEAN, STD = 0.1307, 0.3081  # of the pixels of MNIST's training images, as numbers between 0 and 1


class LeNet5(nn.Module):
    """Gives ten scores for each image of a digit; the largest is the answer.

    Input: float [N, 1, 28, 28], pixels between 0 (paper) and 1 (ink). Output: float [N, 10], logits.
    Normalization is part of the model, so whoever owns an image gives plain pixels. Its two constants are written
    here and not stored with the weights: they are public, and the image's owner can apply them before sharing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.features((pixels - MEAN) / STD)
        return self.classifier(features.flatten(1))


def load_trained(path: Path) -> LeNet5:
    """The network with the weights in a safetensors file, ready for inference."""
    model = LeNet5()
    model.load_state_dict(load_file(path))
    return model.eval()
