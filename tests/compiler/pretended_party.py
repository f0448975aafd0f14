"""Run by test_gpu.py, one process for each of three roles: `python pretended_party.py CONFIG ROLE DEVICE`.

A device other than the CPU is the pretended GPU. A party writes what it learns beside its configuration.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pretend
import pytest
import torch
from torch import nn

import securemodel
from protocols import identity
from protocols.identity import DEALER
from securemodel.engines.masked.dealer import serve

INPUT = torch.tensor([[0.5, -1.25, 3.0], [-2.0, 0.75, 0.125]])


def program() -> securemodel.Program:
    """A linear layer of a, a ReLU, and a sigmoid of what b has."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Sigmoid()).eval()
    return securemodel.compile(model, INPUT, weights="a", inputs="b", outputs=["b"], parties=("a", "b"))


def main(path: str, role: str, device: str) -> None:
    config = identity.load_config(Path(path))
    with pytest.MonkeyPatch.context() as patch, pretend.pretended() if device != "cpu" else nullcontext():
        if device != "cpu":
            pretend.quick_streams(patch)
        if role == DEALER:
            return serve(config, identity.load(config.identity), once=True, device=device)
        with securemodel.connect(program(), role, path, ledger=False, device=device) as session:
            output = session.run(INPUT if role == "b" else None)
        if output is not None:
            torch.save(output, Path(path).with_suffix(".out"))


if __name__ == "__main__":
    main(*sys.argv[1:])
