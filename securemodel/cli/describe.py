"""securemodel describe: statistics of a joint table, and a draft of a schema from one's own file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from protocols.channel import arrive
from protocols.errors import InputError, explain
from protocols.identity import load_config
from protocols.names import is_name
from securemodel.cli.align import table_files
from securemodel.cli.base import FILE, Command, say_aside, wants_traceback
from securemodel.cli.launch import run_local
from securemodel.cli.processes import prefixed
from securemodel.cli.run import end_as
from securemodel.data.connecting import connect, local
from securemodel.data.joint import Joint
from securemodel.data.moments import correlation
from securemodel.data.propose import propose
from securemodel.data.query import Query
from securemodel.data.schema import Schema
from securemodel.data.sides import Rows
from securemodel.data.statistics import QUANTILES, describe
from securemodel.data.table import Source, table
from securemodel.invocation import Invocation, invoked
from securemodel.planning.costs import NETWORKS
from securemodel.sessions.remote import place


@click.command("describe", cls=Command, no_args_is_help=True)
@click.argument("schema", type=FILE, required=False)
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="[NAME=]FILE",
    help="A party's file (.csv, .csv.gz, .parquet, .xlsx); with --me only this party's is opened.",
)
@click.option(
    "--aligned",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder that `securemodel align` wrote, where the schema has keys.",
)
@click.option("--columns", metavar="A,B", help="These columns, instead of all that have numbers.")
@click.option(
    "--quantiles",
    metavar="Q,Q",
    default=",".join(map(str, QUANTILES)),
    show_default=True,
    help='Which quantiles; none: --quantiles "".',
)
@click.option(
    "--bins", type=click.IntRange(min=2), help="How many bins quantiles are of, where no party has a column whole."
)
@click.option("--extremes", is_flag=True, help="The least and the largest value, too: two persons' own.")
@click.option(
    "--noise",
    type=float,
    metavar="X",
    help="Each party adds noise of X times what one row may change, and there are no quantiles.",
)
@click.option("--correlation", "correlated", is_flag=True, help="The correlations of these columns, too.")
@click.option("--reveal", default="all", metavar="all|NAME", show_default=True, help="Who learns the statistics.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what it would cost and reveal, and do nothing.")
@click.option("--network", type=click.Choice(sorted(NETWORKS)), default="lan", show_default=True, help="Of the plan.")
@click.option(
    "--propose",
    "draft",
    metavar="NAME=FILE",
    help="Print a draft of a schema from this party's own file, and do nothing else.",
)
@click.option("--keys", metavar="A,B", help="With --propose: the columns that ids are made of.")
@click.option(
    "--local", "all_here", is_flag=True, help="All parties on this machine, each a process with an identity of its own."
)
@click.option("--me", metavar="NAME", help="Be this party of a parties file.")
@click.option("--config", type=FILE, help="With --me: the parties file (see `securemodel keys`).")
@click.option(
    "--ledger",
    metavar="FILE|none",
    help="Where it is written down (see `securemodel audit`), instead of the user's own ledger; with --local, none.",
)
def describe_command(
    schema: Path | None,
    tables: tuple[str, ...],
    aligned: Path | None,
    draft: str | None,
    keys: str | None,
    all_here: bool,
    me: str | None,
    config: Path | None,
    ledger: str | None,
    **asked: Any,
) -> None:
    """Count, mean, deviation and quantiles of the columns of a joint table, as pandas shows them.

    The SCHEMA is the same at all parties. Before anybody connects, this says how many rounds, bytes and seconds it takes,
    and what is revealed to whom.

    \b
    Examples:
      securemodel describe --propose bank=clients.csv --keys email > joint.toml
      securemodel describe joint.toml --table bank=clients.csv --table shop=orders.parquet --aligned aligned --local
      securemodel describe joint.toml --table clients.csv --aligned aligned --me bank --config parties.toml
    """  # fmt: skip
    if draft is not None:
        return click.echo(_draft(draft, keys), nl=False)
    if schema is None:
        raise click.UsageError("name a SCHEMA, or make a draft of one with --propose NAME=FILE.")
    known, wish = Schema.load(schema), _Wish(**asked)
    if known.keys and aligned is None:
        fix = "find out with `securemodel align`, and name the folder that it writes: --aligned"
        raise InputError(explain("whose row belongs to which is not known", where=str(schema), fix=fix))
    if all_here:
        if me or config:
            raise click.UsageError("--local is for all parties: leave out --me and --config.")
        files = table_files(tables, known.parties or _named(tables), None)
        if wish.only_plan:
            with local(known, [table(*pair) for pair in files.items()], aligned=aligned) as joint:
                return wish.say_plan(joint)
        words = [
            "describe",
            *wish.words(),
            *(["--aligned", str(aligned)] if aligned else []),
            "--ledger",
            ledger or "none",
        ]
        words += [word for name, file in files.items() for word in ("--table", f"{name}={file}")]
        say, shown = prefixed(tuple(files)), wants_traceback()
        return end_as(run_local(schema, (), tuple(files), say, traceback=shown, command=words))
    if not me or not config:
        raise click.UsageError("give --local, or both --me NAME and --config FILE.")
    sources = _sources(known, tables, me, config)
    _describe(known, sources, me, config, aligned, ledger, wish)


def _describe(
    known: Schema, sources: list[Source], me: str, config: Path, aligned: Path | None, ledger: str | None, wish: _Wish
) -> None:
    """This party's part; the others hear meanwhile that it is there."""
    me, parties, own = place([source.party for source in sources], me, config, False, "describe")
    arrival = arrive(me, parties, own) if own and not wish.only_plan else None
    book = True if ledger is None else ledger != "none" and Path(ledger)
    try:
        with invoked(Invocation(me, config, arrivals=[arrival] if arrival else [], say=say_aside)):
            before = wish.plan_and_stop if wish.only_plan else wish.say_plan
            with connect(known, sources, me, parties, aligned=aligned, ledger=book, before=before) as joint:
                wish.answer(joint)
    except _Planned:
        return
    finally:
        if arrival:
            arrival.close()


