"""What one party brings to `securemodel predict`, and what it keeps: its options, inputs, and record of results."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from protocols.errors import explain
from protocols.names import PUBLIC
from securemodel.cli.locks import locked
from securemodel.cli.results import FORMATS, Record, Result, check_space
from securemodel.compiler.capture import example_tensors
from securemodel.compiler.postprocess import result_names
from securemodel.errors import InputError
from securemodel.files.reader import Format
from securemodel.files.rows import Choice, Rows, Wanted, open_rows
from securemodel.ledger import state_folder
from securemodel.program import Program
from securemodel.sessions.own_inputs import input_check, reads_own_weights, rows_of_graph

_WHOEVER = "*"  # before an option's value: for the one party it concerns, whoever that is
_SHARED = ("id", "delimiter", "encoding")  # of these, what is said for whoever it concerns is said for all of them

Model = Callable[[], torch.nn.Module | None]


@dataclass(frozen=True)
class Given:
    """The options that say whose files are used, and how they are read: each value may begin with PARTY=."""

    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    divide_by: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    delimiter: tuple[str, ...] = ()
    encoding: tuple[str, ...] = ()
    journal: tuple[str, ...] = ()
    report: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    header: bool | None = None

    def words(self, parties: Sequence[str]) -> list[str]:
        """The same options for the process of each of several parties."""
        made = [] if self.header is None else ["--header" if self.header else "--no-header"]
        for name, values in vars(self).items():
            for value in values if name != "header" else ():
                who = value.partition("=")[0]
                made += [f"--{name.replace('_', '-')}", value if who in parties else f"{_WHOEVER}={value}"]
        return made

    def of(self, me: str, name: str, parties: Sequence[str], concerned: Sequence[str]) -> str | None:
        """What one option says to this party. Raises InputError where that is unclear."""
        option, found = f"--{name.replace('_', '-')}", {}
        for value in getattr(self, name):
            who, separator, rest = value.partition("=")
            known = separator and (who in parties or who == _WHOEVER)
            found[who if known else ""] = rest if known else value
        if _WHOEVER in found and len(concerned) > 1 and me not in found and name not in _SHARED:
            fix = " ".join(f"{option} {party}=..." for party in concerned)
            raise InputError(explain(f"whose {option} is meant: that of {' or '.join(concerned)}?", fix=f"give {fix}"))
        said = found.get(me, found.get(""))
        if said is not None and me not in concerned:
            raise InputError(
                explain(
                    f"party {me!r} has no use for {option}",
                    why=f"in this program it concerns {' and '.join(concerned) or 'nobody'}",
                    fix="leave it out here",
                )
            )
        return said if said is not None or me not in concerned else found.get(_WHOEVER)


@dataclass(frozen=True)
class Part:
    """What a party brings and keeps: the rows of its inputs, which of the results it gets, and its record of them.

    `notes` is what the user should know about how its files were read.
    """

    rows: Rows | None
    mine: tuple[bool, ...]
    results: tuple[int, ...]
    record: Record | None
    notes: tuple[str, ...] = ()


@contextmanager
def open_part(program: Program, me: str, given: Given, model: Model | None = None) -> Iterator[Part]:
    """Opens a party's files and holds them for this process; all that can be wrong with them is found here.

    `model` gives the weights of this party, for what it computes from its inputs with them. Raises InputError and
    FileError before anything is connected.
    """
    header, size = program.header, program.header.rows
    if any(not shape or shape[0] != size for shape in header.input_shapes):
        raise InputError(
            explain("this program does not read inputs row by row", fix="use securemodel run and session.run()")
        )
    mine = tuple(owner in (me, PUBLIC) for owner in header.inputs)
    indices, results = _results(program, me, size)
    source, output = _input(program, me, given), _output(program, me, given)
    if not output and not source:
        yield Part(None, mine, (), None)
        return
    journal, notes = _journal(program, me, given, output, source)
    _check_distinct(output, source, journal)
    with ExitStack() as held:
        for path in (output, journal):
            if path:
                held.enter_context(locked(path))
        record = Record(output, journal, results, program.digest, size)
        rows = None
        if source:
            check = input_check(
                program, me, (model or (lambda: program.model))() if reads_own_weights(program, me) else None
            )
            rows = open_rows(source, _wanted(program, mine), _choice(program, me, given), size, check)
            _check_rows(program, rows, size, results if output else ())
            record.compare(rows)
            if output and not record.is_complete:
                check_space(journal.parent, rows.count, results)
        yield Part(rows, mine, indices if output else (), record, (*(rows.notes if rows else ()), *notes))


def _results(program: Program, me: str, size: int) -> tuple[tuple[int, ...], tuple[Result, ...]]:
    """Which results of each row this party gets, and what they are."""
    to_me = [node for node in program.graph.nodes if node.op == "reveal" and node.owner in (me, "all")]
    to_me.sort(key=lambda node: node.attrs["index"])
    if any(not node.shape or node.shape[0] != rows_of_graph(program) for node in to_me):
        raise InputError(explain("this program does not give a result for each row", fix="use securemodel run"))
    names = result_names(program.reveal, len(program.header.results))
    kinds = {"bfloat16": "float32"}  # which NumPy does not have
    made = [Result(names[n.attrs["index"]], n.shape[1:], kinds.get(n.attrs["dtype"], n.attrs["dtype"])) for n in to_me]
    return tuple(node.attrs["index"] for node in to_me), tuple(made)


def _check_rows(program: Program, rows: Rows, size: int, results: Sequence[Result]) -> None:
    if rows.count % size and not program.row_independent:
        raise InputError(
            explain(
                f"the input has {rows.count} rows, which is no multiple of {size}",
                why="in this model the rows of a batch depend on each other",
                fix=f"give full batches of {size} rows, or compile for another number of rows",
            )
        )
    if rows.id_name in {name for result in results for name in (result.name, *result.columns())}:
        what, fix = f"the ids and a result are both called {rows.id_name!r}", "give the column of ids another name"
        raise InputError(explain(what, where="--id", fix=fix))


def _owners(program: Program) -> tuple[str, ...]:
    """Who gives inputs: everybody, if some are public."""
    owners = dict.fromkeys(program.header.inputs)
    return program.parties if PUBLIC in owners else tuple(owners)


def _receivers(program: Program) -> tuple[str, ...]:
    """Who is named as getting results: nobody, where all do."""
    return tuple(dict.fromkeys(name for name in program.header.results if name != "all"))


def _input(program: Program, me: str, given: Given) -> Path | None:
    said = given.of(me, "input", program.parties, _owners(program))
    if said is None and me in _owners(program):
        fix = "give --input FILE"
        raise InputError(explain(f"party {me!r} owns inputs of this program and gives none", fix=fix))
    return Path(said) if said is not None else None


def _wanted(program: Program, mine: Sequence[bool]) -> list[Wanted]:
    examples = example_tensors(program.examples)
    return [Wanted(tuple(x.shape[1:]), x.dtype) for x, own in zip(examples, mine, strict=True) if own]


def _choice(program: Program, me: str, given: Given) -> Choice:
    """What of this party's file is meant. Raises InputError."""
    options = ("columns", "arrays", "divide_by", "id", "delimiter", "encoding")
    said = {name: given.of(me, name, program.parties, _owners(program)) for name in options}
    try:
        divide_by = float(said["divide_by"] or 1)
        if not 0 < abs(divide_by) < float("inf"):
            raise ValueError
    except ValueError:
        raise InputError(explain("--divide-by is not a number to divide by", fix="give one, like 255")) from None
    form = Format(said["delimiter"], said["encoding"] or "utf-8", given.header)
    return Choice(_listed(said["columns"]), _listed(said["arrays"]), divide_by, (said["id"] or "").strip(), form)


