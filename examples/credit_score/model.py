"""The bank's scorecard: a logistic model on features as people know them, with the bank's own normalization."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

FEATURES = (
    "income",  # thousands a year
    "loan",  # thousands
    "debt_ratio",  # monthly payments by monthly income
    "years_employed",
    "years_at_address",
    "open_accounts",
    "utilization",  # used part of the credit lines, 0 to 1
    "missed_payments",  # in the last two years
    "inquiries",  # in the last half year
    "oldest_account",  # years
)


class Scorecard(nn.Module):
    """float[N, features] to float[N, 1]: the probability that the loan is paid back."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("spread", torch.ones(len(FEATURES)))
        self.layer = nn.Linear(len(FEATURES), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.layer((x - self.mean) / self.spread))


def load_trained(path: Path) -> Scorecard:
    """The model with the weights in a file that `train.py` wrote."""
    model = Scorecard()
    model.load_state_dict(load_file(path))
    return model.eval()
