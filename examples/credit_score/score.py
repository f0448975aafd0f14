"""Scores a client's features with a bank's model; the bank sees no feature, the client no weight, and nobody else helps.

    securemodel run examples/credit_score/score.py --local

The same file runs at both parties: `applicants.json` is only read at the client, `scorecard.safetensors` at the bank.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from model import FEATURES, Scorecard, load_trained

import securemodel

PARTIES = ("bank", "client")
DEALER = False
HERE, BATCH = Path(__file__).parent, 12


def make_program() -> securemodel.Program:
    """The scorecard as an encrypted graph. Its architecture is enough: tensors on the meta device hold no numbers."""
    with torch.device("meta"):
        model = Scorecard().eval()
    example = torch.zeros(BATCH, len(FEATURES))
    return securemodel.compile(model, example, weights="bank", inputs="client", outputs="client", protocol="paillier")


def applicants() -> torch.Tensor:
    """float[N, features]: what only the client has."""
    people = json.loads((HERE / "applicants.json").read_text())
    return torch.tensor([[person[name] for name in FEATURES] for person in people])


def main() -> None:
    with securemodel.connect(make_program()) as session:
        bank = session.me == "bank"
        session.load(session.program, load_trained(HERE / "scorecard.safetensors") if bank else None)
        chances = session.run(None if bank else applicants())
        sent = session.stats.sent_bytes[session.me]
    if bank:
        print(f"scored some applicants, sent {sent} bytes, and learned nothing about them")
        return
    for number, chance in enumerate(chances[:, 0].tolist(), 1):
        print(f"applicant {number:2}: pays back with a chance of {chance:.1%}")
    print(f"sent {sent} bytes, all of them encrypted")


if __name__ == "__main__":
    main()
