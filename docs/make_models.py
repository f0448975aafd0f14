"""Runs other people's models and writes what came of it into docs/models.json and docs/models.md.

    python docs/make_models.py             # those of the installed transformers, torchvision, timm and peft
    python docs/make_models.py BERT GPT-2  # only these architectures, classes or libraries

Each model runs in a process of its own with a time limit, one after the other. Results of other models and of other
versions of a library stay as they are.
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))

import catalog

import securemodel
from securemodel.compiler.capture import call, decompositions, tensors_in
from securemodel.errors import CompileError

PAGE, KEPT = ROOT / "docs" / "models.md", ROOT / "docs" / "models.json"
SECONDS = 60
BOUND = 1e-2
"""Largest difference from the model in the clear, of the largest number in its result, with which they agree."""


@dataclass(frozen=True)
class Tried:
    """What came of one class: `status` is agrees, refused, WRONG or FAILED, `why` what was said."""

    status: str
    why: str = ""
    error: float = 0.0
    seconds: float = 0.0
    rounds: int = 0
    sent: int = 0
    dealt: int = 0


# ---- one model
def run(model: torch.nn.Module, given: catalog.Inputs) -> Tried:
    """Compiles a model, runs it between two parties in this process, and compares."""
    inputs = tuple(given.values())
    with torch.no_grad():
        right = tensors_in(call(copy.deepcopy(model), given, inputs))  # a copy: some remember what they have seen
    try:
        program = securemodel.compile(model, given, weights="bank", inputs="hospital", outputs="hospital")
    except securemodel.UnsupportedOperator as refusal:
        return Tried("refused", first_reason(refusal.report))
    except CompileError as refusal:
        return Tried("refused", " ".join(str(refusal).split()))
    start = time.perf_counter()
    with torch.no_grad(), securemodel.local(program) as session:
        made = tensors_in(session.run(*inputs))
        seconds, stats = time.perf_counter() - start, session.stats
    error = max(map(difference, made, right))
    sent = sum(stats.sent_bytes.values())
    status = "agrees" if error <= BOUND else "WRONG"
    return Tried(status, "", error, seconds, stats.rounds, sent, stats.preprocessing_bytes)


def first_reason(report: securemodel.Report) -> str:
    """The first problem of a report in one line, and how many more there are."""
    problem, more = report.problems[0], len(report.problems) - 1
    said = f"{problem.operator}: {problem.reason} ({problem.source})"
    return f"{said}, and {more} more" if more else said


def difference(made: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference relative to the largest number; infinite where shapes differ or nothing can be said."""
    if made.shape != right.shape or not right.numel():
        return float("inf") if made.shape != right.shape else 0.0
    made, right = made.double(), right.double()
    error, scale = float((made - right).abs().max()), float(right.abs().max())
    return 0.0 if error == 0 else error / scale if scale and math.isfinite(error) else float("inf")


