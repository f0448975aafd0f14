"""securemodel predict: the rows of a file through a program in batches, at one party or at all of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from protocols.errors import explain
from securemodel.cli import script as scripts
from securemodel.cli.base import Command, print_error, wants_traceback
from securemodel.cli.launch import run_local
from securemodel.cli.part import Given, Part, open_part
from securemodel.cli.programs import program_of
from securemodel.cli.run import FILE, check_identity, party_options, prefixed
from securemodel.compiler.builder import PUBLIC
from securemodel.compiler.owners import weight_owners
from securemodel.errors import InputError
from securemodel.program import Program
from securemodel.runtime.remote import RemoteSession, connect
from securemodel.runtime.resume import agree_on_start
from securemodel.runtime.session import compiled_rows

_SAID = re.compile(r"(\d+) of (\d+) rows")


@click.command(cls=Command, no_args_is_help=True)
@click.argument("script", type=FILE)
@click.option("--input", "inputs", multiple=True, metavar="[PARTY=]FILE", help="Rows: .csv, .npy, .npz, or a folder.")
@click.option("--output", "outputs", multiple=True, metavar="[PARTY=]FILE", help="Results: .csv or .npz.")
@click.option("--columns", multiple=True, metavar="[PARTY=]A,B", help="Columns of a CSV file: names, or 1,2,... .")
@click.option("--arrays", multiple=True, metavar="[PARTY=]A,B", help="Arrays of an NPZ file, one for each input.")
@click.option("--divide-by", multiple=True, metavar="[PARTY=]X", help="Divide numbers read from CSV, NPY or NPZ by X.")
@party_options
def predict(
    script: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    columns: tuple[str, ...],
    arrays: tuple[str, ...],
    divide_by: tuple[str, ...],
    local: bool,
    parties: str | None,
    me: str | None,
    config: Path | None,
    store: Path | None,
    ledger: str | None,
) -> None:
    """Run the rows of a file through a secure program, in batches of the compiled size.

    SCRIPT is a Python file that defines `program` or make_program(), as for `securemodel plan`. If it defines
    load_model(party), that is called at parties that own weights, and returns the model with (their part of) the
    weights; otherwise the compiled model has them. The file is imported by every party: keep what runs by itself
    behind `if __name__ == "__main__"`.

    Whoever owns inputs gives --input, whoever learns results gives --output, and the others just take part. With
    --local, PARTY= says whose file it is where several parties have one. A CSV file has a row on each line, with or
    without a line of names; its columns fill the inputs in order. NPY and NPZ arrays have rows on the first axis.
    A folder's PNG and JPEG files are read in the order of their names, made gray or RGB and resized as the input
    has it, with values from 0 to 1.

    Started again after an interruption, all parties go on after the last batch that everybody finished; each keeps
    count in OUTPUT.journal (who has no output: INPUT.journal). Another input or program is refused.

    \b
    Examples:
      securemodel predict infer.py --local --input patients.csv --output risks.csv
      securemodel predict infer.py --local --input a=a.csv --input b=b.csv --output risks.npz
      securemodel predict infer.py --me bank --config parties.toml
      securemodel predict infer.py --me hospital --config parties.toml --input images/ --output found.csv
    """
    given = Given(inputs, outputs, columns, arrays, divide_by)
    if local:
        if me or config or store:
            raise click.UsageError("--local is for all parties of a session: leave out --me, --config and --store.")
        names = scripts.checked_parties(scripts.split_names(parties)) if parties else scripts.declared_parties(script)
        _predict_all(script, names, given, ledger)
        return
    if parties:
        raise click.UsageError("--parties goes with --local; with --me the parties file names them.")
    if not me or not config:
        raise click.UsageError("give --local, or both --me NAME and --config FILE.")
    check_identity(me, config)
    with scripts.as_party(script, (), me, config, store, ledger=ledger):
        _predict_one(script, me, given)


def _predict_all(script: Path, names: tuple[str, ...], given: Given, ledger: str | None) -> None:
    with _display() as display:
        say = prefixed(names, display.echo)

        def told(name: str, text: str, error: bool) -> None:
            said = _SAID.fullmatch(text)
            display.rows(int(said[1]), int(said[2])) if said else say(name, text, error)

        command = ("predict", "--ledger", ledger or "none", *given.words(names))
        outcome = run_local(script, (), names, told, traceback=wants_traceback(), command=command)
    if outcome.code:
        stopped = f"; stopped {', '.join(outcome.stopped)}" if outcome.stopped else ""
        print_error(f"{outcome.cause} ended with exit code {outcome.code}{stopped}")
        click.get_current_context().exit(outcome.code)


def _predict_one(script: Path, me: str, given: Given) -> None:
    module = scripts.load_file(script) if script.suffix == ".py" else None
    if module is None:
        why, fix = "a program's text can be planned and dealt for, not run", "give the Python file it was made by"
        raise InputError(explain("predict needs a script", where=str(script), why=why, fix=fix))
    program = program_of(module, script)
    part = open_part(program, me, given)
    with connect(program) as session, _display() as display:
        _take_part(session, part, lambda: _model(module, script, program, me), display.rows)
    if part.record:
        part.record.finish(part.rows.names if part.rows else ())
        if part.record.output:
            click.echo(f"{part.record.journal.done} rows of results in {part.record.output}")


def _model(module: object, script: Path, program: Program, me: str) -> torch.nn.Module | None:
    """The model with the weights of this party, if it owns any. Raises InputError, ScriptFailed."""
    if not {me, PUBLIC} & set(weight_owners(program.header.weights)):
        return None
    load = getattr(module, "load_model", None)
    if not callable(load):
        return program.model
    with scripts.explained(script):
        model = load(me)
    if not isinstance(model, torch.nn.Module):
        raise InputError(explain("load_model() returns no model", where=str(script), fix="return an nn.Module"))
    return model


def _take_part(
    session: RemoteSession, part: Part, model: Callable[[], torch.nn.Module | None], shown: Callable[[int, int], None]
) -> None:
    """Agrees with the others where to go on, and runs the rest."""
    rows, record = part.rows, part.record
    agreed = agree_on_start(session.channel, record.kept(rows.count if rows else 0) if record else None)
    if record:
        record.begin(agreed)
    shown(agreed.done, agreed.rows)
    if agreed.done == agreed.rows:
        return
    session.load(session.program, model())
    size, at, batches = compiled_rows(session.program.header.input_shapes), agreed.done, None
    if rows:
        batches = (_placed(batch, part.mine) for batch in rows.read(at, size))
    with closing(session.run_batches(batches, agreed.rows - at if rows else 0)) as finished:
        for batch in finished:
            if record:
                record.add(at, batch.rows, [batch.outputs[index] for index in part.results])
            at += batch.rows
            shown(at, agreed.rows)


def _placed(batch: Sequence[torch.Tensor], mine: Sequence[bool]) -> list[torch.Tensor | None]:
    """This party's inputs at their places among all."""
    source = iter(batch)
    return [next(source) if own else None for own in mine]


@dataclass(frozen=True)
class Display:
    """Shows how many rows are done of how many, and lines of text beside that."""

    rows: Callable[[int, int], None]
    echo: Callable[..., None] = click.echo


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
