#!/usr/bin/env bash
# pandas.merge compares keys of different types of number by way of float64, and says so only where a float is no whole
# number. A column of ids becomes float64 whenever one of them is missing. From 2^53 on, ids that differ then join: rows
# of different people become one row, with no warning, although isin() tells the same ids apart. Unsigned and signed
# 64-bit ids, both exact, join wrongly too.
#   seen with pandas 3.1.1, numpy 2.4.6, CPython 3.11; warnings as errors
#     [9007199254740993] in int64 with [9007199254740992.0]   merge: 1 row   isin: False
#     [9223372036854775808, 5] in uint64 with [9223372036854775807, 5] in int64   merge: 2 rows, where 1 is right
# securemodel.data joins ids as text: whole numbers of a typed column keep all their digits, and a column of floats with
# a whole number from 2^53 on is refused as one of ids.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pandas==3.1.1 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import warnings

import numpy as np
import pandas as pd

warnings.simplefilter("error")
bank = pd.DataFrame({"id": [9007199254740993], "income": [1000]})
shop = pd.DataFrame({"id": [9007199254740992, None], "orders": [1, 2]})
joined, found = bank.merge(shop, on="id"), bank["id"].isin(shop["id"]).tolist()
print("pandas", pd.__version__, "numpy", np.__version__)
print(f"int64 and float64: {len(joined)} row, isin {found}")
signed = pd.DataFrame({"id": [9223372036854775807, 5]})
unsigned = pd.DataFrame({"id": [9223372036854775808, 5]})
both = unsigned.merge(signed, on="id")
print(f"uint64 and int64: {len(both)} rows")
assert (len(joined), found, len(both)) == (1, [False], 2), (joined, found, both)
assert unsigned["id"].dtype == np.uint64 and signed["id"].dtype == np.int64
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