class _Planned(Exception):
    """Raised where a plan is all that is wanted."""


@dataclass(frozen=True)
class _Wish:
    """What is to be described."""

    columns: str | None
    quantiles: str
    bins: int | None
    extremes: bool
    noise: float | None
    correlated: bool
    reveal: str
    only_plan: bool
    network: str

    @property
    def asks(self) -> list[Callable[[Rows], Any]]:
        names = None if self.columns is None else _split(self.columns)
        made: list[Callable[[Rows], Any]] = [
            lambda joint: describe(
                joint, names, quantiles=_numbers(self.quantiles), extremes=self.extremes, bins=self.bins,
                noise=self.noise, reveal=self.reveal,
            )
        ]  # fmt: skip
        if self.correlated:
            made.append(lambda joint: correlation(joint, names, reveal=self.reveal))
        return made

    def say_plan(self, joint: Joint) -> None:
        """Rounds, bytes and seconds of what will be asked, and what is revealed to whom."""
        asked = _Recorded(joint)
        for ask in self.asks:
            ask(asked)
        click.echo(f"{joint.rows} joint rows of {', '.join(joint.parties)}")
        for query in asked.queries:
            click.echo(str(joint.compiled(query).plan(self.network)))

    def plan_and_stop(self, joint: Joint) -> None:
        """The plan, and nobody is reached."""
        self.say_plan(joint)
        raise _Planned

    def answer(self, joint: Joint) -> None:
        """Asks, and prints what this party learns."""
        for ask in self.asks:
            found = ask(joint)
            click.echo(f"revealed to {self.reveal} alone" if found is None else str(found))

    def words(self) -> list[str]:
        """As options of the command."""
        made = ["--quantiles", self.quantiles, "--reveal", self.reveal, "--network", self.network]
        for name in ("columns", "bins", "noise"):
            value = getattr(self, name)
            made += [] if value is None else [f"--{name}", str(value)]
        return [*made, *["--extremes"] * self.extremes, *["--correlation"] * self.correlated]


@dataclass(frozen=True)
class _Recorded:
    """A joint table that answers nothing, and remembers what it was asked."""

    joint: Joint
    queries: list[Query] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.joint, name)

    def ask(self, query: Query) -> dict[str, torch.Tensor | None]:
        self.queries.append(query)
        return {"nothing": None}


def _draft(draft: str, keys: str | None) -> str:
    name, equals, file = draft.partition("=")
    if not equals or not is_name(name):
        raise click.UsageError(f"--propose {draft}: give the party's name before its file, NAME=FILE.")
    return propose(table(name, Path(file)), _split(keys or ""))


def _named(tables: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.partition("=")[0] for each in tables if "=" in each))


def _sources(known: Schema, tables: Sequence[str], me: str, config: Path) -> list[Source]:
    """A table of every party, of which this process opens its own."""
    parties = known.parties or tuple(load_config(config).parties)
    files = table_files(tables, parties, me)
    return [table(name, files.get(name, Path(f"{name}'s own"))) for name in parties]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in _split(text)]
    except ValueError:
        raise click.UsageError(f"--quantiles {text}: give numbers such as 0.25,0.5,0.75.") from None
