"""Risks of patients whose features lie in two houses, by a model whose weights lie in two.

    securemodel run examples/vertical_split/infer.py --local

The clinic has blood values, and learns the risk of kidney damage. The pharmacy has prescriptions, and learns which of
them to review. The lab has two of the model's three parts, the pharmacy the third. Line by line, the two tables are of
the same people; the clinic and the pharmacy have agreed on their order.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from model import BLOOD, DRUGS, PARTS, Risk, load_part

import securemodel

PARTIES = ("lab", "pharmacy", "clinic")
HERE, BATCH = Path(__file__).parent, 100


def make_program() -> securemodel.Program:
    """The model as a secure program: two owners of inputs, two of weights, two of results."""
    with torch.device("meta"):
        model = Risk().eval()
    examples = torch.zeros(BATCH, len(BLOOD)), torch.zeros(BATCH, len(DRUGS))
    both = ("clinic", "pharmacy")
    return securemodel.compile(model, examples, weights=PARTS, inputs=both, outputs=both)


def load_model(party: str) -> Risk:
    """The model with the part of the weights this party has a file of. Called at the lab and at the pharmacy."""
    return load_part(party, HERE)


def read(path: Path) -> torch.Tensor:
    """A table with a line of names. Only its owner has this file."""
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    return torch.tensor([[float(cell) for cell in row] for row in rows])


def main() -> None:
    with securemodel.connect(make_program()) as session:
        me = session.me
        session.load(session.program, load_model(me) if me in PARTS.values() else None)
        blood = read(HERE / "clinic.csv") if me == "clinic" else None
        drugs = read(HERE / "pharmacy.csv") if me == "pharmacy" else None
        risk, review = session.run(blood, drugs)
    if risk is not None:
        print(f"{int((risk > 0.5).sum())} of {len(risk)} patients are at risk")
    if review is not None:
        print(f"{int((review > 0.5).sum())} of {len(review)} prescriptions should be reviewed")


if __name__ == "__main__":
    main()
