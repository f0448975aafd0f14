#!/usr/bin/env bash
# torch.take_along_dim is documented as a gather that also broadcasts, and numpy's function of this name refuses an
# index outside of the axis. With an axis given, torch's takes every index modulo the size of the axis: -1 counts from
# the end, which gather refuses, but an index that is too large also gives some other element, and no error. Without
# an axis, and with gather, the same index is an error. A wrong id in data is so never noticed.
#   seen with torch 2.13.0, numpy 2.2.6, CPython 3.11: index 5 of the three elements 10, 20, 30
#     torch.take_along_dim(x, i, 1)  [[30.0]]
#     torch.take_along_dim(x, i)     an error
#     torch.gather(x, 1, i)          an error
#     numpy.take_along_axis(x, i, 1) an error
# securemodel computes what torch computes; in `x.gather(1, i)` a party's own ids are refused at this party, with the
# place of the id and the range (docs/faq.md).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.2.6
cat > "$folder/show.py" <<'PYTHON'
import numpy as np
import torch


def seen(function):
    try:
        return str(function().tolist())
    except (RuntimeError, IndexError):
        return "an error"


x, i = torch.tensor([[10.0, 20.0, 30.0]]), torch.tensor([[5]])
found = [
    seen(lambda: torch.take_along_dim(x, i, 1)),
    seen(lambda: torch.take_along_dim(x, i)),
    seen(lambda: torch.gather(x, 1, i)),
    seen(lambda: np.take_along_axis(x.numpy(), i.numpy(), 1)),
]
print("torch", torch.__version__, "numpy", np.__version__)
for name, value in zip(("take_along_dim, axis", "take_along_dim", "gather", "numpy's, axis"), found, strict=True):
    print(f"{name:22} {value}")
assert found == ["[[30.0]]", "an error", "an error", "an error"], found
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
