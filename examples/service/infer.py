"""The family of programs of a service that reads handwritten digits: the same file at the bank and at the hospital.

    securemodel serve examples/service/service.toml --local

Whoever asks is a client and none of the parties: it normalizes its pixels by the recipe, and sends them in shares.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import securemodel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lenet_mnist"))
from model import MEAN, STD, LeNet5

RECIPE = {"pixels": [("divide", 255.0), ("subtract", MEAN), ("divide", STD)]}


class Digits(LeNet5):
    """LeNet-5 on pixels that the client has normalized. float [N, 1, 28, 28] -> float [N, 10], a score for each digit."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(pixels).flatten(1))


def make_family(**options: Any) -> securemodel.Family:
    """The network as secure programs. Its architecture is enough: tensors on the meta device hold no numbers.

    `options` are those of SERVICE.toml: sizes, clamp, reveal, labels.
    """
    with torch.device("meta"):
        model = Digits().eval()
    given = {"clamp": (-MEAN / STD, (1 - MEAN) / STD), "labels": tuple("0123456789"), **options}
    return securemodel.compile_service(
        model, torch.zeros(1, 1, 28, 28), weights="bank", parties=("bank", "hospital"), recipe=RECIPE, **given
    )


def load_model(weights: Path) -> nn.Module:
    """The network with its weights. The bank alone has the file, and calls this."""
    model = Digits()
    model.load_state_dict(load_file(weights))
    return model.eval()
