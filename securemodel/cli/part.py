"""What one party brings to `securemodel predict`, and what it keeps: its options, inputs, and record of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import explain
from securemodel.cli.results import FORMATS, Journal, Record, Result
from securemodel.cli.script import split_names
from securemodel.cli.tables import Choice, Rows, Wanted, open_rows
from securemodel.compiler.builder import PUBLIC
from securemodel.compiler.postprocess import result_names
from securemodel.errors import InputError
from securemodel.program import Program
from securemodel.runtime.session import compiled_rows

_WHOEVER = "*"  # before an option's value: for the one party it concerns, whoever that is


@dataclass(frozen=True)
class Given:
    """The options that say whose files are used: each value may begin with PARTY=."""

    input: tuple[str, ...]
    output: tuple[str, ...]
    columns: tuple[str, ...]
    arrays: tuple[str, ...]
    divide_by: tuple[str, ...]

    def words(self, parties: Sequence[str]) -> list[str]:
        """The same options for the process of each of several parties."""
        made = []
        for name, values in vars(self).items():
            for value in values:
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
        if _WHOEVER in found and len(concerned) > 1 and me not in found:
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
    """What a party brings and keeps: the rows of its inputs, which of the results it gets, and its record of them."""

    rows: Rows | None
    mine: tuple[bool, ...]
    results: tuple[int, ...]
    record: Record | None


def open_part(program: Program, me: str, given: Given) -> Part:
    """Opens a party's files. Raises InputError before anything is connected."""
    header, size = program.header, compiled_rows(program.header.input_shapes)
    if any(not shape or shape[0] != size for shape in header.input_shapes):
        raise InputError(
            explain("this program does not read inputs row by row", fix="use securemodel run and session.run()")
        )
    mine = tuple(owner in (me, PUBLIC) for owner in header.inputs)
    rows = _rows(program, me, mine, given)
    if rows and rows.count % size and not program.row_independent:
        raise InputError(
            explain(
                f"the input has {rows.count} rows, which is no multiple of {size}",
                why="in this model the rows of a batch depend on each other",
                fix=f"give full batches of {size} rows, or compile for another number of rows",
            )
        )
    to_me = [node for node in program.graph.nodes if node.op == "reveal" and node.owner in (me, "all")]
    to_me.sort(key=lambda node: node.attrs["index"])
    names = result_names(program.reveal, len(header.outputs))
    results = tuple(Result(names[n.attrs["index"]], n.shape[1:], n.attrs["dtype"]) for n in to_me)
    if any(not node.shape or node.shape[0] != size for node in to_me):
        raise InputError(explain("this program does not give a result for each row", fix="use securemodel run"))
    output = _output(program, me, given)
    files = [f"{path}.journal" for path in (output, _input_path(program, me, given)) if path]
    if not files:
        return Part(None, mine, (), None)
    fresh = Journal(program.digest, rows.digest if rows else "")
    record = Record(output, Path(files[0]), results, fresh)
    return Part(rows, mine, tuple(n.attrs["index"] for n in to_me) if output else (), record)


def _owners(program: Program) -> tuple[str, ...]:
    """Who gives inputs: everybody, if some are public."""
    owners = dict.fromkeys(program.header.inputs)
    return program.parties if PUBLIC in owners else tuple(owners)


def _input_path(program: Program, me: str, given: Given) -> Path | None:
    said = given.of(me, "input", program.parties, _owners(program))
    return Path(said) if said is not None else None


def _rows(program: Program, me: str, mine: Sequence[bool], given: Given) -> Rows | None:
    path, owners = _input_path(program, me, given), _owners(program)
    if path is None:
        if me in owners:
            fix = "give --input FILE"
            raise InputError(explain(f"party {me!r} owns inputs of this program and gives none", fix=fix))
        return None
    if not path.exists():
        raise InputError(explain("there is no such file or folder", where=str(path), fix="correct --input"))
    wanted = [Wanted(tuple(x.shape[1:]), x.dtype) for x, own in zip(program.examples, mine, strict=True) if own]
    words = {name: given.of(me, name, program.parties, owners) for name in ("columns", "arrays", "divide_by")}
    try:
        divide_by = float(words["divide_by"] or 1)
        if not 0 < abs(divide_by) < float("inf"):
            raise ValueError
    except ValueError:
        raise InputError(explain("--divide-by is not a number to divide by", fix="give one, like 255")) from None
    choice = Choice(tuple(split_names(words["columns"] or "")), tuple(split_names(words["arrays"] or "")), divide_by)
    return open_rows(path, wanted, choice)


def _output(program: Program, me: str, given: Given) -> Path | None:
    """Where this party's results go; of results for all, at least the owners of inputs keep a copy."""
    named = tuple(dict.fromkeys(name for name in program.header.outputs if name != "all"))
    concerned = program.parties if "all" in program.header.outputs else named
    said = given.of(me, "output", program.parties, concerned)
    if said is None:
        if me in (named or _owners(program)):
            fix = "give --output FILE.csv or FILE.npz"
            raise InputError(explain(f"party {me!r} gets results of this program", fix=fix))
        return None
    if Path(said).suffix not in FORMATS:
        raise InputError(explain("results are written as .csv or .npz", where=said, fix="give --output such a name"))
    return Path(said)