def _listed(names: str | None) -> tuple[str, ...]:
    """The parts of "a, b"; a name with a comma in it stands in quotes."""
    return tuple(name.strip() for name in next(csv.reader([names or ""], skipinitialspace=True), ()) if name.strip())


def _output(program: Program, me: str, given: Given) -> Path | None:
    """Where this party's results go; of results for all, at least the owners of inputs keep a copy."""
    named = _receivers(program)
    concerned = program.parties if "all" in program.header.results else named
    said = given.of(me, "output", program.parties, concerned)
    if said is None:
        if me in (named or _owners(program)):
            fix = "give --output FILE.csv or FILE.npz"
            raise InputError(explain(f"party {me!r} gets results of this program", fix=fix))
        return None
    if Path(said).suffix.lower() not in FORMATS:
        raise InputError(explain("results are written as .csv or .npz", where=said, fix="give --output such a name"))
    return Path(said)


def page_of(program: Program, me: str, given: Given) -> tuple[Path | None, str | None]:
    """Where this party wants a page of its results, and the file of labels to compare them with. Raises InputError."""
    concerned = program.parties if "all" in program.header.results else _receivers(program)
    page, labels = (given.of(me, name, program.parties, concerned) for name in ("report", "labels"))
    if labels and not page:
        raise InputError(explain("labels are compared with results on a page", fix="give --report FILE.html, too"))
    if page and Path(page).suffix != ".html":
        raise InputError(explain("a report is a page", where=page, fix="give it a name like report.html"))
    if page and not given.of(me, "output", program.parties, concerned):
        raise InputError(explain("a report is about the results of an output", fix="give --output, too"))
    return Path(page) if page else None, labels


def _journal(
    program: Program, me: str, given: Given, output: Path | None, source: Path | None
) -> tuple[Path, tuple[str, ...]]:
    """Where this party keeps the job, and what to tell about it: beside its output, or else its input if that can be."""
    concerned = tuple(dict.fromkeys((*_owners(program), *(_receivers(program) or program.parties))))
    said = given.of(me, "journal", program.parties, concerned)
    if said is not None:
        return Path(said), ()
    beside = cast(Path, output or source)
    if not beside.name or beside.name == "..":
        beside = beside.resolve()
    if output or os.access(beside.parent, os.W_OK):
        return beside.with_name(f"{beside.name}.journal"), ()
    which = hashlib.sha256(os.fsencode(os.path.realpath(beside))).hexdigest()[:12]
    path = state_folder() / f"{beside.name}-{which}.journal"
    return path, (f"{beside.parent}: cannot be written; the journal is {path}",)


def _check_distinct(output: Path | None, source: Path | None, journal: Path) -> None:
    places = [os.path.realpath(path) for path in (output, source, journal) if path]
    if len(set(places)) < len(places):
        raise InputError(explain("input, output and journal are not three files", where=", ".join(places),
                                 fix="give each its own name"))  # fmt: skip
