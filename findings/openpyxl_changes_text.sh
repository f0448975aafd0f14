#!/usr/bin/env bash
# A sheet of Excel writes a character that XML cannot hold as _x000D_, its number between underlines, and an underline
# before what would otherwise be such a word as _x005F_ (ECMA-376 part 1, 22.9.2.19). openpyxl, and with it
# pandas.read_excel, leaves the first as it is written, so that a carriage return becomes seven characters; of the second
# it deletes "x005F_" wherever it stands, in text that is no escape too. Two ids of a column so become one. Other readers
# give back what was written, also as another engine of pandas.
#   seen with openpyxl 3.1.5, pandas 3.1.1, python-calamine 0.9.1, XlsxWriter 3.3.1, CPython 3.11
#     written                    'a\r\nb'         'batch_0x005F_7'   'batch_07'
#     engine="openpyxl"          'a_x000D_\nb'    'batch_07'         'batch_07'
#     engine="calamine"          'a\r\nb'         'batch_0x005F_7'   'batch_07'
# securemodel.data reads sheets with openpyxl: it turns _x000D_ into the character, and refuses a workbook with x005F_.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pandas==3.1.1 openpyxl==3.1.5 python-calamine==0.9.1 xlsxwriter==3.3.1
cat > "$folder/show.py" <<'PYTHON'
import sys

import openpyxl
import pandas as pd

path, written = sys.argv[1], ["a\r\nb", "batch_0x005F_7", "batch_07"]
pd.DataFrame({"id": written}).to_excel(path, index=False, engine="xlsxwriter")
print("openpyxl", openpyxl.__version__, "pandas", pd.__version__)
found = {engine: pd.read_excel(path, dtype=str, engine=engine)["id"].tolist() for engine in ("openpyxl", "calamine")}
print(f"{'written':20} {written}")
for engine, texts in found.items():
    print(f"{engine:20} {texts}")
assert found["openpyxl"] == ["a_x000D_\nb", "batch_07", "batch_07"], found
assert found["calamine"] == written, found
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/ids.xlsx"
