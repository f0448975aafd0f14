"""The example of operators of one's own: in a process of its own, as their registration is for a whole process."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_operator"
OF_ITS_OWN = """
import torch, securemodel, sys
sys.path.insert(0, {folder!r})
import grade, operators
from securemodel.compiler.lower.registry import DECOMPOSITIONS, LOWERINGS
model = grade.trained()
settings = [dict(), dict(parties=("runner", "witness", "coach"))]
for parties in settings:
    program = securemodel.compile(model, torch.zeros(3, 3), weights="coach", inputs="runner", outputs="runner", **parties)
    with securemodel.local(program) as session:
        assert torch.equal(session.run(grade.RUNS), model(grade.RUNS))
for x in (torch.zeros(1, 3), torch.full((1, 3), 40.0), torch.full((1, 3), -40.0)):
    program = securemodel.compile(model, x, weights="coach", inputs="runner", outputs="runner")
    with securemodel.local(program) as session:
        assert torch.equal(session.run(x), model(x))
assert securemodel.check(model, torch.zeros(3, 3))
LOWERINGS.pop(torch.ops.pace.bucket.default), DECOMPOSITIONS.clear()
report = securemodel.check(model, torch.zeros(3, 3))
print(report)
"""


def test_operators_of_ones_own_run_and_are_named_with_their_library_where_they_cannot():
    code = OF_ITS_OWN.format(folder=str(EXAMPLE))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "pace.squareplus.default" in done.stdout and "pace.bucket.default" in done.stdout
    assert (
        "defined by the library 'pace'" in done.stdout
        and "@securemodel.lowers(torch.ops.pace.bucket.default)" in done.stdout
    )


@pytest.mark.slow
def test_the_parties_grade(run_example):
    said = run_example(EXAMPLE / "grade.py", [], ("coach", "runner"))
    assert "runner | grades [1, 1, 0]" in said
