"""securemodel align: which rows of the parties' files are about the same id."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
import torch

from protocols.channel import arrive
from protocols.errors import InputError, explain
from protocols.names import is_name
from protocols.psi import with_dealer
from protocols.psi.costs import cost
from protocols.psi.terms import ALL, COUNT, NOBODY, Terms
from protocols.psi.workers import multiplication_s
from securemodel.cli.base import FILE, Command, say_aside, wants_traceback
from securemodel.cli.launch import run_local
from securemodel.cli.processes import prefixed
from securemodel.cli.run import end_as
from securemodel.data.align import ChangedSetWarning, revealed
from securemodel.data.aligned_files import load, path_of
from securemodel.data.connecting import connect
from securemodel.data.joint import Joint
from securemodel.data.place import There
from securemodel.data.schema import Schema
from securemodel.data.table import table
from securemodel.invocation import Invocation, invoked
from securemodel.planning.units import bytes_text, seconds_text
from securemodel.sessions.remote import place

_DEFAULT = Terms("")


@click.command("align", cls=Command, no_args_is_help=True)
@click.argument("schema", type=FILE)
@click.option(
    "--table",
    "tables",
    multiple=True,
    required=True,
    metavar="[NAME=]FILE",
    help="A party's file (.csv, .csv.gz, .parquet, .xlsx); with --me only this party's is opened.",
)
@click.option(
    "--learns",
    required=True,
    metavar=f"{ALL}|{NOBODY}|{COUNT}|NAME",
    help="Who learns which ids are common: that somebody is in a file is personal data.",
)
@click.option(
    "--unmatched",
    type=click.Choice(["keep", "drop"]),
    default=_DEFAULT.unmatched,
    show_default=True,
    help="Where one party learns: whether its rows that others lack stay, with a secret weight; else all learn how many match.",
)
@click.option(
    "--largest",
    type=click.IntRange(min=1),
    default=_DEFAULT.largest,
    show_default=True,
    help="No party may bring more rows; the same at all.",
)
@click.option(
    "--dealer",
    is_flag=True,
    help="By numbers of a dealer's, many times as fast: two parties, of whom all or one learn.",
)
@click.option("--local", is_flag=True, help="All parties on this machine, each a process with an identity of its own.")
@click.option("--me", metavar="NAME", help="Be this party of a parties file.")
@click.option("--config", type=FILE, help="With --me: the parties file (see `securemodel keys`).")
@click.option(
    "--ledger",
    metavar="FILE|none",
    help="Where it is written down (see `securemodel audit`), instead of the user's own ledger; with --local, none.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("aligned"),
    show_default=True,
    help="The folder for a file with this party's rows in the joint order.",
)
def align_command(
    schema: Path,
    tables: tuple[str, ...],
    learns: str,
    unmatched: str,
    largest: int,
    dealer: bool,
    local: bool,
    me: str | None,
    config: Path | None,
    ledger: str | None,
    out: Path,
) -> None:
    """Find out which rows of the parties' files are about the same id, without showing ids.

    The SCHEMA is the same at all parties and names the columns that ids are made of. Before anybody connects, this says
    what is revealed to whom, and what it costs; afterwards what it took. A file in the folder --out says which row of
    its own a party has at each joint row. It is its owner's alone, and holds for the table as it is now: a changed one
    is refused later.

    \b
    Examples:
      securemodel align joint.toml --table bank=clients.csv --table shop=orders.parquet --learns all --local
      securemodel align joint.toml --table clients.csv --learns bank --me bank --config parties.toml
    """
    known = Schema.load(schema)
    _check_schema(known, schema)
    if local:
        if me or config:
            raise click.UsageError("--local is for all parties: leave out --me and --config.")
        files = table_files(tables, known.parties, None)
        _check_terms(Terms(learns, largest=largest, dealer=dealer), known.parties)
        words = ["align", "--learns", learns, "--unmatched", unmatched, "--largest", str(largest), "--out", str(out)]
        words += [word for name, file in files.items() for word in ("--table", f"{name}={file}")]
        words += ["--ledger", ledger or "none", *(["--dealer"] if dealer else [])]
        say, shown = prefixed(known.parties), wants_traceback()
        return end_as(run_local(schema, (), known.parties, say, traceback=shown, command=words, dealer=dealer))
    if not me or not config:
        raise click.UsageError("give --local, or both --me NAME and --config FILE.")
    me, parties, own = place(known.parties, me, config, False, "align")
    terms = Terms(learns, known.digest, largest, unmatched, dealer)
    _check_terms(terms, known.parties)
    source = table(me, table_files(tables, known.parties, me)[me])
    _say_what_is_revealed(known.parties, terms)
    arrival = arrive(me, parties, own) if own else None  # the others hear that this party is there while it reads
    book = True if ledger is None else ledger != "none" and Path(ledger)
    try:
        with invoked(Invocation(me, config, arrivals=[arrival] if arrival else [], say=say_aside)):
            before = _Before(me, terms)
            with connect(known, [source], me, parties, ledger=book, before=before.say) as joint, _warnings_said():
                _align(joint, terms, out)
    finally:
        if arrival:
            arrival.close()


def _align(joint: Joint, terms: Terms, out: Path) -> None:
    """Aligns, and says what it took and gave."""
    channel, start = cast(There, joint.place).channel, time.perf_counter()
    before, made = channel.stats, ""
    if terms.learns == COUNT:
        found = f"{joint.count_common(largest=terms.largest)} common ids"
    else:
        rows = joint.align(
            terms.learns, unmatched=terms.unmatched, largest=terms.largest, dealer=terms.dealer, out=out
        ).rows
        aligned = load(out, cast(str, joint.me))
        known = "" if aligned.common in (None, rows) else f", {aligned.common} of them common to all"
        found, made = f"{rows} joint rows{known}", f"{path_of(out, aligned.me)}: "
    stats, seconds = channel.stats - before, time.perf_counter() - start
    click.echo(
        f"took {stats.rounds} rounds, {bytes_text(stats.sent_bytes)} sent, {bytes_text(stats.received_bytes)} received, "
        f"{seconds_text(seconds)}"
    )
    click.echo(f"{made}{found}")


def _check_terms(terms: Terms, parties: tuple[str, ...]) -> None:
    (with_dealer.check if terms.dealer else Terms.check)(terms, parties)


def _check_schema(known: Schema, path: Path) -> None:
    if not known.keys:
        fix = 'name the columns of the id: keys = ["email"] under [table]'
        raise InputError(explain("rows without ids cannot be aligned", where=str(path), fix=fix))
    if known.split != "columns":
        why = "the parties have different rows of the same columns: their table is all of them, one after the other"
        raise InputError(explain("a table that is split by rows is not aligned", where=str(path), why=why))


def table_files(tables: Sequence[str], parties: Sequence[str], me: str | None) -> dict[str, Path]:
    """By party its file; with `me` at least that party's, which may stand there without a name."""
    found: dict[str, Path] = {}
    for each in tables:
        name, equals, file = each.partition("=")
        if not equals or not is_name(name):
            if me is None:
                raise click.UsageError(f"--table {each}: with --local a file has a party's name before it, NAME=FILE.")
            name, file = me, each
        if name not in parties:
            raise click.UsageError(f"--table {each}: the schema has no columns of {name!r}.")
        if name in found:
            raise click.UsageError(f"--table {each}: {name!r} has two files.")
        found[name] = Path(file)
    lacking = [name for name in ([me] if me else parties) if name not in found]
    if lacking:
        raise click.UsageError(f"no --table is given for {', '.join(lacking)}.")
    return found


