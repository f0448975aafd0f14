"""Where the three parties' files are, and how each is written. Each party opens its own one only."""

from __future__ import annotations

from pathlib import Path

from securemodel import data

PARTIES = ("bank", "shop", "registry")
HERE = Path(__file__).parent
SCHEMA = data.Schema.load(HERE / "joint.toml")


def tables(folder: str | Path = HERE / "files") -> list[data.Source]:
    """The sources of all parties, with the files in this folder."""
    folder = Path(folder)
    own = {"E-MAIL": "email", "GEBOREN": "born", "INKOMEN": "income", "SCHULD": "debt", "KLANT SINDS": "since"}
    return [
        data.table("bank", folder / "clients.csv", sep=";", decimal=",", date_format="%d/%m/%Y", rename=own),
        data.table("shop", folder / "orders.parquet"),
        data.table("registry", folder / "labels.xlsx"),
    ]
