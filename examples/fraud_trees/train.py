"""Makes up purchases, fits a forest to them in the clear, and writes what each party has.

    python examples/fraud_trees/train.py

The purchases follow a rule that is written here: no real person's data is in this example.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from sklearn.ensemble import RandomForestClassifier

from securemodel.models import from_sklearn, structure

HERE, COLUMNS = (
    Path(__file__).parent,
    {"bank": ["age_days", "balance", "limit"], "shop": ["amount", "items", "country"]},
)


def purchases(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """float[count, 6] and whether each is a fraud. Some balances are missing; a country is one of six numbers."""
    age, balance = random.integers(0, 4000, count), np.round(random.lognormal(7, 1, count), 2)
    limit, amount = random.choice([500.0, 1000, 2000, 5000], count), np.round(random.lognormal(4, 1, count), 2)
    items, country = random.integers(1, 9, count), random.integers(0, 6, count)
    risk = 1.5 * (amount > 0.2 * limit) + 1.2 * (age < 200) + np.isin(country, [1, 4]) * (items > 5) - (balance > 2000)
    balance[random.random(count) < 0.1] = np.nan
    return np.column_stack([age, balance, limit, amount, items, country]), risk + random.normal(0, 0.3, count) > 1.2


def main() -> None:
    random = np.random.default_rng(7)
    x, y = purchases(6000, random)
    forest = RandomForestClassifier(20, max_depth=6, random_state=0).fit(x[:5000], y[:5000])
    names = [name for group in COLUMNS.values() for name in group]
    model = from_sklearn(forest, columns=[[names.index(name) for name in group] for group in COLUMNS.values()])
    (HERE / "structure.json").write_text(structure(model) + "\n")
    save_file(model.state_dict(), HERE / "forest.safetensors")
    last = x[5000:5500]
    for at, (party, group) in enumerate(COLUMNS.items()):
        np.savetxt(
            HERE / f"{party}.csv", last[:, 3 * at : 3 * at + 3], "%.10g", ",", header=",".join(group), comments=""
        )
    np.savetxt(HERE / "truth.csv", np.column_stack([y[5000:5500], forest.predict_proba(last)[:, 1]]), "%.17g", ",")
    print(f"right on {np.mean(forest.predict(x[5000:]) == y[5000:]):.1%} of purchases that it has not seen")


if __name__ == "__main__":
    main()
