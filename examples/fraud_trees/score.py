"""Chances of fraud, by a forest whose thresholds are secret, of purchases that a bank and a shop know columns of.

    securemodel run examples/fraud_trees/score.py --local

The same file runs at all parties. The bureau alone reads `forest.safetensors`, bank and shop their own tables;
`structure.json` has what everybody may know: the shape of the trees, and which column each of their conditions reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import securemodel
from securemodel.models import from_structure

PARTIES = ("bureau", "bank", "shop")
HERE, BATCH = Path(__file__).parent, 500


def architecture() -> nn.Module:
    """The forest without a number of its own."""
    return from_structure((HERE / "structure.json").read_text())


def make_program() -> securemodel.Program:
    examples = torch.zeros(BATCH, 3, dtype=torch.float64), torch.zeros(BATCH, 3, dtype=torch.float64)
    return securemodel.compile(
        architecture(), examples, weights="bureau", inputs=("bank", "shop"), outputs="bank", parties=PARTIES
    )


def load_model() -> nn.Module:
    """The forest. Called at the bureau only."""
    model = architecture()
    model.load_state_dict(load_file(HERE / "forest.safetensors"), assign=True)
    return model


def read(party: str) -> torch.Tensor:
    """float64[rows, columns] of a table with a line of names; nan is what is missing. Only its owner has this file."""
    return torch.tensor(np.loadtxt(HERE / f"{party}.csv", delimiter=",", skiprows=1))


def main() -> None:
    with securemodel.connect(make_program()) as session:
        me = session.me
        session.load(session.program, load_model() if me == "bureau" else None)
        chances = session.run(*(read(party) if me == party else None for party in ("bank", "shop")))
    if me == "bank":
        stopped = (chances[:, 1] > 0.5).sum().item()
        print(f"{stopped} of {len(chances)} purchases look like fraud")


if __name__ == "__main__":
    main()
