"""The bench: rows survive what fails, files are continued, and another commit takes turns with this one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import builds
from benchmarks.builds import Build
from benchmarks.cases import BY_NAME, PARTIES, Case
from benchmarks.measure import failed_row, machine, measure
from benchmarks.rows import NOT_KNOWN, SYSTEM, Row
from protocols.errors import ConfigError

CASE = BY_NAME["lenet5_b1"]
RUN = {"inputs_shared": 0.0, "seconds": 1.0}
SAID = {
    "rounds": 3,
    "evaluation_bytes": 10,
    "preprocessing_bytes": 20,
    "load_seconds": 1.0,
    "compile_seconds": 1.0,
    "peak_memory_bytes": 5,
    "error": None,
    "kernels": "v3",
}


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs the command with measurements that fail for some cases; gives exit code, rows, and what was measured."""
    measured: list[tuple[str, str]] = []

    def call(*names: str, failing: tuple[str, ...] = (), unclear: tuple[str, ...] = (), here: str = machine()):
        def made(case: Case, transport: str, repeat: int, plain: float, chosen, turns: int) -> list[Row]:
            measured.append((case.name, transport))
            problem = "alice: it broke" if case.name in failing else None
            row = failed_row(case, transport, repeat, chosen[0], problem)
            return [replace(row, machine=here, seconds=None if problem else 1.0)]

        def clear(case: Case) -> float:
            if case.name in unclear:
                raise MemoryError("no room\nfor it")
            return 0.1

        monkeypatch.setattr(command, "measure", made)
        monkeypatch.setattr(command, "machine", lambda: here)
        monkeypatch.setattr(command, "plaintext_seconds", clear)
        measured.clear()
        result = CliRunner().invoke(command.main, [*names, "--only-tls", "--json", str(tmp_path / "rows.json")])
        assert isinstance(result.exception, (SystemExit, type(None))), result.exception
        rows = json.loads((tmp_path / "rows.json").read_text())
        return result, {(row["case"], row["system"]): row["problem"] for row in rows}, list(measured)

    return call


def test_a_case_that_fails_costs_its_own_rows_alone_and_a_file_is_continued(bench) -> None:
    exact, fast = SYSTEM["tls"], SYSTEM["fast"]
    result, rows, _ = bench("relu", "exp", "sort", failing=("relu",), unclear=("exp",))
    assert result.exit_code == 1 and "relu (securemodel): alice: it broke" in result.output
    assert rows["relu", exact] == "alice: it broke" and rows["exp", fast] == "MemoryError: no room"
    assert rows["sort", exact] is None and len(rows) == 6

    result, rows, measured = bench("relu", "exp", "sort")
    assert result.exit_code == 0 and len(rows) == 6 and not any(rows.values())
    assert measured == [("relu", "tls"), ("relu", "fast"), ("exp", "tls"), ("exp", "fast")]
    assert "relu, securemodel: 1.000 s" in result.output, "each row is told when it is measured"

    result, rows, measured = bench("relu", here="elsewhere")
    assert result.exit_code == 1 and "machine is elsewhere now, and" in result.output
    assert len(rows) == 6 and not measured


@dataclass(frozen=True)
class Told(Build):
    """A build whose processes do what a line of Python says, each with the names `folder`, `role` and `seconds`."""

    says: str = "done(folder, role, seconds)"
    seconds: float = 1.0
    started: list[str] = field(default_factory=list)

    def start(self, *words: str, **options) -> subprocess.Popen:
        self.started.append(self.name)
        report = {**SAID, "runs": [{**RUN, "result_shared": self.seconds}] * 2, "ends": []}
        text = f"""
import json, pathlib, sys, time
folder, role, seconds = pathlib.Path({words[2]!r}), {words[-1]!r}, {self.seconds}
def done(*_): (folder / f"{{role}}.json").write_text({json.dumps(report)!r})
def problem(line, of_peer):
    (folder / f"{{role}}.problem").write_text(json.dumps({{"line": line, "of_peer": of_peer}}))
    sys.exit(1)
{self.says}
"""
        return subprocess.Popen([sys.executable, "-c", text], **options)


