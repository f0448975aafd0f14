#!/usr/bin/env bash
# A check of a model's data, torch._check(condition, message), stays in a program that torch.export makes, but neither its
# message nor its type of error does, and run_decompositions() also replaces the message of an assertion that had kept its
# own. Whoever runs the exported program reads an expression in symbols of the compiler.
#   seen with torch 2.13.0, CPython 3.11:
#     eager       ValueError: n has no positive number
#     exported    RuntimeError: Runtime assertion failed for expression u0 >= 1 on node 'ge'
#     assertion   own message kept: True, after run_decompositions(): False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.2.6
cat > "$folder/show.py" <<'PYTHON'
import warnings

import torch

warnings.simplefilter("ignore")


class Checked(torch.nn.Module):
    """Checks its data as the documentation of torch._check_value says."""

    def forward(self, n):
        largest = n.max().item()
        torch._check_value(largest > 0, lambda: "n has no positive number")
        return n * largest


class Asserted(torch.nn.Module):
    """The operator that such checks become, with a message, before the check."""

    def forward(self, n):
        largest = n.max().item()
        torch.ops.aten._assert_scalar.default(largest > 0, "n has no positive number")
        torch._check(largest > 0)
        return n * largest


def error(model, n):
    try:
        model(n)
    except (RuntimeError, ValueError) as problem:
        return f"{type(problem).__name__}: {str(problem).splitlines()[0]}"
    return "none"


def messages(program):
    return [n.args[1] for n in program.graph.nodes if n.target is torch.ops.aten._assert_scalar.default]


good, bad, own = torch.tensor([2, 1]), torch.tensor([0, 0]), "n has no positive number"
eager = error(Checked(), bad)
exported = error(torch.export.export(Checked(), (good,), strict=False).module(), bad)
program = torch.export.export(Asserted(), (good,), strict=False)
kept = own in messages(program), own in messages(program.run_decompositions())
print("torch", torch.__version__)
print("eager      ", eager)
print("exported   ", exported)
print(f"assertion   own message kept: {kept[0]}, after run_decompositions(): {kept[1]}")
assert eager == f"ValueError: {own}", eager
assert exported.startswith("RuntimeError: Runtime assertion failed for expression"), exported
assert kept == (True, False), kept
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
