#!/usr/bin/env bash
# multilabel_margin_loss pads rows that name fewer classes with -1. Written with simpler operators, by
# run_decompositions() or by a back end of torch.compile that decomposes, it counts every -1 as a target. Eager and
# the plain exported program are right, so the same exported model changes its loss when it is decomposed, without an
# error; only rows in which all classes are targets stay as they were. The first input is the documentation's example.
#   seen with torch 2.13.0, CPython 3.11, for scores 0.1 0.2 0.4 0.8:
#     targets 3 0 -1 1    eager 0.85, exported 0.85, decomposed 2.05, torch.compile(aot_eager_decomp_partition) 2.05
#     targets 3 0 -1 -1   0.85, 0.85, 2.05, 2.05
#     targets -1 -1 -1 -1 0, 0, 5.1, 5.1
#     targets 3 0 1 2     0 four times
# securemodel has a decomposition of its own for this loss, which stops at the first -1 (docs/faq.md).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.2.6
cat > "$folder/show.py" <<'PYTHON'
import warnings

import torch
import torch.nn.functional as F

warnings.simplefilter("ignore")


class Loss(torch.nn.Module):
    def forward(self, scores, targets):
        return F.multilabel_margin_loss(scores, targets)


def four_ways(targets):
    scores = torch.tensor([[0.1, 0.2, 0.4, 0.8]])
    exported = torch.export.export(Loss(), (scores, targets), strict=False)
    compiled = torch.compile(Loss(), backend="aot_eager_decomp_partition")
    ways = (Loss(), exported.module(), exported.run_decompositions().module(), compiled)
    return [round(float(way(scores, targets)), 4) for way in ways]


rows = ([3, 0, -1, 1], [3, 0, -1, -1], [-1, -1, -1, -1], [3, 0, 1, 2])
found = [four_ways(torch.tensor([row])) for row in rows]
print("torch", torch.__version__, " eager, exported, decomposed, compiled")
for row, losses in zip(rows, found, strict=True):
    print(row, losses)
assert found == [[0.85, 0.85, 2.05, 2.05], [0.85, 0.85, 2.05, 2.05], [0.0, 0.0, 5.1, 5.1], [0.0] * 4], found
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
