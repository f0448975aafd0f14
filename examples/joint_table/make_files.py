"""Makes up the files of a bank, a shop and a registry about the same people: each as such files are.

    python make_files.py --people 2000 --out files

The bank's is a CSV with semicolons, decimal commas, dates from day to year and its own names of columns; a few clients
stand in it twice, and incomes are missing. The shop's is a Parquet file with a row for each order, so that clients stand
there several times, with emails as they were typed. The registry's is a sheet of Excel with blank rows, dates as Excel
has them, and rows without an email. Every one has people whom the others do not know.
"""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd

CITIES = ("Antwerp", "Ghent", "Utrecht", "Doel", "Orvelte")
_BORN, _SINCE = dt.date(1945, 1, 1), dt.date(1995, 1, 1)


def make_people(people: int, seed: int) -> pd.DataFrame:
    """Everybody that there is, with all that anybody knows of them; no party has this table."""
    draw = np.random.default_rng(seed)
    income = draw.lognormal(10.5, 0.5, people).round(2)
    debt = np.minimum(draw.lognormal(9.5, 1.0, people), 499_000).round(2)
    orders = draw.poisson(3, people) + 1
    spent = (orders * draw.uniform(5, 120, people)).round(2)
    score = 0.9 * np.log(debt / income) + 0.004 * (spent - 200) - 0.25 * (orders - 4) - 0.6
    made = pd.DataFrame({
        "email": [f"person{number}@example.org" for number in draw.permutation(people)],
        "born": [_BORN + dt.timedelta(int(days)) for days in draw.integers(0, 21_000, people)],
        "income": np.where(draw.random(people) < 0.08, np.nan, income), "debt": debt,
        "since": [_SINCE + dt.timedelta(int(days)) for days in draw.integers(0, 10_000, people)],
        "spent": spent, "orders": orders, "city": draw.choice(CITIES, people, p=(0.3, 0.3, 0.3, 0.06, 0.04)),
        "defaulted": draw.random(people) < 1 / (1 + np.exp(-score)),
    })  # fmt: skip
    made["city"] = made["city"].where(draw.random(people) > 0.05)
    for party, share in (("bank", 0.85), ("shop", 0.8), ("registry", 0.95)):
        made[party] = draw.random(people) < share
    return made


def bank(people: pd.DataFrame, path: Path, draw: np.random.Generator) -> None:
    """A CSV as a program of the office writes it."""
    rows = people[people["bank"]].sample(frac=1, random_state=draw)
    again = rows.head(max(len(rows) // 50, 1))  # clients with two accounts
    rows = pd.concat([rows, again.assign(email=again["email"].str.upper())])
    pd.DataFrame({
        "E-MAIL": rows["email"], "GEBOREN": [day.strftime("%d/%m/%Y") for day in rows["born"]],
        "INKOMEN": rows["income"].map(_comma), "SCHULD": rows["debt"].map(_comma),
        "KLANT SINDS": [day.strftime("%d/%m/%Y") for day in rows["since"]], "MEMO": "",
    }).to_csv(path, sep=";", index=False)  # fmt: skip


def shop(people: pd.DataFrame, path: Path, draw: np.random.Generator) -> None:
    """A row for each order, with the email as it was typed that time."""
    rows = []
    for person in people[people["shop"]].itertuples():
        parts = draw.dirichlet(np.ones(person.orders)) * person.spent
        for part in parts:
            typed = (person.email, person.email.capitalize(), f" {person.email}")[draw.integers(3)]
            rows.append((typed, person.born, part, 1, person.city))
    made = pd.DataFrame(rows, columns=["email", "born", "spent", "orders", "city"])
    made.sample(frac=1, random_state=draw).to_parquet(path, index=False)


def registry(people: pd.DataFrame, path: Path, draw: np.random.Generator) -> None:
    """A workbook that people have kept by hand."""
    book = openpyxl.Workbook()
    book.active.title = "labels"
    book.active.append(["email", "born", "defaulted", "remark"])
    for number, person in enumerate(people[people["registry"]].sample(frac=1, random_state=draw).itertuples()):
        if number % 100 == 50:
            book.active.append([])
        if number % 200 == 150:
            book.active.append([None, person.born, "no", "who is this?"])
        book.active.append([person.email, person.born, "yes" if person.defaulted else "no", None])
    book.save(path)


def make(folder: str | Path, people: int = 2000, seed: int = 7) -> pd.DataFrame:
    """Writes clients.csv, orders.parquet and labels.xlsx into a folder; returns what all three know together.

    A row for each person that all of them have, by email, with a missing city as no city: for comparisons.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    everybody = make_people(people, seed)
    draw = np.random.default_rng(seed + 1)
    bank(everybody, folder / "clients.csv", draw)
    shop(everybody, folder / "orders.parquet", draw)
    registry(everybody, folder / "labels.xlsx", draw)
    return everybody[everybody["bank"] & everybody["shop"] & everybody["registry"]].set_index("email")


def _comma(number: float) -> str:
    return "" if np.isnan(number) else f"{number:.2f}".replace(".", ",")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "files")
    given = parser.parse_args()
    joint = make(given.out, given.people, given.seed)
    print(f"{given.out}: clients.csv, orders.parquet, labels.xlsx; {len(joint)} people are in all three")
