"""A page about the results of `securemodel predict`: rows, classes, scores, and how they compare with labels.

It loads nothing and runs nothing, and each picture has its numbers as a table beside it.
"""

from __future__ import annotations

import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protocols.errors import InputError, explain
from protocols.files import file_errors, open_atomically
from securemodel.data.pictures import drawn
from securemodel.data.report import page, table
from securemodel.files.reader import Format, open_table
from securemodel.inspect.audit import audit
from securemodel.program import Program

_MODE = 0o600  # it is for the receiver of the results alone, like them
_BINS = 20
_ON_A_PAGE, _PAGES, _UNSURE = 100, 10, 20
_COLOR = "#1f5fa8"


@dataclass(frozen=True)
class Results:
    """Rows of results as the output has them: names of rows, columns, numbers. `kind` says what the columns are."""

    ids: Sequence[str] = field(repr=False)
    id_name: str
    columns: Sequence[str]
    numbers: np.ndarray = field(repr=False)
    kind: str

    @property
    def classes(self) -> np.ndarray | None:
        """The best class of each row, where results tell one."""
        if self.kind == "class":
            return self.numbers[:, 0].astype(np.int64)
        return self.numbers.argmax(1) if self.kind == "scores" and self.numbers.shape[1] > 1 else None

    @property
    def scores(self) -> np.ndarray | None:
        """The largest score of each row."""
        if self.kind == "scores":
            return self.numbers.max(1)
        scored = [at for at, name in enumerate(self.columns) if name.startswith(("score", "probability"))]
        return self.numbers[:, scored].max(1) if scored else None


def read_labels(text: str) -> np.ndarray:
    """True classes from FILE.npy, or from a table, as FILE or FILE:COLUMN. Raises InputError, FileError."""
    whole, (name, _, column) = Path(text), text.rpartition(":")
    path, chosen = (whole, "") if whole.exists() or not name else (Path(name), column)
    if path.suffix == ".npy":
        with file_errors(path):
            found = np.load(path, allow_pickle=False)
        if found.ndim != 1 or found.dtype.kind not in "iu" or (found < 0).any():
            raise _no_labels(str(path), f"it has {found.dtype} numbers of shape {list(found.shape)}")
        return found.astype(np.int64)
    opened = open_table(path, Format(), (chosen,) if chosen else ())
    if len(opened.columns) != 1:
        raise InputError(explain(f"labels are one column, and there are {len(opened.columns)}", where=str(path),
                                 fix=f"say which: --labels {path}:COLUMN"))  # fmt: skip
    labels = []
    for line, cells in opened.rows():
        cell = cells[opened.columns[0]].strip()
        if not (cell.isascii() and cell.isdigit() and len(cell) < 10):
            raise _no_labels(opened.place(line, opened.columns[0]), f"it is {cell[:40]!r}")
        labels.append(int(cell))
    return np.array(labels, np.int64)


def _no_labels(where: str, why: str) -> InputError:
    return InputError(explain("this is no class", where=where, why=why, fix="classes are whole numbers from 0"))


def write_page(path: Path, program: Program, me: str, output: Path, labels: np.ndarray | None) -> None:
    """Writes the page about a finished output. Raises InputError, FileError, ConfigError (matplotlib)."""
    results = _read(output, program)
    parts = [_revealed(program, me, results), _classes(results), _scores(results)]
    if labels is not None:
        parts.append(_compared(results, labels))
    text = page("Results", "Computed on inputs and weights that no party showed to another", [*parts, _rows(results)])
    with file_errors(path), open_atomically(path, _MODE) as file:
        file.write(text.encode())


def _read(output: Path, program: Program) -> Results:
    with file_errors(output):
        if output.suffix.lower() == ".csv":
            with output.open(newline="", encoding="utf-8") as file:
                (id_name, *columns), *lines = csv.reader(file)
            ids, numbers = [line[0] for line in lines], np.array([line[1:] for line in lines], float)
        else:
            with np.load(output, allow_pickle=False) as arrays:
                (id_name, *names), found = list(arrays), dict(arrays)
            flat = {name: found[name].reshape(len(found[name]), -1) for name in names}
            columns = [f"{n}_{i}" if x.shape[1] > 1 else n for n, x in flat.items() for i in range(x.shape[1])]
            ids, numbers = [str(name) for name in found[id_name]], np.concatenate(list(flat.values()), 1)
    kind = "class" if columns and columns[0].startswith("class") else "scores"
    return Results(ids, id_name, columns, numbers.astype(float), kind)