def apart(make: Callable[[], tuple[torch.nn.Module, catalog.Inputs]]) -> Tried:
    """Runs a model in a process of its own, so that a crash, too, is an answer."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, make))
    process.start()
    there.close()
    try:
        said = Tried(**here.recv()) if here.poll(SECONDS) else Tried("FAILED", f"not done within {SECONDS} s")
    except EOFError:
        said = Tried("FAILED", "its process ended without a word")
    process.kill()
    process.join()
    return said


def _answer(out: Connection, make: Callable[[], tuple[torch.nn.Module, catalog.Inputs]]) -> None:
    warnings.simplefilter("ignore")
    try:
        out.send(asdict(run(*make())))
    except Exception as problem:
        out.send(asdict(Tried("FAILED", f"{type(problem).__name__}: {' '.join(str(problem).split())}")))


# ---- the page
Results = Mapping[str, Mapping[str, Tried]]
"""By architecture and class."""


def read() -> dict[str, dict[str, dict[str, Tried]]]:
    """Earlier results: by library and version, architecture, class."""
    found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return {
        title: {name: {kind: Tried(**tried) for kind, tried in classes.items()} for name, classes in results.items()}
        for title, results in found.items()
    }


def in_order(results: Results) -> Results:
    """Architectures and classes as the catalog has them, without those that it no longer has."""
    known: dict[str, list[str]] = {}
    for architecture, family in catalog.TRANSFORMERS.items():
        known[architecture] = list(family.classes)
    for _, architecture, name, _ in catalog.models():
        known.setdefault(architecture, []).append(name)
    ordered = {
        at: {name: results[at][name] for name in known[at] if name in results[at]} for at in known if at in results
    }
    return {architecture: classes for architecture, classes in ordered.items() if classes}


def section(title: str, results: Results) -> str:
    """The results of one version of a library."""
    every = [tried for classes in results.values() for tried in classes.values()]
    agreeing = [tried for tried in every if tried.status == "agrees"]
    lines = [f"## {title}\n", f"{len(agreeing)} of {len(every)} classes agree.\n", *_rows(HEADING, _agreeing(results))]
    others = [
        (architecture, f"`{name}`", tried.status, f"{tried.error:.1g}" if tried.status == "WRONG" else _cell(tried.why))
        for architecture, classes in results.items()
        for name, tried in classes.items()
        if tried.status != "agrees"
    ]
    if others:
        lines += ["", *_rows(("architecture", "class", "", "what is said"), others)]
    return "\n".join(lines)


HEADING = ("architecture", "classes", "error", "seconds", "rounds", "sent, MB", "dealt, MB")


def _agreeing(results: Results) -> Iterator[tuple[str, ...]]:
    for architecture, classes in results.items():
        done = {name: tried for name, tried in classes.items() if tried.status == "agrees"}
        if done:
            first, error = next(iter(done.values())), max(tried.error for tried in done.values())
            sizes = (f"{size / 1e6:.2f}" for size in (first.sent, first.dealt))
            names = " ".join(f"`{name}`" for name in done)
            yield architecture, names, f"{error:.1e}", f"{first.seconds:.1f}", str(first.rounds), *sizes


def _rows(heading: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> list[str]:
    numbers = ("error", "seconds", "rounds", "sent, MB", "dealt, MB")
    rule = ["---:" if name in numbers else "---" for name in heading]
    return ["| " + " | ".join(row) + " |" for row in (heading, rule, *rows)]


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("`", "'")[:300]


TEXT = """\
# Other people's models

Classes of other libraries, tiny and with random weights, and what came of them: `docs/make_models.py` compiles and runs
each of `tests/models/catalog.py` between two parties in one process (`weights="bank"`, `inputs="hospital"`), and writes
this page.

- **Error**: the largest difference from the model in the clear, divided by the largest number of that result; the
  largest of all classes of the line. A class agrees where it is at most 0.01.
- **Seconds, rounds, sent, dealt**: of a run of the line's first class, on one core; what both parties send, and what
  the dealer does.
- **dense_moe(...)**: mixtures of experts send each token to the experts that its values choose, and are refused;
  `securemodel.models.dense_moe(model)` makes a model with the same parameters and results that computes every expert
  and adds up with secret weights.
- RecurrentGemma of transformers 4 computes something else while torch captures it (it leaves the factor of its inputs
  out where `torch.compiler.is_compiling()` says so), and is refused.
- Classes that do not agree are listed below their section with what `check` says first.
"""


def results_of(names: Sequence[str] = ()) -> Iterator[tuple[str, str, str, Tried]]:
    """(library, architecture, class, what came of it) of those that the installed libraries have."""
    for library, architecture, name, make in catalog.models():
        if not names or {library, architecture, name} & set(names):
            yield library, architecture, name, apart(make)


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    decompositions()  # takes seconds, and once is enough for all processes
    results = read()
    for library, architecture, name, tried in results_of(names):
        print(f"{name:40} {tried.status:8} {tried.error:8.1e} {tried.seconds:5.1f} s  {tried.why}", flush=True)
        results.setdefault(f"{library} {version(library)}", {}).setdefault(architecture, {})[name] = tried
        KEPT.write_text(json.dumps(results, default=asdict, indent=1) + "\n")
    sections = [section(title, in_order(found)) for title, found in sorted(results.items())]
    PAGE.write_text("\n\n".join([TEXT, *sections]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