def test_builds_take_turns_and_their_ratio_is_of_the_fastest_runs() -> None:
    started: list[str] = []
    ours = Told("a" * 40, seconds=1.0, started=started)
    theirs = Told("b" * 40, "bbbbbbb", seconds=4.0, started=started)
    row, other = measure(CASE, "tls", 2, 0.1, [ours, theirs], turns=2)
    assert started == [name for name in ["", "bbbbbbb"] * 2 for _ in range(3)]
    assert (row.seconds, other.seconds, row.ratio, row.lowest_ratio, row.highest_ratio) == (1.0, 4.0, 0.25, 0.25, 0.25)
    assert (other.system, other.commit, row.kernels, row.repeat) == ("securemodel @bbbbbbb", "b" * 40, "v3", 2)


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        (
            "problem('PeerDied: alice is gone', True) if role == 'bob' else time.sleep(0.2) or problem('no', False)",
            "no",
        ),
        ("sys.exit(7) if role == 'dealer' else time.sleep(60)", "dealer: exit code 7"),
    ],
)
def test_a_row_says_what_the_process_said_that_is_the_cause(says: str, problem: str) -> None:
    ours, theirs = Told("a", says=says), Told("b", "b", cases=frozenset())
    row, other = measure(CASE, "tls", 1, 0.1, [ours, theirs])
    assert problem in (row.problem or "") and row.failed and row.seconds is None
    assert other.problem == NOT_KNOWN and not other.failed


def test_the_worker_leaves_the_first_line_of_its_error(tmp_path: Path) -> None:
    from benchmarks.worker import _tell

    _tell(str(tmp_path), PARTIES[0], ConfigError("one\n  two"))
    said = json.loads((tmp_path / "alice.problem").read_text())
    assert said == {"line": "ConfigError: one", "of_peer": False}


def git(folder: Path, *words: str) -> str:
    of = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(folder), *of, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A project whose first commit pins `one==1`, knows the case `old` and one way of rounding."""
    root = tmp_path / "project"
    for name, text in {
        "setup.py": "open('kernel.so', 'w').write('built')",
        "constraints.txt": "one==1\n",
        "Makefile": "setup:\n\tmkdir -p .venv/bin && ln -s $(PYTHON) .venv/bin/python\n",
        "benchmarks/__init__.py": "",
        "benchmarks/cases.py": "BY_NAME = {'old': 1}",
        "benchmarks/measure.py": "SYSTEM = {'tls': ''}",
        "benchmarks/worker.py": "import benchmarks.cases",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_another_commit_is_built_apart_and_runs_these_cases_where_it_can(
    repository: Path, tmp_path: Path, monkeypatch
) -> None:
    run, commands = builds._run, []

    def noted(command: list[str], folder: Path, environment: dict[str, str]) -> None:
        commands.append(command[1])
        if "pip" not in command:
            run(command, folder, environment)

    monkeypatch.setattr(builds, "_run", noted)
    cases, constraints = repository / "benchmarks" / "cases.py", repository / "constraints.txt"
    cases.write_text("BY_NAME = {'old': 1, 'new': 2}")
    made = builds.other("HEAD", repository, tmp_path / "builds")
    assert made.cases == {"old", "new"} and made.transport("fast") == "tls" and made.python == sys.executable
    assert (tmp_path / "builds" / made.commit[:12] / "tree" / "kernel.so").read_text() == "built"
    assert not (repository / "kernel.so").exists()

    commands.clear()
    cases.write_text("import what_only_later_commits_have")
    assert builds.other("HEAD", repository, tmp_path / "builds").cases == {"old"} and not commands, (
        "it was built already"
    )

    shutil.rmtree(tmp_path / "builds" / made.commit[:12] / "tree")
    assert builds.other("HEAD", repository, tmp_path / "builds").cases == {"old"}, "what was removed is built again"

    commands.clear()
    constraints.write_text("one==2\n")
    made = builds.other("HEAD", repository, tmp_path / "apart")
    assert ".venv" in made.python and commands == ["setup"], "other versions: an environment of its own"
    with pytest.raises(ConfigError, match="no commit 'nowhere'"):
        builds.other("nowhere", repository, tmp_path / "builds")


def test_a_commit_with_changes_is_named_apart(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD").strip()
    assert builds.commit_of(repository) == head
    (repository / "setup.py").write_text("")
    assert builds.commit_of(repository).startswith(f"{head}+")
