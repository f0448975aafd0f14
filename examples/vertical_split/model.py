"""A model of two kinds of features of the same people: blood values and prescriptions."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

BLOOD = ("hemoglobin", "creatinine", "glucose", "potassium", "sodium", "albumin", "crp", "platelets")
BLOOD_MEAN = (14.0, 1.0, 100.0, 4.2, 140.0, 4.3, 5.0, 250.0)  # adults, in the usual units
BLOOD_STD = (1.5, 0.3, 20.0, 0.4, 3.0, 0.4, 4.0, 60.0)
DRUGS = ("pain_killers", "diuretics", "insulin", "anticoagulants", "antibiotics", "statins")  # packages in a year
DRUGS_SCALE = 4.0
PARTS = {"blood": "lab", "drugs": "pharmacy", "head": "lab"}  # who owns the weights of which part


class Risk(nn.Module):
    """Two encoders and a head; no party has the features and weights of all three.

    Inputs: float [N, 8], blood values; float [N, 6], packages of drugs in a year. Outputs: float [N], probability
    of kidney damage; float [N], probability that the prescriptions should be reviewed. The constants of the
    normalization are public, so whoever owns a table applies them to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blood = nn.Sequential(nn.Linear(len(BLOOD), 16), nn.ReLU())
        self.drugs = nn.Sequential(nn.Linear(len(DRUGS), 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, blood: torch.Tensor, drugs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = self.blood((blood - torch.tensor(BLOOD_MEAN)) / torch.tensor(BLOOD_STD))
        both = torch.cat([encoded, self.drugs(drugs / DRUGS_SCALE)], 1)
        scores = self.head(both).sigmoid()
        return scores[:, 0], scores[:, 1]


def load_part(party: str, folder: Path) -> Risk:
    """The model with the weights that one party has; the others' are on the meta device, without any numbers."""
    with torch.device("meta"):
        model = Risk()
    state = load_file(folder / f"{party}.safetensors")
    for part, owner in PARTS.items():
        if owner == party:
            module = getattr(model, part).to_empty(device="cpu")
            module.load_state_dict({name.removeprefix(f"{part}."): t for name, t in state.items()
                                    if name.startswith(f"{part}.")})  # fmt: skip
    return model.eval()
