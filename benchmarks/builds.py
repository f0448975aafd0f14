"""What is measured: this checkout, or another commit beside it, built in a folder of its own.

Another commit runs with its own harness (`measure.py`, `worker.py`), which knows its API, on the cases of this
checkout, which need little but torch. Where even that cannot be imported there, it runs its own cases.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from protocols.errors import ConfigError, explain

ROOT = Path(__file__).resolve().parent.parent
_BUILDS = ROOT / "build" / "against"
_DEFINITIONS = ("cases.py", "models.py", "steps.py", "evaluation.py", "peers/common.py")
_MEASURED = ("protocols", "securemodel", "benchmarks", "setup.py", "constraints.txt")
_ASK = """
import json
from benchmarks.cases import BY_NAME
from benchmarks.measure import SYSTEM
import benchmarks.worker
print(json.dumps([list(BY_NAME), list(SYSTEM)]))
"""


@dataclass(frozen=True)
class Build:
    """How processes of one build are started. `cases` and `transports`: those it knows, None for all of this checkout."""

    commit: str
    name: str = ""
    python: str = sys.executable
    folder: Path = ROOT
    paths: tuple[Path, ...] = (ROOT,)
    cases: frozenset[str] | None = None
    transports: frozenset[str] | None = None

    def system(self, name: str) -> str:
        """What a row calls this build."""
        return f"{name} @{self.name}" if self.name else name

    def transport(self, wanted: str) -> str:
        """The transport as this build knows it: where there was one way of rounding, it was the fast one."""
        known = self.transports is None or wanted in self.transports
        return "tls" if wanted == "fast" and not known else wanted

    def start(self, *words: str, **options) -> subprocess.Popen:
        """Starts its Python with one thread for each process."""
        return subprocess.Popen([self.python, *words], cwd=self.folder, env=self._variables(), **options)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs its Python to the end; standard error is passed on."""
        return subprocess.run(
            [self.python, *words],
            cwd=self.folder,
            env=self._variables(),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )

    def _variables(self) -> dict[str, str]:
        path = os.pathsep.join(map(str, self.paths))
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def here() -> Build:
    """This checkout, with the Python that runs."""
    return Build(commit_of(ROOT))


def commit_of(folder: Path) -> str:
    """The commit of a checkout, with a digest of what was changed since; "unknown" where git cannot tell."""
    try:
        head = _git(folder, "rev-parse", "HEAD").decode().strip()
        changed = _git(folder, "diff", "HEAD", "--binary", "--", *_MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (f"+{hashlib.sha256(changed).hexdigest()[:12]}" if changed else "")


def short(commit: str) -> str:
    """What `commit_of` says, shorter."""
    head, changed, _ = commit.partition("+")
    return head[:7] + changed


def _git(folder: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True).stdout


def other(commit: str, root: Path = ROOT, builds: Path = _BUILDS) -> Build:
    """Another commit in a worktree of its own, with its kernels; built once. Raises ConfigError.

    It runs in this environment, or in one that its `make setup` makes, where it pins other versions of packages.
    """
    try:
        full = _git(root, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        fix = "name a commit, branch or tag of this repository (`git log`)"
        raise ConfigError(explain(f"there is no commit {commit!r}", why=said.decode().strip(), fix=fix)) from None
    folder = builds / full[:12]
    tree, merged, done = folder / "tree", folder / "merged", folder / "built"
    own = _pins_otherwise(root, full)
    python = str(tree / ".venv" / "bin" / "python") if own else sys.executable
    if not (done.exists() and (tree / "benchmarks").exists()):
        _build(root, full, folder, own)
        done.touch()
    _merge(root, tree, merged)
    build = Build(full, full[:7], python, merged, (merged, tree))
    if (found := _known(build)) is None:
        build = Build(full, full[:7], python, tree, (tree,))
        found = _known(build)
    if found is None:
        raise ConfigError(
            explain(
                f"commit {full[:7]} cannot be measured",
                where=str(tree),
                why="its benchmarks cannot be imported; Python's message is above",
                fix="name a later commit",
            )
        )
    cases, transports = map(frozenset, found)
    return replace(build, cases=cases, transports=transports)


def _build(root: Path, commit: str, folder: Path, own: bool) -> None:
    """The worktree, and its kernels: both anew, where an earlier attempt did not come to its end."""
    tree = folder / "tree"
    folder.mkdir(parents=True, exist_ok=True)
    if tree.exists():
        _git(root, "worktree", "remove", "--force", str(tree))
    _git(root, "worktree", "prune")
    _git(root, "worktree", "add", "--detach", str(tree), commit)
    if own:
        _run(["make", "setup", f"PYTHON={sys.executable}"], tree, {})
        return
    tools = folder / "tools"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(tree / "constraints.txt")]
    _run([*install, "--target", str(tools), "pybind11", "setuptools", "wheel"], folder, {})
    _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tree, {"PYTHONPATH": str(tools)})


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    if subprocess.run(command, cwd=folder, env={**os.environ, **environment}, stdout=2, check=False).returncode:
        what, fix = "the other commit could not be built", "the command's own message is above"
        raise ConfigError(explain(what, where=f"{folder}: {' '.join(command)}", fix=fix))


def _pins_otherwise(root: Path, commit: str) -> bool:
    """Whether a commit asks for another version of a package that this checkout pins as well."""
    ours = _pins((root / "constraints.txt").read_text())
    theirs = _pins(_git(root, "show", f"{commit}:constraints.txt").decode())
    return any(ours.get(name, pin) != pin for name, pin in theirs.items())


def _pins(text: str) -> dict[tuple[str, str], str]:
    """Versions by package and by the condition of the line."""
    found = {}
    for line in text.splitlines():
        package, _, rest = line.partition("#")[0].partition("==")
        version, _, condition = rest.partition(";")
        if version:
            found[package.strip(), condition.strip()] = version.strip()
    return found


def _merge(root: Path, tree: Path, merged: Path) -> None:
    """The other commit's benchmarks with this checkout's cases."""
    shutil.rmtree(merged, ignore_errors=True)
    shutil.copytree(tree / "benchmarks", merged / "benchmarks")
    for name in _DEFINITIONS:
        if (root / "benchmarks" / name).exists():
            shutil.copyfile(root / "benchmarks" / name, merged / "benchmarks" / name)


def _known(build: Build) -> tuple[list[str], list[str]] | None:
    """The cases and transports that a build knows; None where it cannot be asked."""
    asked = build.ask("-c", _ASK)
    return json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else None
