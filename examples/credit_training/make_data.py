"""How bank.csv and shop.csv were made: 400 made-up customers, and whether they paid back."""

from __future__ import annotations

from pathlib import Path

import torch

BANK, SHOP = ("income", "debt", "years_as_customer", "late_payments"), ("orders", "returns", "basket")


def main() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(400, len(BANK) + len(SHOP), generator=generator)
    scores = x @ torch.tensor([1.2, -1.0, 0.5, -1.5, 0.6, -1.1, 0.3]) + 0.4
    paid = (torch.rand(400, generator=generator) < torch.sigmoid(2 * scores)).int()
    here = Path(__file__).parent
    tables = (("bank", (*BANK, "paid_back"), slice(0, 4)), ("shop", SHOP, slice(4, 7)))
    for name, columns, part in tables:
        lines = [",".join(columns)]
        for row, label in zip(x[:, part].tolist(), paid.tolist(), strict=True):
            cells = [f"{value:.3f}" for value in row] + ([str(label)] if name == "bank" else [])
            lines.append(",".join(cells))
        (here / f"{name}.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
