"""Makes the module `securemodel_edge` of `securemodel/edge`, under a name of its own: both can be installed together.

In the project's tree it is made anew by every build; a source distribution has it already.
"""

from pathlib import Path
from shutil import copy

from setuptools import setup

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MADE = HERE / "securemodel_edge"


def make() -> None:
    """Copies the modules, which then import each other by the new name."""
    MADE.mkdir(exist_ok=True)
    for path in [*(ROOT / "securemodel" / "edge").glob("*.py"), ROOT / "securemodel" / "version.py"]:
        text = path.read_text(encoding="utf-8").replace("securemodel.edge", "securemodel_edge")
        (MADE / path.name).write_text(text, encoding="utf-8")
    copy(ROOT / "LICENSE", HERE / "LICENSE")


if (ROOT / "securemodel" / "edge").is_dir():
    make()
setup()
