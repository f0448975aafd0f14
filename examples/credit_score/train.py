"""Makes up loans, fits the scorecard to them in the clear, and writes the two files that the example runs on.

    python examples/credit_score/train.py

`scorecard.safetensors`: the weights, float32. `applicants.json`: applicants that training never saw, by feature. The
data are made up: no person is behind them. Everything random comes from --seed, and nothing here is secret.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import torch
from model import FEATURES, Scorecard
from safetensors.torch import save_file

HERE = Path(__file__).parent


def people(count: int, rng: np.random.Generator) -> np.ndarray:
    """float[N, features]: made-up applicants whose features hang together."""
    income = np.exp(rng.normal(3.8, 0.5, count)).clip(8, 250)
    loan = (income * rng.gamma(2.0, 0.2, count)).clip(1, 150)
    ratio = (loan / income * 0.3 + rng.gamma(2.0, 0.1, count)).clip(0, 1.5)
    employed = rng.gamma(1.5, 4.0, count).clip(0, 40)
    address = rng.gamma(1.5, 3.0, count).clip(0, 40)
    accounts = rng.poisson(5, count).clip(0, 25)
    used = rng.beta(1 + 2 * ratio, 2.5)
    missed = rng.poisson(0.2 + 1.5 * used * ratio).clip(0, 12)
    inquiries = rng.poisson(0.5 + used).clip(0, 12)
    oldest = (employed * 0.5 + rng.gamma(2.0, 3.0, count)).clip(0, 45)
    return np.stack([income, loan, ratio, employed, address, accounts, used, missed, inquiries, oldest], 1)


def outcomes(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float[N]: 1 where the loan was paid back, by a law that is not quite the scorecard's, and chance."""
    income, loan, ratio, employed, address, accounts, used, missed, inquiries, oldest = x.T
    score = 1.9 + 0.5 * np.log(income / 45) - 1.4 * ratio - 0.25 * np.log1p(loan) + 0.35 * np.log1p(employed)
    score += 0.02 * address - 0.03 * np.maximum(accounts - 8, 0) - 1.3 * used**2 - 0.7 * np.sqrt(missed)
    score += -0.15 * inquiries + 0.03 * oldest
    return (rng.random(len(x)) < 1 / (1 + np.exp(-score))).astype(np.float64)


def fit(x: torch.Tensor, y: torch.Tensor) -> Scorecard:
    """The scorecard with the largest likelihood, a little regularized."""
    model = Scorecard()
    model.mean.copy_(x.mean(0))
    model.spread.copy_(x.std(0))
    torch.nn.init.zeros_(model.layer.weight)
    torch.nn.init.zeros_(model.layer.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = 1e-3 * model.layer.weight.square().sum()
        value = torch.nn.functional.binary_cross_entropy(model(x)[:, 0], y) + penalty
        value.backward()
        return value

    optimizer.step(loss)
    return model.eval()


def ranked_right(scores: np.ndarray, y: np.ndarray) -> float:
    """The chance that a paid loan scores above one that was not (area under the ROC curve)."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores)] = np.arange(1, len(scores) + 1)
    paid = int(y.sum())
    return float((ranks[y == 1].sum() - paid * (paid + 1) / 2) / (paid * (len(y) - paid)))


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=HERE, show_default=True)
@click.option("--loans", type=click.IntRange(min=1000), default=20_000, show_default=True, help="For training.")
@click.option("--applicants", type=click.IntRange(min=1), default=12, show_default=True, help="How many to write.")
@click.option("--seed", default=1, show_default=True)
def main(out: Path, loans: int, applicants: int, seed: int) -> None:
    """Fit the scorecard and write its weights and some applicants."""
    rng = np.random.default_rng(seed)
    data = people(2 * loans, rng)
    paid = outcomes(data, rng)
    x, y = (torch.from_numpy(values).float() for values in (data, paid))
    model = fit(x[:loans], y[:loans])
    with torch.no_grad():
        scores = model(x[loans:])[:, 0].numpy()
    click.echo(f"{paid.mean():.1%} of {len(paid)} made-up loans were paid back")
    click.echo(f"held-out loans: {ranked_right(scores, paid[loans:]):.1%} of pairs in the right order")
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "scorecard.safetensors")
    rows = people(applicants, rng).round(3).tolist()
    text = json.dumps([dict(zip(FEATURES, row, strict=True)) for row in rows], indent=1)
    (out / "applicants.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
