"""Makes up patients, trains the model on them in the clear, and writes what each party has.

    python examples/vertical_split/train.py

The patients follow a rule that is written here: no real person's data is in this example. In practice the parts would
be trained where the data may meet, or by federated learning; training under encryption is not supported.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from model import BLOOD, BLOOD_MEAN, BLOOD_STD, DRUGS, PARTS, Risk
from safetensors.torch import save_file

HERE, TRAINING, HELD_OUT, STEPS = Path(__file__).parent, 4000, 250, 1500


def patients(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blood values, packages of drugs, and the two truths as 0 and 1."""
    z, rates = torch.randn(count, len(BLOOD)), torch.tensor([4.0, 2.0, 2.0, 2.0, 1.0, 3.0])
    drugs = torch.poisson(rates.expand(count, len(DRUGS)))
    creatinine, glucose, potassium, albumin = z[:, 1], z[:, 2], z[:, 3], z[:, 5]
    pain_killers, diuretics, insulin = drugs[:, 0], drugs[:, 1], drugs[:, 2]
    damage = 1.5 * creatinine + torch.relu(glucose) - 0.5 * albumin + 0.6 * (pain_killers - 4) + 0.3 * (diuretics - 2)
    review = 1.2 * potassium * (diuretics - 2) + (insulin - 2) * (0.5 - glucose) + 0.5 * torch.relu(pain_killers - 5)
    truth = torch.stack([damage, review], 1) + 0.3 * torch.randn(count, 2) > torch.tensor([0.6, 1.0])
    blood = (z * torch.tensor(BLOOD_STD) + torch.tensor(BLOOD_MEAN)).clamp(min=0.1)
    decimals = torch.tensor([10, 100, 1, 10, 1, 10, 10, 1])
    return (blood * decimals).round() / decimals, drugs, truth.float()


def train(model: Risk, blood: torch.Tensor, drugs: torch.Tensor, truth: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(STEPS):
        chosen = torch.randint(len(truth), (256,))
        made = torch.stack(model(blood[chosen], drugs[chosen]), 1)
        loss = torch.nn.functional.binary_cross_entropy(made, truth[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: Risk, blood: torch.Tensor, drugs: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Share of right answers, for each of the two questions."""
    with torch.no_grad():
        made = torch.stack(model(blood, drugs), 1) > 0.5
    return (made == truth.bool()).float().mean(0).tolist()


def write(path: Path, names: tuple[str, ...], table: torch.Tensor) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([[f"{number:.6g}" for number in row] for row in table.tolist()])


def main() -> None:
    torch.manual_seed(7)
    blood, drugs, truth = patients(TRAINING + HELD_OUT)
    seen, held_out = slice(None, TRAINING), slice(TRAINING, None)
    usual, rest = torch.tensor(BLOOD_MEAN).expand_as(blood), drugs.mean(0).expand_as(drugs)
    for name, b, d in (
        ("blood values alone", blood, rest),
        ("prescriptions alone", usual, drugs),
        ("both", blood, drugs),
    ):
        model = Risk()
        train(model, b[seen], d[seen], truth[seen])
        damage, review = accuracy(model, b[held_out], d[held_out], truth[held_out])
        print(f"{name}: kidney damage {damage:.1%}, review {review:.1%} right on {HELD_OUT} held-out patients")
    for party in dict.fromkeys(PARTS.values()):
        own = {name: t for name, t in model.state_dict().items() if PARTS[name.split(".")[0]] == party}
        save_file(own, HERE / f"{party}.safetensors")
    write(HERE / "clinic.csv", BLOOD, blood[held_out])
    write(HERE / "pharmacy.csv", DRUGS, drugs[held_out])
    write(HERE / "truth.csv", ("damage", "review"), truth[held_out])


if __name__ == "__main__":
    main()