def _revealed(program: Program, me: str, results: Results) -> str:
    rows: list[Sequence[Any]] = [("rows", len(results.ids)), ("program", program.digest)]
    for role in (role for role in audit(program).roles if role.name in program.parties):
        who = f"{role.name} (who has this report)" if role.name == me else role.name
        rows.append((f"{who} learns", ", ".join(role.learns) or "nothing"))
    return table("What was computed, and what was revealed", ("what", "value"), rows)


def _figure(name: str, heading: str, words: str, axes: tuple[str, str], heights: np.ndarray, edges: np.ndarray) -> str:
    """Bars, and their numbers as a table."""

    def draw(on: Any) -> str:
        on.bar(edges[:-1], heights, np.diff(edges), align="edge", color=_COLOR, edgecolor="white")
        on.set(xlabel=axes[0], ylabel=axes[1])
        return words

    return f"<figure>{drawn(name, heading, draw)}</figure>"


def _classes(results: Results) -> str:
    classes = results.classes
    if classes is None or not len(classes) or classes.min() < 0:
        return ""
    counts = np.bincount(classes)
    words = "; ".join(f"class {at}: {count} rows" for at, count in enumerate(counts) if count)
    figure = _figure("classes", "Rows by class", words, ("class", "rows"), counts, np.arange(len(counts) + 1) - 0.5)
    rows = [(f"class {at}", int(count), f"{count / len(classes):.1%}") for at, count in enumerate(counts)]
    return f"<h2>Classes</h2>{figure}{table('Rows by class', ('class', 'rows', 'share'), rows)}"


def _scores(results: Results) -> str:
    scores = results.scores
    if scores is None or not len(scores) or not np.isfinite(scores).all():
        return ""
    heights, edges = np.histogram(scores, _BINS)
    words = f"From {scores.min():.4g} to {scores.max():.4g}, half of the rows below {np.median(scores):.4g}."
    figure = _figure("scores", "Largest score of each row", words, ("largest score", "rows"), heights, edges)
    rows = [(f"{a:.4g} to {b:.4g}", int(n)) for a, b, n in zip(edges, edges[1:], heights, strict=False)]
    numbers = table("Rows by their largest score", ("score", "rows"), rows)
    return f"<h2>Scores</h2><p>{words}</p>{figure}<details><summary>The numbers</summary>{numbers}</details>"


def _compared(results: Results, labels: np.ndarray) -> str:
    classes = results.classes
    if classes is None:
        raise InputError(explain("these results tell no class", where="--labels", fix="leave --labels out"))
    if len(labels) != len(classes):
        raise InputError(explain(f"there are {len(labels)} labels for {len(classes)} rows", where="--labels",
                                 fix="give one label for each row, in the order of the input"))  # fmt: skip
    count = int(max(labels.max(initial=0), classes.max(initial=0))) + 1
    if count > 1000:
        raise InputError(explain(f"a label or a class is {count - 1}", where="--labels", fix="classes are 0 to 999"))
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (labels, classes), 1)
    right = int(np.trace(matrix))
    rows = [(f"class {at}", *map(int, row)) for at, row in enumerate(matrix)]
    head = ("", *(f"called {at}" for at in range(count)))
    counts = table("Rows by class (down) and by what they are called (across)", head, rows)
    return (
        f"<h2>Confusion matrix</h2><p>{right} of {len(labels)} rows are right ({right / len(labels):.1%}).</p>{counts}"
    )


def _rows(results: Results) -> str:
    """The rows that are least sure, and the first ones in their order, in pages that open."""
    parts = ["<h2>Rows</h2>"]
    scores = results.scores
    if scores is not None and len(scores) > _UNSURE:
        unsure = np.argsort(scores, kind="stable")[:_UNSURE]
        parts.append(_opening(f"The {_UNSURE} rows with the smallest largest score", results, unsure))
    shown = min(len(results.ids), _ON_A_PAGE * _PAGES)
    for first in range(0, shown, _ON_A_PAGE):
        after = min(first + _ON_A_PAGE, shown)
        parts.append(_opening(f"Rows {first + 1} to {after}", results, range(first, after), first == 0))
    if shown < len(results.ids):
        parts.append(f"<p>{len(results.ids) - shown} further rows are in the output.</p>")
    return "\n".join(parts)


def _opening(caption: str, results: Results, chosen: Sequence[int] | np.ndarray, is_open: bool = False) -> str:
    rows = [(results.ids[at], *(_number(x) for x in results.numbers[at])) for at in chosen]
    body = table(caption, (results.id_name, *results.columns), rows)
    return f"<details{' open' if is_open else ''}><summary>{html.escape(caption)}</summary>{body}</details>"


def _number(x: float) -> float | int:
    return int(x) if float(x).is_integer() and abs(x) < 2**53 else float(x)
