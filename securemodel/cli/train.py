"""securemodel train: a training script as one party, or as all of them, with a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from protocols.errors import explain
from securemodel.cli import script as scripts
from securemodel.cli.base import FILE, Command
from securemodel.cli.processes import prefixed
from securemodel.cli.programs import load_target
from securemodel.cli.run import Here, end_as, party_options, run_all
from securemodel.errors import InputError
from securemodel.invocation import Progress
from securemodel.planning.units import bytes_text
from securemodel.training.training import Training

_EVERY_S = 2.0  # between lines where no terminal shows a bar


@click.command(cls=Command, no_args_is_help=True)
@click.argument("script", type=FILE)
@click.argument("args", nargs=-1)
@party_options
@click.option(
    "--rows",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --me: the folder with the files that `securemodel share` wrote for this party.",
)
def train(
    script: Path,
    args: tuple[str, ...],
    here: Here,
    rows: Path | None,
) -> None:
    """Run a training SCRIPT as one party, or as all of them, and show how far it is.

    The same script runs at every party: it makes a job with securemodel.compile_training() and calls connect() of it.
    It is run as `securemodel run` does, with epoch, step, what the step reveals to this party, and the time left.
    With --local it needs PARTIES at its top level; where CONTRIBUTORS are named there too, each shares its rows
    first, in a process that ends before the training begins.

    \b
    Examples:
      securemodel train train.py --local
      securemodel train train.py --me bank --config parties.toml
      securemodel train train.py --me bank --config parties.toml --rows from_hospital
    """
    if names := here.everybody(script, rows):
        words, sharing = ["train", "--ledger", here.ledger or "none"], scripts.declared_contributors(script)
        say = prefixed((*names, *sharing))
        return end_as(run_all(script, args, names, say, words, sharing, device=here.device))
    with _shown() as progress:
        known = scripts.as_party(
            script, args, *here.party, ledger=here.ledger, progress=progress, rows=rows, device=here.device
        )
        with known:
            scripts.run_main(script)


@click.command(cls=Command, no_args_is_help=True)
@click.argument("script", type=FILE)
@click.option("--me", required=True, metavar="NAME", help="Be this contributor of the training.")
@click.option(
    "--config",
    required=True,
    type=FILE,
    help="A parties file with [contributors.NAME], and this contributor's identity in [me].",
)
@click.option("--to", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where files go.")
@click.option("--ledger", metavar="FILE|none", help="Where this is written down, instead of the user's own ledger.")
def share(script: Path, me: str, config: Path, folder: Path, ledger: str | None) -> None:
    """Share rows for a training SCRIPT and leave: this party takes no part in the training itself.

    For an owner of data that the script names in compile_training(contributors=...). It looks through its rows, and
    writes a file for each party, which that party alone can read and which tells it nothing of the rows. Bring each
    party its file, or all parties all files; the folder's name goes into their --rows. Then this owner is not needed
    any more: the files are good for any number of runs of this program, resumed ones too, and for no other program.

    All parties together, or the dealer with any one of them, could read the rows: be sure before that they do not work
    together, for nobody asks this owner again. The script is imported, which runs what is outside `if __name__ == "__main__"`.

    \b
    Example:
      securemodel share train.py --me hospital --config parties.toml --to from_hospital
    """
    made = load_target(script)
    if not isinstance(made, Training):
        fix = (
            "name a script that has job = compile_training(...) or make_job() at its top level, of the protocol masked"
        )
        raise InputError(explain("rows are shared for a training", where=str(script), fix=fix))
    book = True if ledger is None else ledger != "none" and Path(ledger)
    for name, path in made.share_rows(folder, me, config, ledger=book).items():
        click.echo(f"for {name}: {path} ({bytes_text(path.stat().st_size)})")
    click.echo("Give each party its file. This party is not needed for the training.")


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, elsewhere a line every few seconds and for the last step."""
    if not sys.stdout.isatty():
        yield _Lines()
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns) as bar:
        task = bar.add_task("train", total=None, epoch=1, values="")
        yield lambda now: bar.update(task, completed=now.step, total=now.steps, epoch=now.epoch, values=_values(now))


class _Lines:
    """Says a line where enough time has passed. What is left follows from the steps after the first that it is told of:
    before it a program was compiled, or a training resumed."""

    def __init__(self) -> None:
        self._said_at = float("-inf")
        self._first: tuple[int, float] | None = None

    def __call__(self, now: Progress) -> None:
        at = time.monotonic()
        self._first = self._first or (now.step, at)
        if at - self._said_at >= _EVERY_S or now.step == now.steps:
            self._said_at = at
            click.echo(_said(now, now.step - self._first[0], at - self._first[1]))


def _said(now: Progress, made: int, seconds: float) -> str:
    """The line, where so many steps took so many seconds."""
    of = f" of {now.steps}" if now.steps else ""
    left = f", {seconds / made * (now.steps - now.step):.0f} s left" if now.steps and made else ""
    values = f": {_values(now)}" if now.returned else ""
    return f"epoch {now.epoch}, step {now.step}{of}{values}{left}"


def _values(now: Progress) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in now.returned.items())