def _say_what_is_revealed(parties: Sequence[str], terms: Terms) -> None:
    click.echo("revealed to all: each party's number of rows")
    for receiver, what in revealed(parties, terms).items():
        click.echo(f"revealed to {receiver}: {'; '.join(what)}")


@dataclass(frozen=True)
class _Before:
    """What is said of a party's own file when it was read, before anybody is reached."""

    me: str
    terms: Terms

    def say(self, joint: Joint) -> None:
        """Notes of the file, and what the alignment costs."""
        mine, terms = joint.tables[self.me], self.terms
        for note in mine.notes:
            click.echo(f"note: {note}")
        workers = torch.get_num_threads()
        rows = dict.fromkeys(joint.parties, mine.rows)
        if terms.dealer:
            counted, seconds, workers = (
                with_dealer.cost_with_dealer(rows, terms, self.me),
                mine.rows * with_dealer.ROW_S,
                1,
            )
        else:
            counted = cost(rows, terms, self.me)
            seconds = counted.multiplications * multiplication_s() / workers
        click.echo(
            f"{mine.rows} rows of {self.me}; if others have as many: at most {counted.rounds} rounds, "
            f"{bytes_text(counted.sent_bytes)} sent, about {seconds_text(seconds)} on {workers} "
            f"core{'s' if workers > 1 else ''}"
        )


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Warnings of changed sets as lines of this command, as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ChangedSetWarning)
        shown = warnings.showwarning

        def say(message, category, *place, **rest) -> None:
            if issubclass(category, ChangedSetWarning):
                click.echo(f"warning: {message}", err=True)
            else:
                shown(message, category, *place, **rest)

        warnings.showwarning = say
        yield
