"""securemodel predict: the rows of a file through a program in batches, at one party or at all of them."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from protocols.errors import explain
from protocols.identity import load_config
from securemodel.api import connect
from securemodel.cli import script as scripts
from securemodel.cli.base import FILE, Command
from securemodel.cli.lanes import MOST, Crew, Lanes, Processes
from securemodel.cli.part import Given, Part, open_part, page_of
from securemodel.cli.processes import prefixed
from securemodel.cli.programs import program_of, weights_of
from securemodel.cli.ray_lanes import LOCAL, RayLanes
from securemodel.cli.results_page import read_labels, write_page
from securemodel.cli.run import Here, end_as, party_options, run_all
from securemodel.errors import InputError
from securemodel.invocation import current
from securemodel.scripts import load_file
from securemodel.sessions.resume import agree_on_start, all_begun
from securemodel.sessions.session import Session

_SAID = re.compile(r"(\d+) of (\d+) rows")


_FILES = {
    "input": ("FILE", "Rows: a table (.csv, .tsv, .txt), .npy, .npz, or a folder of images."),
    "output": ("FILE", "Results: .csv or .npz."),
    "columns": ("A,B", "Columns of a table: names, or 1,2,... ."),
    "arrays": ("A,B", "Arrays of an NPZ file, one for each input."),
    "id": ("COLUMN", "Column (or array) of ids: parties compare them, and results carry them."),
    "delimiter": ("D", "What stands between the cells of a table: a character, comma, semicolon, tab, ... ."),
    "encoding": ("E", "How a table is written: utf-8 by default, cp1252, utf-16, ... ."),
    "divide-by": ("X", "Divide numbers read from tables and arrays by X."),
    "journal": ("FILE", "Where to keep how far the job is: beside OUTPUT (or INPUT) by default."),
    "report": ("FILE.html", "Also write a page about the results, which loads nothing."),
    "labels": ("FILE[:COLUMN]", "True classes, counted from 0, of the rows in order: the report compares."),
}
"""Options that may begin with PARTY=, what they take, and what they are for."""


def _of_files(command: Callable) -> Callable:
    for name, (takes, text) in reversed(_FILES.items()):
        command = click.option(f"--{name}", multiple=True, metavar=f"[PARTY=]{takes}", help=text)(command)
    return command


@click.command(cls=Command, no_args_is_help=True)
@click.argument("script", type=FILE)
@_of_files
@click.option("--header/--no-header", default=None, help="The first line of a table has names, or is a row.")
@click.option(
    "--lanes",
    type=click.IntRange(1, MOST),
    default=1,
    show_default=True,
    help="Run so many sessions side by side, each in a process; the same at every party.",
)
@click.option(
    "--ray",
    is_flag=False,
    flag_value=LOCAL,
    metavar="[ADDRESS]",
    help="Run this party's lanes as actors of Ray: of its own organization's cluster, or of one made here.",
)
@party_options
def predict(
    script: Path,
    header: bool | None,
    lanes: int,
    ray: str | None,
    here: Here,
    **files: tuple[str, ...],
) -> None:
    """Run the rows of a file through a secure program, in batches of the compiled size.

    SCRIPT is a Python file that defines `program` or make_program(), as for `securemodel plan`. If it defines
    load_model(party), that is called at parties that own weights, and returns the model with (their part of) the
    weights; otherwise the compiled model has them. The file is imported by every party: keep what runs by itself
    behind `if __name__ == "__main__"`.

    Whoever owns inputs gives --input, whoever learns results gives --output, and the others just take part. With
    --local, PARTY= says whose file it is where several parties have one. A table has a row on each line, all of as
    many cells; its columns fill the inputs in order. NPY and NPZ arrays have rows on the first axis. A folder's images
    are read in the order of their names, made gray or RGB and resized as the input has it, with values from 0 to 1.
    A file is looked through before anybody connects: what cannot be used is named by line and column, and no row is
    left out.

    Started again after an interruption, all parties run the batches that somebody lacks, or whose input was corrected
    in between; each keeps count in OUTPUT.journal (who has no output: INPUT.journal). Another program, or an input of
    which nothing is the same, is refused.

    \b
    Examples:
      securemodel predict infer.py --local --input patients.csv --output risks.csv
      securemodel predict infer.py --local --input a=a.csv --input b=b.csv --output risks.npz
      securemodel predict infer.py --me bank --config parties.toml
      securemodel predict infer.py --me hospital --config parties.toml --input images/ --output found.csv
    """
    given = Given(**files, header=header)
    if ray and (here.local or lanes == 1):
        raise click.UsageError("--ray goes with --me and with --lanes of more than one.")
    if lanes > 1 and here.store:
        raise click.UsageError("a store is used by one session at a time: leave out --lanes, or use a dealer.")
    if names := here.everybody(script):
        return _predict_all(script, names, given, here, lanes)
    me, config, store = here.party
    if lanes > 1:
        load_config(config).at_lane(lanes)
    with scripts.as_party(script, (), me, config, store, ledger=here.ledger, lanes=lanes, device=here.device):
        _predict_one(script, me, given, here.ledger, ray)


def _predict_all(script: Path, names: tuple[str, ...], given: Given, here: Here, lanes: int) -> None:
    with _display() as display:
        say = prefixed(names, display.echo)

        def told(name: str, text: str, error: bool) -> None:
            said = _SAID.fullmatch(text)
            display.rows(int(said[1]), int(said[2])) if said else say(name, text, error)

        words = ("predict", "--ledger", here.ledger or "none", "--lanes", str(lanes), *given.words(names))
        outcome = run_all(script, (), names, told, words, lanes=lanes, device=here.device)
    end_as(outcome)


def _predict_one(script: Path, me: str, given: Given, ledger: str | None, ray: str | None) -> None:
    module = load_file(script) if script.suffix == ".py" else None
    if module is None:
        why, fix = "a program's text can be planned and dealt for, not run", "give the Python file it was made by"
        raise InputError(explain("predict needs a script", where=str(script), why=why, fix=fix))
    program = program_of(module, script)
    page, labels = page_of(program, me, given)
    truth = read_labels(labels) if labels else None
    model = functools.cache(lambda: weights_of(module, script, program, me))
    with open_part(program, me, given, model) as part:
        for note in part.notes:
            click.echo(note)
        with _crew(script, part, ledger, ray) as crew, connect(program) as session, _display() as display:
            _take_part(session, part, model, display, crew)
        record = part.record
        if record and record.output:
            record.finish(part.rows.id_name, part.rows.names()) if part.rows else record.finish()
            click.echo(f"{record.journal.rows} rows of results in {record.output}")
            if page:
                write_page(page, program, me, record.output, truth)
                click.echo(f"a page about them: {page}")


@dataclass(frozen=True)
class Display:
    """Shows how many rows are done of how many, and lines of text beside that."""

    rows: Callable[[int, int], None]
    echo: Callable[..., None] = click.echo


@contextmanager
def _crew(script: Path, part: Part, ledger: str | None, ray: str | None) -> Iterator[Crew | None]:
    """The lanes of this party, where there is more than one, starting; afterwards none is left."""
    said = current()
    if said.lanes == 1:
        yield None
        return
    job = {
        "script": str(script.resolve()),
        "me": said.me,
        "config": str(said.config),
        "ledger": ledger,
        "lanes": said.lanes,
        "device": said.device,
        "results": part.results,
    }
    with closing(RayLanes(job, said.lanes, ray) if ray else Processes(job, said.lanes)) as crew:
        for lane in range(1, said.lanes + 1):
            crew.start(lane)
        yield crew


def _take_part(
    session: Session,
    part: Part,
    model: Callable[[], torch.nn.Module | None],
    display: Display,
    crew: Crew | None = None,
) -> None:
    """Agrees with the others where to go on, and runs the rest, here or in lanes."""
    rows, record = part.rows, part.record
    size, ids = session.program.header.rows, rows.ids if rows else b""
    kept = record.kept(bool(ids)) if record else None
    start = agree_on_start(session.channel, kept, size, record.batches if record else None, ids)
    if record:
        record.begin(start)
    all_begun(session.channel)
    if record:
        record.begun()
    todo = [int(batch) for batch in np.flatnonzero(start.todo)]
    left = sum(min(size, start.rows - batch * size) for batch in todo)
    display.rows(start.rows - left, start.rows)
    if not todo:
        return
    if crew:
        lanes = Lanes(session.channel, part, size, start.rows, crew, current().lanes, display.rows, display.echo)
        return lanes.run(session.program, todo)
    session.load(session.program, model())
    batches = (_placed(batch, part.mine) for batch in rows.read(todo)) if rows else None
    with closing(session.run_batches(batches, left if rows else 0)) as finished:
        for batch, made in zip(todo, finished, strict=True):
            if record:
                record.add(batch, [cast(torch.Tensor, made.outputs[index]) for index in part.results])
            left -= made.rows
            display.rows(start.rows - left, start.rows)


def _placed(batch: Sequence[torch.Tensor], mine: Sequence[bool]) -> list[torch.Tensor | None]:
    """This party's inputs at their places among all."""
    source = iter(batch)
    return [next(source) if own else None for own in mine]


@contextmanager
def _display() -> Iterator[Display]:
    """Shows how many rows are done: a bar on a terminal, elsewhere a line whenever one percent more is done."""
    if not sys.stdout.isatty():
        said = [-1]

        def line(done: int, rows: int) -> None:
            percent = 100 * done // rows if rows else 100
            if percent > said[0]:
                said[0] = percent
                click.echo(f"{done} of {rows} rows")

        yield Display(line)
        return
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("predict", total=None)

        def echo(text: str, err: bool = False) -> None:
            click.echo(text, err=True) if err else progress.console.print(Text.from_ansi(text))

        yield Display(lambda done, rows: progress.update(task, completed=done, total=rows), echo)
