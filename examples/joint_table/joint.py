"""From three parties' files to an evaluated model, without anybody seeing another's rows.

    python examples/joint_table/make_files.py
    securemodel train examples/joint_table/joint.py --local

A bank has incomes and debts, a shop has orders, and a registry knows who did not pay back: a CSV file, a Parquet file and a
sheet of Excel about partly the same people. They find whom they have in common, look at their numbers together, prepare
them, train a model, and evaluate it on people that it was not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from tables import HERE, SCHEMA, tables
from torch import nn

import securemodel
from securemodel import data
from securemodel.training import Training

PARTIES = ("bank", "shop", "registry")
METRICS = ["auc", "ks", "f1", "log_loss", "confusion", "roc", "calibration"]


def pipeline() -> data.Pipeline:
    """What becomes of each column before a model reads it; who did not pay back is in no step, so it is the label."""
    return data.Pipeline(
        income=[data.SimpleImputer("median", add_indicator=True), data.Clip(0.01, 0.99), data.StandardScaler()],
        debt=data.PowerTransformer(),
        since=data.StandardScaler(),
        spent=data.PowerTransformer(),
        orders=data.WoEEncoder("defaulted", bins=3),
        city=data.OneHotEncoder(),
    )


def make_model(features: int) -> nn.Sequential:
    """The same starting weights at every party."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 1))


def make_job(model: nn.Sequential, prepare: data.Prepared, train: data.Joint) -> tuple[Training, torch.optim.Optimizer]:
    """A training on what each party makes of its own columns."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def step(bank: torch.Tensor, shop: torch.Tensor, defaulted: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = F.binary_cross_entropy_with_logits(model(torch.cat([bank, shop], 1)).squeeze(1), defaulted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    batches = prepare(train).batches(64, seed=2)
    job = securemodel.compile_training(
        step, model, optimizer, batch=batches, parties=PARTIES, reveal={"loss": "all"}
    )  # fmt: skip
    return job, optimizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=Path, default=HERE / "files")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("out/joint_table"))
    given = parser.parse_args()

    with data.connect(SCHEMA, tables(given.files)) as all_rows:
        joint = all_rows.align("all", out=given.out / "aligned")
        say(joint, f"{joint.rows} people are known to all three")
        say(joint, str(joint.describe()))
        train, test = joint.split(0.8, stratify="defaulted")
        prepare = pipeline().fit(train)
        prepare.save(given.out / "pipeline")
        say(joint, f"features: {', '.join(prepare.feature_names_out)}")

    model = make_model(len(prepare.feature_names_out))
    job, optimizer = make_job(model, prepare, train)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    with job.connect() as run:
        for epoch in run.epochs(given.epochs, schedule):
            losses = [float(step["loss"]) for step in run.train_epoch()]
            say(joint, f"epoch {epoch + 1}: mean loss {sum(losses) / len(losses):.4f}")
        weights = run.export(given.out / "model.safetensors", to="bank")
    if weights is not None:
        model.load_state_dict(weights)

    with data.connect(SCHEMA, tables(given.files), aligned=given.out / "aligned") as again:
        tested = again.at(test.positions)
        found = data.evaluate(
            prepare.then(model), tested, label="defaulted", metrics=METRICS, threshold=-1.0, reveal="bank", weights="bank"
        )  # fmt: skip
        if again.me == "bank":
            say(joint, str(found))
            say(joint, f"report: {found.save(given.out / 'report.html')}")


def say(joint: data.Joint, text: str) -> None:
    """What all know is said by the bank alone."""
    if joint.me == "bank":
        print(text, flush=True)


if __name__ == "__main__":
    main()
