"""Statistics of a joint table as whole processes: `securemodel describe --local`, two parties and a dealer over TLS.

`python -m benchmarks.tables [ROWS]` writes tables of ten columns each, and prints the seconds of everything together: start,
reading, compilation, dealing, the run. Beside it, the same of the joined table in pandas.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

OWNERS = {"bank": 10, "shop": 10}


def tables(folder: Path, rows: int) -> pd.DataFrame:
    """A schema and a Parquet file for each party; returns the joined table."""
    random = np.random.default_rng(0)
    text, parts = ['[table]\nsplit = "columns"\nminimum = 20\n'], []
    for party, count in OWNERS.items():
        part = pd.DataFrame(random.normal(0, 10, (rows, count)).clip(-100, 100)).add_prefix(f"{party}_")
        part.to_parquet(folder / f"{party}.parquet")
        text += [f'[columns.{name}]\nowner = "{party}"\nkind = "number"\nlow = -100\nhigh = 100\n' for name in part]
        parts.append(part)
    (folder / "joint.toml").write_text("".join(text))
    return pd.concat(parts, axis=1)


def main(rows: int) -> None:
    """Measures and prints one row."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        joined = tables(folder, rows)
        files = [word for party in OWNERS for word in ("--table", f"{party}={folder / party}.parquet")]
        command = [sys.executable, "-m", "securemodel.cli", "describe", str(folder / "joint.toml"), *files]
        start = time.perf_counter()
        subprocess.run([*command, "--correlation", "--local"], check=True, stdout=subprocess.DEVNULL)
        secure = time.perf_counter() - start
    start = time.perf_counter()
    joined.describe()
    joined.corr()
    clear = time.perf_counter() - start
    print(
        f"describe and correlation of {rows} x {joined.shape[1]}: {secure:.1f} s in all; pandas in the clear {clear:.2f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
